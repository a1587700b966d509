#!/usr/bin/env bash
# train.py with one process a GPU: bash scripts/experiments/launch.sh --preset NAME --output-dir DIR [options]
#
# Within a Slurm job by srun, else by torchrun on this machine's GPUs. A run that is finished is not run again, and one
# that is not goes on. Ends with 75 if the run was told to stop before its end, so that a loop over runs ends with it.
# DRY_RUN=1 shows the options and starts nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; exit 0; fi

words=("$@") folder=""
for i in "${!words[@]}"; do
    case "${words[i]}" in
        --output-dir | --output_dir) folder="${words[i + 1]:-}" ;;
        --output-dir=* | --output_dir=*) folder="${words[i]#*=}" ;;
    esac
done
ended() { grep -qs "\"status\": \"$1\"" "$folder/summary.json"; }

if ended finished; then echo "$folder is finished; without its summary.json it would go on"; exit 0; fi
if [ -e "${WARNED:-/nowhere}" ]; then echo "$folder is not begun: the job is about to end"; exit 75; fi

if [ -n "${SLURM_JOB_ID:-}" ]; then
    # Since Slurm 22.05 srun does not take --cpus-per-task from sbatch.
    if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
    command=(srun --kill-on-bad-exit=1 .venv/bin/python)  # if one task dies the others are ended, not left waiting
else
    gpus=$( (nvidia-smi -L 2> /dev/null || true) | grep -c GPU || true)
    if [ "$gpus" -gt 1 ]; then command=(.venv/bin/torchrun --nproc-per-node "$gpus"); else command=(.venv/bin/python); fi
fi
code=0
"${command[@]}" train.py "$@" || code=$?
case "$code" in
    0) if ended stopped; then exit 75; fi ;;
    138 | 143) exit 75 ;;  # SIGUSR1 or SIGTERM, before train.py listened for them
esac
exit "$code"
