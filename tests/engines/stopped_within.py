"""A step that rejects and normalises, stopped between two of its updates and gone on with: `stopped_within.py OUT`.

Run as one process or under torchrun. Each process writes what it found to OUT/<processes>-<rank>.json.
"""

import contextlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.engines.fixed_batch import learner_alone, leave
from tests.engines.gradients import batch_with_little_to_teach
from tests.engines.resume_in_parts import state

OPTIONS = (
    "--dtype=fp32 --learning-rate=1e-3 --train-batch-size=4 --micro-batch-size=2 --aggregation=token-mean-batch "
    "--objective=pg-seq-tis --tis-cap=1.1 --is-batch-normalize=True --reject m2po opsm --m2-cap=0.005 --opsm-delta=0.01"
).split()
STOP_AFTER = 2


def learned(learner, step) -> tuple[dict, dict]:
    from learners.checkpoints.training_state import link_moments

    metrics = learner.learn(step)
    link_moments(learner)
    return {name: value for name, value in metrics.items() if "time/" not in name and "per_s" not in name}, state(
        learner
    )


def run(out: Path) -> dict:
    from learners.checkpoints import training_state
    from learners.checkpoints.folders import find_checkpoint
    from learners.checkpoints.interruption import Stopped
    from learners.rollouts.step import Step

    with learner_alone(out / "straight", *OPTIONS) as learner:
        metrics, straight = learned(learner, Step(1, batch_with_little_to_teach(learner), times={}))
    with learner_alone(out / "stopped", *OPTIONS) as learner:
        step = learner.in_progress = Step(1, batch_with_little_to_teach(learner), times={})
        learner.interruption.requested = lambda: "SIGUSR1" if step.updates_done == STOP_AFTER else None
        with contextlib.suppress(Stopped):
            learner.learn(step)
    with learner_alone(out / "stopped", *OPTIONS) as learner:
        checkpoint, _ = find_checkpoint(out / "stopped", "auto")
        training_state.read(learner, checkpoint)
        taken_up = learner.in_progress
        report = {
            "updates_done": taken_up.updates_done,
            "mean_weight": taken_up.mean_weight,
            "same_mean_weight": taken_up.mean_weight == step.mean_weight,
            "same_loss_mask": torch.equal(taken_up.batch.loss_mask, step.batch.loss_mask),
            "rejected": int((taken_up.batch.response_mask & ~taken_up.batch.loss_mask).sum()),
        }
        metrics_after, after = learned(learner, taken_up)
    report["apart"] = max((after[name].double() - straight[name].double()).abs().max().item() for name in straight)
    report["metrics"], report["straight_metrics"] = metrics_after, metrics
    return report


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    made = run(folder)
    from actors.launch import Launch

    launch = Launch.from_environment()
    (folder / f"{launch.world_size}-{launch.rank}.json").write_text(json.dumps(made))
    leave()
