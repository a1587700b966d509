"""Every objective's gradient with and without the responses that teach nothing: `gradients.py TO STAGES [options]`.

Run as one process or under torchrun, on the real learner in FP32, with STAGES such as 123. For each ZeRO stage and
objective, and for rejections, it says how far the two gradients are apart, relative to their size, how far they are
from what by_hand.py makes of it, and the shares of the responses that were passed backwards and of what was rejected;
and keeps the gradient. All of that goes to TO.json and TO.safetensors, under <stage>/<case>. Several such lines may be
given, with a + between them.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors.torch import save_file

from tests.engines.by_hand import slopes_by_hand
from tests.engines.fixed_batch import command_lines, fixed_batch, learner_alone, leave

# Rejections and what stands beside them; thresholds such that some are rejected and some are not.
REJECTING = {
    "geo": {"objective": "pg-seq-is", "reject": ("geo",), "geo_low": 0.96, "geo_high": 1.04},
    "mean-batch": {"objective": "grpo", "reject": ("k3", "outlier"), "k3_cap": 0.006, "outlier_low": 0.7,
                   "outlier_high": 1.25, "aggregation": "token-mean-batch"},
    "mean-sequence": {"objective": "gspo", "reject": ("veto", "m2po"), "veto_below": 0.8, "m2_cap": 0.005,
                      "clip_low": 0.2, "clip_high": 0.2, "aggregation": "token-mean-sequence"},
    "m2po": {"objective": "pg-token-is", "reject": ("m2po",), "m2_cap": 0.005, "aggregation": "token-mean-batch"},
    "counted": {"objective": "pg-seq-tis", "reject": ("icepop", "opsm", "kpop"), "icepop_low": 0.9, "icepop_high": 1.1,
                "opsm_delta": 0.01, "kpop_cap": 1e-6, "tis_cap": 1.1, "aggregation": "token-mean-sequence"},
    "both": {"objective": "cispo", "reject": ("max-token", "icepop"), "token_k2_cap": 0.03, "icepop_low": 0.9,
             "icepop_high": 1.1, "aggregation": "token-mean-batch"},
    "normalised": {"objective": "pg-seq-tis", "reject": ("geo",), "geo_low": 0.96, "geo_high": 1.04, "tis_cap": 1.1,
                   "is_batch_normalize": True},
    "normalised-tokens": {"objective": "icepop", "icepop_low": 0.9, "icepop_high": 1.1, "is_batch_normalize": True},
    "penalty": {"objective": "dppo-tv", "reject": ("geo",), "geo_low": 0.96, "geo_high": 1.04, "dppo_tau": 0.1},
    "infinite": {"objective": "pg-seq-is", "reject": ("outlier",)},
    "everything": {"objective": "pg-seq-is", "reject": ("geo",), "geo_low": 2.0, "geo_high": 3.0,
                   "aggregation": "token-mean-sequence"},
}  # fmt: skip


def choose(learner, case: str) -> dict:
    """Have the learner use an objective, or one of the above. Returns its options."""
    from learners.objectives import OBJECTIVES, REJECTIONS, defaults

    chosen = {"reject": (), "is_batch_normalize": False, "objective": case} | REJECTING.get(case, {})
    chosen = defaults(chosen["objective"], "oat", chosen["reject"]) | {"aggregation": "token-sum-constant"} | chosen
    for name, value in chosen.items():
        setattr(learner.config.objective, name, value)
    updater, objective = learner.updater, OBJECTIVES[chosen["objective"]]
    updater.objective, updater.thresholds = objective, {name: chosen[name] for name in objective.thresholds}
    updater.rejections = [REJECTIONS[name] for name in chosen["reject"]]
    return chosen


def batch_with_little_to_teach(learner, case: str = ""):
    """Four responses have an advantage and are kept; in the case "infinite" the weight of one is beyond FP32."""
    batch = fixed_batch(16)
    generator = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(batch.mu_logp.shape, generator=generator)
    log_pi = learner.updater.without_gradient(batch, learner.updater.log_probs)
    batch.mu_logp = (log_pi + noise) * batch.response_mask  # near pi: a weight of e^40 would magnify FP32's rounding
    batch.advantages[torch.arange(len(batch)) % 16 > 4] = 0.0
    batch.kept[::7] = False
    if case == "infinite":
        batch.mu_logp[2, batch.response_mask[2].int().argmax()] -= 95.0
    return batch


def gradient_of(learner, batch) -> tuple[torch.Tensor, dict[str, float], float]:
    """Of one update, flat; the update itself changes nothing, at a rate of next to 0. And the step's statistics, and of
    how many tokens the mismatch was measured."""
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
    return torch.cat(taken).double(), step.tally.result(), step.tally.whole()["counts"]["mismatch/kl_k3"]


def gradient_by_hand(learner, batch, options: dict) -> torch.Tensor:
    policy = learner._load_policy()  # not the one in DeepSpeed's hands, which collects gradients by itself
    logp = learner.updater._log_probs_of(policy, batch)
    slopes = slopes_by_hand(batch, logp, options, learner.config.sampling.generate_max_length)
    chosen = logp[batch.response_mask]  # what lies outside carries no gradient
    gradients = torch.autograd.grad(chosen, list(policy.parameters()), slopes[batch.response_mask].float())
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def report(learner, case: str) -> tuple[dict[str, float], torch.Tensor]:
    options, made = choose(learner, case), {}
    for on_all in (True, False):
        learner.config.training.train_on_all = on_all
        made[on_all] = gradient_of(learner, batch_with_little_to_teach(learner, case))
    (whole, _, measured), (part, statistics, also_measured) = made[True], made[False]
    assert measured == also_measured, "the mismatch is of all responses in both cases"
    told = {name: value for name, value in statistics.items() if name.startswith("objective/rejected_")}
    told |= {"share": statistics["train/trained_share"], "norm": whole.norm().item()}
    told["apart"] = ((whole - part).norm() / whole.norm().clamp(min=1e-9)).item()
    if learner.processes.world_size == 1:
        by_hand = gradient_by_hand(learner, batch_with_little_to_teach(learner, case), options)
        told["from_by_hand"] = ((whole - by_hand).norm() / by_hand.norm().clamp(min=1e-9)).item()
    return told, part.float()


def run(to: str, stages: str, *rest: str) -> None:
    reports, gradients = {}, {}
    for stage in stages:
        arguments = [f"--zero-stage={stage}", "--dtype=fp32", "--learning-rate=1e-30", "--train-batch-size=16"]
        if not rest:
            arguments += ["--micro-batch-size=1"]  # alone, a response's log-probabilities are the same to the bit
        with learner_alone(Path(f"{to}-run-{stage}"), *arguments, *rest) as learner:
            from learners.objectives import OBJECTIVES

            for each in (*OBJECTIVES, *REJECTING):
                name = f"{stage}/{each}"
                reports[name], gradients[name] = report(learner, each)
            if learner.processes.rank == 0:
                Path(f"{to}.json").write_text(json.dumps(reports))
                save_file(gradients, f"{to}.safetensors")


if __name__ == "__main__":
    for line in command_lines(sys.argv[1:]):
        run(*line)
    leave()
