"""The scripts that start runs and bring a job back, with stand-ins for srun, scontrol and scancel."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.conftest import ROOT

SRUN = """#!/usr/bin/env bash
# Writes down how it was called; then is the run that its test wants.
folder=""
for word in "$@"; do case "$word" in --output-dir=*) folder="${word#*=}" ;; esac; done
echo "srun cores=${SRUN_CPUS_PER_TASK:-} threads=$OMP_NUM_THREADS $*" >> "$CALLS"
echo $$ > "$CALLS.pid"
mkdir -p "$folder"
if [ -n "${RUNS_FOR:-}" ]; then
    trap 'echo "{\\"status\\": \\"stopped\\"}" > "$folder/summary.json"; exit 0' USR1
    for _ in $(seq "$RUNS_FOR"); do sleep 0.1; echo . >> "$CALLS.alive"; done
fi
if [ -n "${STATUS:-}" ]; then echo "{\\"status\\": \\"$STATUS\\"}" > "$folder/summary.json"; fi
exit "${CODE:-0}"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo "   JobState=${STATE:-RUNNING} Reason=None"; else echo "scontrol $*" >> "$CALLS"; fi
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >> "$CALLS"
kill -USR1 "$(cat "$CALLS.pid")"
"""
LOOP = """set -euo pipefail
for name in a b c; do bash scripts/experiments/launch.sh "--output-dir=$RUNS/$name" "$@"; done
"""


class Job:
    """A Slurm job of three runs, one after the other."""

    def __init__(self, folder):
        self.folder, self.calls_file = folder, folder / "calls"
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("scancel", SCANCEL), ("loop.sh", LOOP)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def start(self, **environment: str) -> subprocess.Popen:
        told = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_CPUS_PER_TASK": "6"}
        told |= {"CALLS": str(self.calls_file), "RUNS": str(self.folder / "runs")} | environment
        told["PATH"] = f"{self.folder}:{os.environ['PATH']}"
        environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        command = ["bash", str(ROOT / "scripts/slurm/run_and_requeue.sh"), "bash", str(self.folder / "loop.sh"), "--x"]
        return subprocess.Popen(command, env=environ | told, stdout=subprocess.PIPE, text=True)

    def run(self, **environment: str) -> int:
        process = self.start(**environment)
        process.communicate(timeout=30)
        return process.returncode

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def names(calls: list[str]) -> list[str]:
    return [call.split("--output-dir=")[1].split("/")[-1].split()[0] for call in calls if call.startswith("srun")]


def test_runs_follow_each_other_with_the_cores_that_the_job_asked_for(job):
    assert job.run(STATUS="finished") == 0
    assert names(job.calls) == ["a", "b", "c"]
    assert all(call.startswith("srun cores=6 threads=6 --kill-on-bad-exit=1 ") for call in job.calls)
    assert job.calls[0].endswith("train.py --output-dir=" + str(job.folder / "runs" / "a") + " --x")
    assert job.run(STATUS="finished") == 0
    assert len(job.calls) == 3, "what is finished was run again"


def test_without_a_wish_for_cores_slurm_decides(job):
    job.run(STATUS="finished", SLURM_CPUS_PER_TASK="")
    assert job.calls[0].startswith("srun cores= threads=1 ")


@pytest.mark.parametrize("told", [{"STATUS": "stopped"}, {"CODE": "138"}, {"CODE": "143"}])
def test_a_run_that_was_told_to_stop_is_the_last_and_the_job_comes_back(job, told):
    job.run(**told)
    assert names(job.calls) == ["a"]
    assert job.calls[-1] == "scontrol requeue 7"


def test_a_cancelled_job_stays_away(job):
    assert job.run(STATUS="stopped", STATE="COMPLETING") == 75
    assert len(job.calls) == 1


@pytest.mark.parametrize("told", [{"STATUS": "failed", "CODE": "1"}, {"CODE": "2"}, {"CODE": "137"}])
def test_a_run_that_fails_is_the_last_and_the_job_has_failed(job, told):
    assert job.run(**told) == int(told["CODE"])
    assert names(job.calls) == ["a"]
    assert len(job.calls) == 1


def warned(job, **environment: str) -> subprocess.Popen:
    process = job.start(RUNS_FOR="20", **environment)
    deadline = time.time() + 20
    while not (job.folder / "calls.alive").exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    return process


def test_a_warning_is_passed_on_and_the_job_comes_back(job):
    warned(job)
    assert [call.split()[0] for call in job.calls] == ["srun", "scancel", "scontrol"]
    assert job.calls[1:] == ["scancel --signal=USR1 7", "scontrol requeue 7"]
    assert json.loads((job.folder / "runs" / "a" / "summary.json").read_text())["status"] == "stopped"


def test_no_run_begins_after_a_warning_that_came_when_the_last_was_all_but_done(job):
    (job.folder / "scancel").write_text('#!/usr/bin/env bash\necho "scancel $*" >> "$CALLS"\n')  # too late for it
    warned(job, STATUS="finished")
    assert names(job.calls) == ["a"]
    assert job.calls[-1] == "scontrol requeue 7"
