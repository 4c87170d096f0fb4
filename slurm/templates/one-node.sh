#!/bin/bash
# One node, one job: sbatch slurm/templates/one-node.sh RECIPE
#
# What 'bam submit --one-job' writes for you, reduced to what it needs; adapt the lines that begin with #SBATCH. They end at
# the first command: Slurm does not see those below it.
#
#SBATCH --job-name=bam
#SBATCH --nodes=1
# One task for each rank, one rank for each GPU. bam takes the number of ranks from here.
#SBATCH --ntasks=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=200G
#SBATCH --time=12:00:00
# The output of all starts in one file; 120 seconds before the end, this script hears of it.
#SBATCH --output=bam-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

recipe=${1:?usage: sbatch one-node.sh RECIPE}

# What the site needs:
# module load openmpi/4.1

# Slurm tells this script alone that time is nearly up (USR1), or that the job is to end (TERM). For either, bam stops at a
# checkpoint and ends with 75. Who ends the job does not want it back.
requeue=yes
trap 'kill -s USR1 "$bam" 2>/dev/null' USR1
trap 'requeue=no; kill -s TERM "$bam" 2>/dev/null' TERM
bam run "$recipe" -o checkpoint.lead=120 &
bam=$!
# A signal ends 'wait', with a status above 128, before bam ends.
status=129
while [ "$status" -gt 128 ]; do
    wait "$bam"
    status=$?
done

# Back into the queue under the same number. The script must end at once: Slurm ends what is left of it.
if [ "$status" -eq 75 ] && [ "$requeue" = yes ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
