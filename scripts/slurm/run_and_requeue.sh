#!/usr/bin/env bash
# What a job of single_node.sbatch or multi_node.sbatch does: run train.py in all its tasks, and come back for the rest.
#
# A warning before the time limit (SIGUSR1), or SIGTERM before a pre-emption, has train.py save itself and end with 0; its
# summary then says "stopped", and the job is put into the queue again. It keeps its number, hence its output folder, and
# train.py goes on from the newest checkpoint there.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
trap : TERM USR1  # for train.py; this shell waits for it

folder="runs/slurm-$SLURM_JOB_ID"
given=0
for argument in "$@"; do
    case "$argument" in
        --output-dir=* | --output_dir=*) folder="${argument#*=}" given=1 ;;
        --output-dir | --output_dir) echo "write --output-dir=FOLDER, with an equals sign" >&2; exit 2 ;;
    esac
done
[ "$given" = 1 ] || set -- "$@" "--output-dir=$folder"

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
# If one task dies the others are ended, rather than left waiting for it.
srun --kill-on-bad-exit=1 .venv/bin/python train.py "$@" &
step=$!
while true; do  # a trapped signal ends a wait, not the step
    code=0
    wait "$step" || code=$?
    kill -0 "$step" 2> /dev/null || break
done

if [ "$code" = 0 ] && grep -qs '"status": "stopped"' "$folder/summary.json"; then
    echo "job $SLURM_JOB_ID was told to stop before the end; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
