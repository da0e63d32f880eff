#!/usr/bin/env bash
# GoogLeNet on several machines without a batch system: start the same line on each of them.
#
#   HEAD=first-machine NODES=2 scripts/torchrun.sh --config imagenet.yaml data.train=...
#
# NODES=1:4 lets machines come and go: whenever one does, all ranks start again from the last
# checkpoint. optimizer.batch_size must divide by every number of ranks there can be.
# Not run by the authors on more than one machine; there, tests/test_ranks.py runs the same line.
set -euo pipefail
exec torchrun \
    --nnodes="${NODES:?number of machines, such as 2 or 1:4}" \
    --nproc-per-node="${RANKS:-gpu}" \
    --rdzv-backend=c10d --rdzv-id="${RUN:-googlenet}" \
    --rdzv-endpoint="${HEAD:?the first name of the machines}:${PORT:-29500}" \
    --max-restarts=3 --shutdown-timeout=60 \
    -m googlenet_train "$@" --resume
