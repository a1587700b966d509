#!/usr/bin/env bash
# What the Slurm jobs here do: run a command, and come back into the queue if it was told to stop before its end.
#   run_and_requeue.sh bash scripts/experiments/launch.sh --preset NAME --output-dir DIR [options]
#
# A warning before the time limit (SIGUSR1, which comes to this shell) is passed on to the job's tasks: train.py saves
# itself, launch.sh then ends with 75 and begins no other run, and so does a script that loops over it. The job keeps
# its number, hence its output folder, and train.py goes on from the newest checkpoint there. SIGTERM comes to train.py
# by itself: when the job is cancelled, which then saves itself and does not come back, or is about to be pre-empted.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
WARNED=$(mktemp -u)  # a file that is there once the job was warned
export WARNED

warn() {
    : > "$WARNED"
    scancel --signal=USR1 "$SLURM_JOB_ID" || true  # to the tasks of a running srun; there may be none just now
}
trap warn USR1
trap : TERM
(trap '' TERM; exec "$@") &  # the shells below live on until train.py has saved itself
command=$!
while true; do  # a trapped signal ends a wait, not the command
    code=0
    wait "$command" || code=$?
    kill -0 "$command" 2> /dev/null || break
done
rm -f "$WARNED"

if [ "$code" = 75 ] && scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then
    echo "job $SLURM_JOB_ID was told to stop before the end; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
