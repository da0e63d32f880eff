#!/usr/bin/env bash
# GoogLeNet on several machines under Slurm: one torchrun a node, one rank a GPU.
#
#   sbatch scripts/slurm.sh --config imagenet.yaml data.train=/data/imagenet/train ...
#
# Five minutes before the time limit Slurm sends USR1 to this shell (torchrun would not hand it on):
# the run is asked to save and stop, and the job is put back into the queue, where --resume goes on.
# Not run by the authors for want of a cluster; tests/test_ranks.py runs the same torchrun line on
# one machine.
#SBATCH --job-name=googlenet
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# --max-restarts: a lost rank costs a restart from the last checkpoint, not the job.
# --shutdown-timeout: what a save may take after SIGTERM before torchrun kills the ranks.
srun torchrun \
    --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:29500" \
    --max-restarts=3 --shutdown-timeout=60 \
    -m googlenet_train "$@" --resume &
run=$!

requeue() {
    trap '' USR1
    echo "the time limit is near: saving, then back into the queue" >&2
    scancel --signal=TERM "$SLURM_JOB_ID.0"
    wait "$run" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR1
wait "$run"
