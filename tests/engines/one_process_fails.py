"""Run as `train.py` is, but the second process finds that its sampler's logits are not numbers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train
from tasks.errors import NonFiniteError

build = train.build


def build_with_a_failing_second(*arguments, **named):
    learner = build(*arguments, **named)

    def fail(*_, **__):
        raise NonFiniteError("only the second process found this")

    if learner.processes.rank == 1:
        learner.actor.engine.generate = fail
    return learner


train.build = build_with_a_failing_second
sys.exit(train.main())
