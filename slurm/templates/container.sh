#!/bin/bash
# In a container: sbatch slurm/templates/container.sh RECIPE
#
# On one node, bam, Open MPI and libtorch are all in the image, and nothing of the host is needed but its GPUs. For several
# nodes, the mpirun in the image needs srun and munge in there, of the host's version: bind them, or start the ranks outside.
#
#SBATCH --job-name=bam
#SBATCH --nodes=1
#SBATCH --ntasks=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=200G
#SBATCH --time=12:00:00
#SBATCH --output=bam-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

recipe=${1:?usage: sbatch container.sh RECIPE}
image=${BAM_IMAGE:?set BAM_IMAGE to the image}

# --nv lets NVIDIA's driver in. 'exec' passes signals on, which stopping at a checkpoint needs; 'docker run' does not.
container=(${BAM_CONTAINER:-apptainer exec --nv} "$image")

# Slurm tells this script alone that time is nearly up (USR1), or that the job is to end (TERM). For either, bam stops at a
# checkpoint and ends with 75. Who ends the job does not want it back.
requeue=yes
trap 'kill -s USR1 "$bam" 2>/dev/null' USR1
trap 'requeue=no; kill -s TERM "$bam" 2>/dev/null' TERM
"${container[@]}" bam run "$recipe" -o checkpoint.lead=120 &
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
