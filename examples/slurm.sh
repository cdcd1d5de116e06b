#!/bin/bash
# Full fine-tuning on 4 nodes of 8 GPUs under Slurm:  sbatch examples/slurm.sh data.train=/data/my.jsonl model=org/name
# Queued again after a failed node or a preemption (or by hand), it goes on from its last checkpoint.
#SBATCH --job-name=vlseg
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# One task a node; each starts its node's processes, which meet at the first node.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=8

# `out` and the data lie on storage that all nodes share.
srun torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node 8 \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$head:29500" \
    -m vlseg.cli train full --launch fsdp2 out=/shared/runs/full "$@"
