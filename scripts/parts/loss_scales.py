"""Which gradients overflow or vanish at which loss scale: the learner's loss run backwards in FP16 and in FP32."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learners.model.log_probs import TokenLogProbs
from learners.objectives import OBJECTIVES, PolicyBatch
from learners.objectives.aggregation import UpdateCounts, aggregate
from learners.options.config import Config
from learners.rollouts.batch import Packed, RolloutBatch

LADDER = range(0, 25, 4)  # powers of two
VANISHES = 1e-3  # of the gradient's norm; as much is taken for nothing


def kind_of(name: str) -> str:
    """A module's name without the number of its layer: ``layers.3.mlp.down_proj`` -> ``mlp.down_proj``."""
    return re.sub(r"^.*layers\.\d+\.?", "", name) or "residual stream"


@torch.no_grad()
def sampled(causal_lm, prompts: list[list[int]], tokens: int, config: Config) -> RolloutBatch:
    """A response to each prompt, sampled at the run's temperature, with an advantage of 1 or -1 at random.

    Args:
        causal_lm: a Hugging Face model.
        prompts: token ids, of two tokens at least where there are no others.
        tokens: of a response, at most; 0 takes the prompt's own tokens, after the first.
        config: resolved; its seed decides.
    """
    seed = config.training.seed
    generator = torch.Generator().manual_seed(seed)
    ids, lengths = [], []
    for prompt in prompts:
        made = torch.tensor([prompt], device=causal_lm.device)
        if tokens:
            with torch.random.fork_rng():
                torch.manual_seed(seed + len(ids))
                made = causal_lm.generate(
                    input_ids=made, attention_mask=torch.ones_like(made), max_new_tokens=tokens, do_sample=True,
                    temperature=config.sampling.temperature, top_k=0, top_p=1.0, use_cache=True,
                )  # fmt: skip
        ids.append(made[0].cpu())
        lengths.append(len(prompt) if tokens else 1)
    lengths, whole = torch.tensor(lengths), torch.tensor([len(row) for row in ids])
    nothing = torch.zeros(len(ids))
    packed = Packed(torch.cat(ids).int(), lengths, whole - lengths, torch.zeros(int((whole - lengths).sum())), nothing,
                    torch.ones(len(ids), dtype=torch.bool))  # fmt: skip
    batch = RolloutBatch.unpack([packed])
    batch.advantages = torch.randint(0, 2, (len(ids),), generator=generator) * 2.0 - 1
    return batch.to(causal_lm.device)


def gradients(model: TokenLogProbs, batch: RolloutBatch, config: Config, scale: float = 1.0) -> dict[str, Tensor]:
    """Of every parameter: of the loss of one micro-batch, times a scale, at a step's first update, where pi is mu.

    Args:
        batch: with advantages.
        config: resolved; the objective, and what a token of an update weighs, are the run's.
        scale: the loss is multiplied by it, and its gradients are not divided again.

    Returns:
        By name, in the model's dtype and the order of its parameters.
    """
    objective, options, mask = OBJECTIVES[config.objective.objective], config.objective, batch.response_mask
    chosen = model(batch.input_ids, batch.lengths, mask)
    logp = torch.zeros_like(batch.mu_logp).masked_scatter(mask, chosen)
    policy = PolicyBatch(logp, logp.detach(), batch.advantages, mask, logp.detach())
    losses, _ = objective(policy, **{name: getattr(options, name) for name in objective.thresholds})
    responses = config.training.train_batch_size
    tokens = responses * mask.sum().item() / len(batch)
    counts = UpdateCounts(responses, responses, tokens, config.sampling.generate_max_length)
    loss = aggregate(losses, mask, mask.any(1), options.aggregation, counts)
    trained = dict(model.causal_lm.named_parameters())
    made = torch.autograd.grad(loss * scale, list(trained.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(trained, made, strict=True))


@dataclass
class Fate:
    """What became of the gradient of some parameters, in sums of squares of the FP32 gradient's elements."""

    norm: float = 0.0
    """of all"""
    vanished: float = 0.0
    """of those that are 0 in FP16"""
    blurred: float = 0.0
    """of those that are below FP16's normal numbers, and have fewer digits"""
    apart: float = 0.0
    """of the differences between the two gradients"""
    overflows: bool = False

    def __add__(self, other: Fate) -> Fate:
        sums = (getattr(self, name) + getattr(other, name) for name in ("norm", "vanished", "blurred", "apart"))
        return Fate(*sums, self.overflows or other.overflows)

    def share(self, name: str) -> float:
        """A sum as a share of the norm."""
        return (getattr(self, name) / self.norm) ** 0.5 if self.norm else 0.0


@dataclass
class AtScale:
    """What becomes of the gradients at one loss scale."""

    power: int
    """the scale is 2 to it"""
    by_kind: dict[str, Fate]
    first: str | None
    """the parameter whose gradient overflowed first on the way back"""

    @property
    def whole(self) -> Fate:
        return sum(self.by_kind.values(), Fate())

    @property
    def is_safe(self) -> bool:
        return self.first is None and all(fate.share("vanished") < VANISHES for fate in self.by_kind.values())


def compared(power: int, exact: dict[str, Tensor], rounded: dict[str, Tensor]) -> AtScale:
    """Hold FP16's gradients at a scale of 2^power against FP32's, which were not scaled."""
    by_kind: dict[str, Fate] = defaultdict(Fate)
    first = None
    smallest = torch.finfo(torch.float16).smallest_normal
    for name, true in exact.items():
        kept = rounded[name].abs()
        squares = true.double().square()
        overflows = not bool(torch.isfinite(kept).all())
        first = name if overflows else first  # the last of them in the model is the first on the way back
        by_kind[kind_of(name.rpartition(".")[0])] += Fate(
            norm=squares.sum().item(),
            vanished=squares[kept == 0].sum().item(),
            blurred=squares[(kept > 0) & (kept < smallest)].sum().item(),
            apart=(rounded[name].double() * 2.0**-power - true).square().sum().item(),
            overflows=overflows,
        )
    return AtScale(power, dict(by_kind), first)


def climb(at: Callable[[int], AtScale]) -> tuple[list[AtScale], tuple[int, int] | None]:
    """Look at the scales of `LADDER`, and at those between two of them where safety ends.

    Args:
        at: looks at one scale, by its power.

    Returns:
        Those of the ladder, and the lowest and the highest power that is safe; None if none of the ladder is.
    """
    ladder = [at(power) for power in LADDER]
    safe = [look.power for look in ladder if look.is_safe]
    if not safe:
        return ladder, None
    ends = []
    for end, step in ((min(safe), -1), (max(safe), 1)):
        inside, outside = end, end + step * LADDER.step
        while LADDER[0] <= outside <= LADDER[-1] and abs(outside - inside) > 1:
            middle = (inside + outside) // 2
            inside, outside = (middle, outside) if at(middle).is_safe else (inside, middle)
        ends.append(inside)
    return ladder, (ends[0], ends[1])
