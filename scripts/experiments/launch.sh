#!/usr/bin/env bash
# train.py with one process a GPU: bash scripts/experiments/launch.sh --preset NAME --output-dir DIR [options]
#
# Within a Slurm job by srun, else by torchrun on this machine's GPUs. A run that is finished is not run again, and one
# that is not goes on. DRY_RUN=1 shows the options and starts nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; exit 0; fi

words=("$@")
for i in "${!words[@]}"; do
    if [ "${words[i]}" = --output-dir ] && grep -qs '"status": "finished"' "${words[i + 1]}/summary.json"; then
        echo "${words[i + 1]} is finished"; exit 0
    fi
done

if [ -n "${SLURM_JOB_ID:-}" ]; then exec srun .venv/bin/python train.py "$@"; fi
gpus=$( (nvidia-smi -L 2> /dev/null || true) | grep -c GPU || true)
if [ "$gpus" -gt 1 ]; then exec .venv/bin/torchrun --nproc-per-node "$gpus" train.py "$@"; fi
exec .venv/bin/python train.py "$@"
