"""Every objective's gradient with and without the responses that have no advantage: `gradients.py FOLDER STAGES`.

Run as one process or under torchrun, on the real learner in FP32. Prints, for each ZeRO stage and objective, how far
the two gradients are apart, relative to their size, and the share of the responses that was passed backwards.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.engines.fixed_batch import fixed_batch, learner_alone, leave


def batch_with_little_to_teach(learner):
    batch = fixed_batch(16)
    generator = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(batch.mu_logp.shape, generator=generator)
    log_pi = learner.updater._without_gradient(batch, learner.updater.log_probs)
    batch.mu_logp = (log_pi + noise) * batch.response_mask  # near pi: a weight of e^40 would magnify FP32's rounding
    batch.advantages[torch.arange(len(batch)) % 16 > 4] = 0.0
    batch.kept[::7] = False
    return batch


def gradient_of(learner, batch) -> torch.Tensor:
    """Of one update, flat; the update itself changes nothing, at a rate of next to 0."""
    from deepspeed.utils import safe_get_full_grad

    from learners.rollouts.step import Step

    taken, apply = [], learner.optimizer.step

    def take(*arguments, **named):
        taken.extend(safe_get_full_grad(p).flatten().clone() for p in learner.causal_lm.parameters())
        return apply(*arguments, **named)

    learner.optimizer.step = take
    step = Step(1, batch, times={})
    try:
        learner.updater.evaluate_before(step)
        learner.updater.update(step, step.batch)
    finally:
        learner.optimizer.step = apply
    measured = step.tally.whole()["counts"]["mismatch/kl_k3"]
    return torch.cat(taken).double(), step.tally.result()["train/trained_share"], measured


if __name__ == "__main__":
    folder, *stages = sys.argv[1:]
    for stage in stages:
        arguments = [f"--zero-stage={stage}", "--dtype=fp32", "--learning-rate=1e-30", "--train-batch-size=16"]
        arguments += ["--micro-batch-size=1"]  # alone, a response's log-probabilities are the same to the bit
        with learner_alone(Path(folder) / stage, *arguments) as learner:
            from learners.objectives import OBJECTIVES

            for name, objective in OBJECTIVES.items():
                learner.updater.objective, learner.updater.thresholds = objective, {}
                made = {}
                for on_all in (True, False):
                    learner.config.training.train_on_all = on_all
                    made[on_all] = gradient_of(learner, batch_with_little_to_teach(learner))
                (whole, _, measured), (part, share, also_measured) = made[True], made[False]
                assert measured == also_measured, "the mismatch is of all responses in both cases"
                apart = ((whole - part).norm() / whole.norm()).item()
                if learner.processes.rank == 0:
                    print(f"{stage} {name} {apart:.3g} {share:.3g}", flush=True)
    leave()
