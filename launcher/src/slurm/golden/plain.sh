#!/bin/bash
# The batch job of the run 'tiny', written by bam VERSION. To change it, change the recipe and
# submit it again with 'bam submit'.
#
#SBATCH --job-name=tiny
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --chdir=/home/a
# The output of all starts of the job, one after the other.
#SBATCH --output=/runs/tiny/logs/slurm-%j.out
#SBATCH --open-mode=append
# So many seconds before its end the job is told, so that it stops at a checkpoint and is put into the queue again.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

run=/runs/tiny
job=$SLURM_JOB_ID

# Slurm's signals come to this script, which passes them on: for either, bam stops at a checkpoint.
bam=''
signals=''
pass_on() {
    signals="$signals $1"
    interrupted=yes
    [ -z "$bam" ] || kill -s "$1" "$bam" 2>/dev/null
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM
say() { printf '=== job %s, start %s, %s: %s\n' "$job" "${SLURM_RESTART_COUNT:-0}" "$(date +%FT%T)" "$1"; }

if [ -e "$run/slurm/cancelled" ]; then
    say 'cancelled'
    exit 75
fi

if [ -n "$signals" ]; then
    say 'the time was up before bam was started'
    exit 1
fi
say "on ${SLURM_JOB_NODELIST:-$(hostname)}"
/opt/bam/bam run /runs/tiny/slurm/recipe.yaml --run-dir "$run" -n 1 -o checkpoint.lead=120 &
bam=$!
# One that came just before bam had its number.
for signal in $signals; do
    kill -s "$signal" "$bam"
done
# A signal ends 'wait' before bam ends.
interrupted=yes
while [ -n "$interrupted" ]; do
    interrupted=''
    wait "$bam"
    status=$?
done

# 75: bam has stopped at a checkpoint. Anything else is the end of the job, good or bad.
[ "$status" -eq 75 ] || exit "$status"
if [ -e "$run/slurm/cancelled" ]; then
    say 'stopped at a checkpoint, cancelled'
    exit 75
fi
# TERM is from somebody who ends the job, unless its time is up, or it is to make room for another and still runs.
case $signals in
*TERM*)
    case "$(squeue --noheader --jobs="$job" --format='%T %r')" in
    'RUNNING '* | *' TimeLimit') ;;
    *)
        say 'stopped at a checkpoint, ended from outside'
        exit 75
        ;;
    esac
    ;;
esac
# Slurm may have given this node up, and have started the job elsewhere.
restarts=$(scontrol --oneliner show job "$job" | grep -o ' Restarts=[0-9]*')
if [ -n "$restarts" ] && [ "${restarts#*=}" != "${SLURM_RESTART_COUNT:-0}" ]; then
    say 'a later start has taken over'
    exit 75
fi
say 'stopped at a checkpoint, back into the queue'
for pause in 1 2 5 10 0; do
    # Slurm ends this script soon after.
    scontrol requeue "$job" && exit 75
    sleep "$pause"
done
say 'could not be put into the queue again; submit the run again to go on'
exit 75
