#!/bin/bash
# The batch job of the run 'tiny', written by bam VERSION. To change it, change the recipe and
# submit it again with 'bam submit'.
#
#SBATCH --job-name=big
#SBATCH --partition=gpu
#SBATCH --account=p1
#SBATCH --qos=high
#SBATCH --constraint=a100&ib
#SBATCH --reservation=course
#SBATCH --nodes=2
#SBATCH --ntasks=16
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=6
#SBATCH --gpus-per-node=8
#SBATCH --mem=256G
#SBATCH --time=1-12:00:00
#SBATCH --mail-user=a@b.c
#SBATCH --mail-type=FAIL,TIME_LIMIT_90
#SBATCH --chdir=/home/a
# The output of all starts of the job, one after the other.
#SBATCH --output="/my runs/100%%'s/tiny/logs/slurm-%j.out"
#SBATCH --open-mode=append
# So many seconds before its end the job is told, so that it stops at a checkpoint and is put into the queue again.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
# What else the recipe asks for (slurm.extra).
#SBATCH --exclusive
#SBATCH --comment="two words"

run='/my runs/100%'\''s/tiny'
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

# Modules; where a batch shell does not know them, they are where their packages put them.
if ! type module >/dev/null 2>&1; then
    for file in /etc/profile.d/lmod.sh /etc/profile.d/modules.sh /etc/profile.d/z00_lmod.sh; do
        [ -r $file ] && . $file && break
    done
fi
module load gcc/12 || exit
module load openmpi/4.1 || exit

# The recipe's own lines (slurm.prologue); one that fails ends the job.
set -e
export UCX_TLS=rc
ulimit -l unlimited
set +e

if [ -n "$signals" ]; then
    say 'the time was up before bam was started'
    exit 1
fi
say "on ${SLURM_JOB_NODELIST:-$(hostname)}"
apptainer exec --nv '/images/my bam.sif' /opt/bam/bam run '/my runs/100%'\''s/tiny/slurm/recipe.yaml' --run-dir "$run" -n 16 -o checkpoint.lead=300 &
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
