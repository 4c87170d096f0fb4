#!/bin/bash
# One model for each element of an array: sbatch --array=0-3%2 slurm/templates/array.sh RECIPE STAGE...
#
# Elements work on one run side by side, each on one stage (of 'bam plan RECIPE'), when what they need is there: run
# 'bam run RECIPE --stages prepare' before. 'bam submit' makes the whole chain of such jobs by itself.
#
#SBATCH --job-name=bam
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=4:00:00
#SBATCH --output=bam-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

recipe=${1:?usage: sbatch --array=0-N array.sh RECIPE STAGE...}
shift
stages=("$@")
stage=${stages[$SLURM_ARRAY_TASK_ID]:?there is no such stage on the command line}

# Slurm tells this script alone that time is nearly up (USR1), or that the job is to end (TERM). For either, bam stops at a
# checkpoint and ends with 75. Who ends the job does not want it back.
requeue=yes
trap 'kill -s USR1 "$bam" 2>/dev/null' USR1
trap 'requeue=no; kill -s TERM "$bam" 2>/dev/null' TERM
bam run "$recipe" --stages "$stage" -o checkpoint.lead=120 &
bam=$!
# A signal ends 'wait', with a status above 128, before bam ends.
status=129
while [ "$status" -gt 128 ]; do
    wait "$bam"
    status=$?
done

# Back into the queue under the same number. The script must end at once: Slurm ends what is left of it.
if [ "$status" -eq 75 ] && [ "$requeue" = yes ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
