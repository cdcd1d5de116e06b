#!/bin/bash
# The same on machines without a scheduler. Run it on each of them, with the address of one of them as HEAD:
#   HEAD=10.0.0.1 NODES=2 examples/torchrun.sh data.train=/shared/my.jsonl out=/shared/runs/full
# On one machine:  examples/torchrun.sh data.train=my.jsonl
# RECIPE (full), LAUNCH (fsdp2; cpu on machines without GPUs), GPUS (processes a machine), PORT: from the environment.
set -euo pipefail

exec torchrun \
    --nnodes "${NODES:-1}" \
    --nproc-per-node "${GPUS:-8}" \
    --rdzv-id vlseg \
    --rdzv-backend c10d \
    --rdzv-endpoint "${HEAD:-localhost}:${PORT:-29500}" \
    -m vlseg.cli train "${RECIPE:-full}" --launch "${LAUNCH:-fsdp2}" "$@"
