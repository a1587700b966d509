"""What a correction does to a set of responses: what it keeps, and the bias and variance of the gradient it leaves.

A correction is an objective, or a rejection before `reinforce`, with the thresholds of one or more recipes. Everything
is read off kappa, what it multiplies A grad log pi of a token by: 1 for reinforce, the weight where it weighs, 0 for
what is rejected, masked or clipped. The sample that is left is (sum kappa)^2 / (n sum kappa^2) over tokens: the
effective sample size of weights, the share kept of what is all or nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from learners.objectives import OBJECTIVES, RECIPES, REJECTIONS, PolicyBatch, defaults
from scripts.parts.toy_policy import Sequences, ToyPolicy

STEP = 64  # responses of a step, which is what a rejection that looks at all of them sees
FEWEST = 100  # effective responses of a sample, without which unlimited weights are not resolved


@dataclass(frozen=True)
class Correction:
    """An objective, or a rejection, with its thresholds."""

    name: str
    rejects: bool
    thresholds: tuple[tuple[str, float], ...]
    recipes: tuple[str, ...]
    """whose defaults these thresholds are"""
    distinct: tuple[str, ...]
    """those thresholds in which recipes differ"""

    @property
    def made(self):
        return REJECTIONS[self.name] if self.rejects else OBJECTIVES[self.name]

    @property
    def needs_all(self) -> bool:
        return self.rejects and self.made.needs_all

    @property
    def is_unlimited(self) -> bool:
        """Whether its weights are of whole responses and grow with their length without a bound."""
        capped = any(key in ("tis_cap", "mis_cap") for key, _ in self.thresholds)
        return not self.rejects and self.made.weighs == "sequence" and not capped

    @property
    def leaves_denominators(self) -> bool:
        """Whether what it drops is not counted, so that the gradient is a mean over what is kept."""
        return self.rejects and not self.made.stays_counted

    @property
    def title(self) -> str:
        return "reject " * self.rejects + self.name

    @property
    def variant(self) -> str:
        """Example: ``geo_low=0.99 geo_high=1.01 (skyrl)``; empty if every recipe has it. Recipes that say nothing of
        such thresholds, and so have `oat`'s, are not named."""
        if len(self.recipes) == len(RECIPES):
            return ""
        values = [f"{key}={value:g}" for key, value in self.thresholds if key in self.distinct and value]
        said = {key for own in self.distinct for key in (own, f"{self.name}.{own}")}
        named = [recipe for recipe in self.recipes if recipe == "oat" or said & RECIPES[recipe].keys()]
        return " ".join([*values, f"({', '.join(named)})"])

    @property
    def label(self) -> str:
        """Example: ``reject geo geo_low=0.99 geo_high=1.01 (skyrl)``."""
        return f"{self.title} {self.variant}".strip()

    def effect(self, batch: PolicyBatch) -> "Effect":
        """On responses whose advantages are not 0."""
        thresholds, advantages = dict(self.thresholds), batch.advantages[:, None]
        if self.rejects:
            logp = batch.logp if batch.old_logp is None else batch.old_logp
            kappa = (self.made(replace(batch, logp=logp), **thresholds) & batch.mask).double()
            return Effect(kappa * advantages, kappa, torch.zeros_like(batch.mask))
        slopes, statistics = slopes_of(self.made, batch, thresholds)
        kappa = slopes / advantages
        if self.made.trains_without_advantage(**thresholds):  # what does not depend on A multiplies nothing
            unmoved = PolicyBatch(batch.logp, batch.mu_logp, 0 * batch.advantages, batch.mask, batch.old_logp)
            kappa = kappa - slopes_of(self.made, unmoved, thresholds)[0] / advantages
        limited = torch.zeros_like(batch.mask)
        for name, flags in statistics.items():
            if name.endswith("_fraction"):
                limited = limited | (flags > 0)
        return Effect(slopes, kappa, limited & (kappa != 0) & batch.mask)


@dataclass(frozen=True)
class Effect:
    """(B, T) each, 0 outside the mask."""

    slopes: torch.Tensor
    """what the estimator multiplies grad log pi of a token by"""
    kappa: torch.Tensor
    """the same without A, and without penalties"""
    limited: torch.Tensor
    """bool: truncated or clipped, and still with a gradient"""


def slopes_of(objective, batch: PolicyBatch, thresholds: dict[str, float]) -> tuple[torch.Tensor, dict]:
    """Minus the derivative of the summed loss by log pi, (B, T), and the objective's statistics."""
    logp = batch.logp.detach().requires_grad_()
    seen = PolicyBatch(logp, batch.mu_logp, batch.advantages, batch.mask, batch.old_logp)
    loss, statistics = objective(seen, **thresholds)
    return -torch.autograd.grad(seen.inside(loss).sum(), logp)[0], statistics


def catalogue() -> list[Correction]:
    """Every objective and every rejection, once for each different set of thresholds that a recipe gives it."""
    found = []
    for rejects, register in ((False, OBJECTIVES), (True, REJECTIONS)):
        for name, made in register.items():
            variants: dict[tuple, list[str]] = {}
            for recipe in RECIPES:
                chosen = defaults("reinforce", recipe, (name,)) if rejects else defaults(name, recipe)
                variants.setdefault(tuple((key, chosen[key]) for key in made.thresholds), []).append(recipe)
            distinct = [key for i, key in enumerate(made.thresholds) if len({chosen[i] for chosen in variants}) > 1]
            found += [Correction(name, rejects, c, tuple(r), tuple(distinct)) for c, r in variants.items()]
    return found


def united(corrections: Sequence[Correction]) -> list[Correction]:
    """Those of one name as one, with the recipes of all and the thresholds in which they agree."""
    found = {}
    for made in corrections:
        same = [other for other in corrections if other.title == made.title]
        recipes = tuple(recipe for recipe in RECIPES if any(recipe in other.recipes for other in same))
        agreed = tuple(pair for pair in made.thresholds if all(pair in other.thresholds for other in same))
        found[made.title] = replace(made, thresholds=agreed, recipes=recipes)
    return list(found.values())


# ------------------------------------------------------------------------------------------------ what is left


@dataclass
class PerResponse:
    """(N,) each, averages over a response's tokens."""

    kept: np.ndarray
    kappa: np.ndarray
    kappa_squared: np.ndarray
    limited: np.ndarray
    any_kept: np.ndarray
    gradient: np.ndarray | None = None
    """(N, parameters), where there is a policy"""

    @classmethod
    def of(cls, effect: Effect, mask: torch.Tensor, gradient: np.ndarray | None = None) -> "PerResponse":
        kept, lengths = effect.kappa != 0, mask.sum(1)
        columns = (kept.double(), effect.kappa, effect.kappa.square(), effect.limited.double())
        means = ((values.sum(1) / lengths).numpy() for values in columns)
        return cls(*means, kept.any(1).double().numpy(), gradient)


def joined(parts: Iterable[PerResponse], join=np.concatenate) -> PerResponse:
    parts = list(parts)
    columns = {key: [getattr(part, key) for part in parts] for key in vars(parts[0])}
    return PerResponse(**{key: None if c[0] is None else join(c) for key, c in columns.items()})


def what_is_left(made: PerResponse, weight: np.ndarray, is_sample: bool) -> dict[str, float]:
    """Shares kept, limited and left, with one standard error each (0 if the responses are all there are).

    Args:
        made: (N,) each.
        weight: (N,), each response's share of the tokens; its probability, times its length.
        is_sample: whether they are a sample.
    """
    kappa, square = weight @ made.kappa, weight @ made.kappa_squared
    left, influence = 0.0, np.zeros_like(weight)
    if square > 0:
        left = kappa**2 / square
        influence = 2 * kappa * made.kappa / square - left * (made.kappa_squared / square + 1)
    kept = weight @ made.kept
    error = lambda values: float(np.sqrt(((weight * values) ** 2).sum())) if is_sample else 0.0
    return {
        "kept": kept, "kept_error": error(made.kept - kept), "limited": weight @ made.limited,
        "responses_kept": made.any_kept.mean(), "left": left, "left_error": error(influence),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ of the toy's gradient


class Bench:
    """Sequences of one length in one dtype, and what every correction's gradient is compared with.

    Args:
        toy: pi and mu.
        sequences: all of them, or a sample.
        plain: the same without mismatch, from the same random numbers if they are a sample.
    """

    def __init__(self, toy: ToyPolicy, sequences: Sequences, plain: Sequences):
        self.toy, self.sequences = toy, sequences
        self.batch = toy.batch(sequences)
        self.truth = toy.value_and_gradient(sequences.cells.shape[1])[1]
        advantages = toy.batch(plain).advantages.numpy()
        self.plain = toy.gradients(plain.cells, np.broadcast_to(advantages[:, None], plain.cells.shape))
        self.plain_variance = plain.probability @ ((self.plain - self.truth) ** 2).sum(1)

    def run(self, correction: Correction) -> PerResponse:
        """In steps of `STEP` responses if they are a sample, else all at once."""
        cells, size = self.sequences.cells, STEP if self.sequences.is_sample else len(self.sequences.cells)
        return joined(self._step(correction, slice(i, i + size)) for i in range(0, len(cells), size))

    def _step(self, correction: Correction, rows: slice) -> PerResponse:
        whole = self.batch
        part = PolicyBatch(*(values[rows] for values in (whole.logp, whole.mu_logp, whole.advantages, whole.mask,
                                                         whole.old_logp)))  # fmt: skip
        effect = correction.effect(part)
        gradient = self.toy.gradients(self.sequences.cells[rows], effect.slopes.numpy())
        return PerResponse.of(effect, part.mask, gradient)

    def point(self, correction: Correction) -> dict[str, float]:
        """What is left, and relative to the norm of the true gradient the bias of the estimator's expectation; its
        angle, in degrees; its variance over that without mismatch. ``_error`` is a standard error, 0 if enumerated.

        What leaves the denominators is a mean over the tokens kept, taken as in a step of many responses. From a sample
        the squared bias is less its own noise's expectation, after regression on the gradient without mismatch from the
        same random numbers, whose expectation is known. None where nothing is kept, or where unlimited weights leave
        less than `FEWEST` of the sampled responses, so that it says nothing of the others.
        """
        made, q, n = self.run(correction), self.sequences.probability, len(self.sequences.cells)
        shares = what_is_left(made, q, self.sequences.is_sample)
        counted = made.kept if correction.leaves_denominators else np.ones_like(q)
        total = q @ counted
        unresolved = self.sequences.is_sample and correction.is_unlimited and shares["left"] * n < FEWEST
        if not total or unresolved:
            return shares | dict.fromkeys(("bias", "bias_error", "angle", "angle_error", "variance", "variance_error"))
        mean = q @ made.gradient / total
        influence = (made.gradient - counted[:, None] * mean) / total
        squares = (influence**2).sum(1)
        norm, bias, covariance = np.linalg.norm(self.truth), mean - self.truth, np.zeros((len(mean), len(mean)))
        if self.sequences.is_sample:
            spread = self.plain - self.truth
            slope = (q @ (influence * spread).sum(1)) / self.plain_variance
            bias = bias - slope * (q @ spread)
            influence = influence - slope * (spread - q @ spread)
            covariance = (q[:, None] * influence).T @ influence / n / norm**2
        bias, along = bias / norm, self.truth / norm
        across = np.eye(len(mean)) - np.outer(along, along)
        size, size_error = length_of(bias, covariance)
        side, side_error = length_of(across @ bias, across @ covariance @ across)
        angle, widest = (np.degrees(np.arctan2(x, 1 + along @ bias)) for x in (side, side + side_error))
        return shares | {
            "bias": size, "bias_error": size_error, "angle": angle, "angle_error": widest - angle,
            "variance": q @ squares / self.plain_variance,
            "variance_error": self.sequences.is_sample * squares.std() / n**0.5 / self.plain_variance,
        }  # fmt: skip


def length_of(vector: np.ndarray, covariance: np.ndarray) -> tuple[float, float]:
    """The norm of a vector known up to noise of a covariance, without what the noise adds, and its standard error."""
    square = max(vector @ vector - np.trace(covariance), 0.0)
    spread = (4 * vector @ covariance @ vector + 2 * np.trace(covariance @ covariance)) ** 0.5
    return square**0.5, (square + spread) ** 0.5 - square**0.5
