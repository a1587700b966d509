"""Signals: the first is noted, the second ends the process at once."""

import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import time
from learners.checkpoints.interruption import Interruption
interruption = Interruption().listen()
assert interruption.requested() is None
print("listening", flush=True)
while interruption.requested() is None:
    time.sleep(0.01)
print(interruption.requested(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGUSR1])
def test_the_first_is_noted_and_the_second_ends_the_process(first):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "listening\n"
        process.send_signal(first)
        assert process.stdout.readline() == f"{first.name}\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == -signal.SIGTERM
    finally:
        process.kill()
