#!/bin/bash
# Several nodes, one job: sbatch slurm/templates/many-nodes.sh RECIPE
#
# This script runs on the first node; bam starts the ranks on all of them, by the job's mpirun, or by srun (cluster.launcher).
# Recipe, data, bam and the run directory must be at the same paths on all nodes.
#
#SBATCH --job-name=bam
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
# Of each node; 0: all that it has.
#SBATCH --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --output=bam-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

recipe=${1:?usage: sbatch many-nodes.sh RECIPE}

# What the site needs, such as the network that Open MPI is to use:
# module load openmpi/4.1
# export OMPI_MCA_btl_tcp_if_include=ib0

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
