"""The policy losses, each a pure function of tensors, chosen by name.

Shapes: B responses, T token positions. pi is the trainer now, mu the sampler (its own log-probabilities, reported when
it sampled), pi_old the trainer re-evaluated at the rollout weights. Every importance weight is detached. A loss is
given per token, to be minimised; learners/aggregation.py reduces it.

An objective is registered with the thresholds it uses (each a command-line option of that name), whether it needs
pi_old, which costs one more forward pass, and whether a response without an advantage can have a gradient: where none
can, such responses are not trained on. Two families: policy gradients, ``-weight A log pi``, whose weight corrects
for mu; and PPO's clipped surrogate in pi / pi_old, times a weight pi_old / mu. A weight is truncated (TIS: min(w, C)),
or the token or response is masked (MIS: w if w <= C, else 0). Only tensor methods are used, so that naming the
objectives (for ``--help``) does not import torch.

Formulas: "Defeating the Training-Inference Mismatch via FP16" (arXiv 2510.26788) and the references beside each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Statistics = dict[str, "Tensor"]


@dataclass
class PolicyBatch:
    """What an objective sees: right-padded responses.

    Example: two responses of 2 and 1 tokens have ``mask = [[1, 1], [0, 1]]`` or any other layout; what is not in the
    mask is never read.
    """

    logp: Tensor
    """(B, T) FP32, log pi of the sampled tokens; carries the gradient"""
    mu_logp: Tensor
    """(B, T) FP32, log mu"""
    advantages: Tensor
    """(B,) FP32"""
    mask: Tensor
    """(B, T) bool, the response's tokens"""
    old_logp: Tensor | None = None
    """(B, T) FP32, log pi_old; None unless the objective needs it"""

    def inside(self, values: Tensor) -> Tensor:
        """(B, T): the values, 0 outside the mask, whatever stood there."""
        return values.where(self.mask, values.new_zeros(()))

    def log_ratio(self, numerator: Tensor, denominator: Tensor, level: str) -> Tensor:
        """The difference of two log-probabilities, detached: (B, T) of each "token", 0 outside the mask, or (B, 1)
        summed over each "sequence"."""
        difference = self.inside((numerator - denominator).detach())
        return difference.sum(1, keepdim=True) if level == "sequence" else difference

    @property
    def gain(self) -> Tensor:
        """(B, T): A log pi, what every policy gradient differentiates; 0 outside the mask."""
        return self.advantages[:, None] * self.inside(self.logp)

    @property
    def ratio(self) -> Tensor:
        """(B, T): pi / pi_old, carrying the gradient; 1 outside the mask."""
        return self.inside(self.logp - self.old_logp).exp()


@dataclass(frozen=True)
class Objective:
    """A registered loss: ``function(batch, **thresholds) -> (loss (B, T), statistics)``.

    A statistic is a (B, T) tensor, averaged over tokens, or a (B, 1) tensor, averaged over responses.
    """

    name: str
    function: Callable
    needs_pi_old: bool
    thresholds: dict[str, float]
    """names and default values"""
    trains_without_advantage: bool = False
    """whether a response whose advantage is 0 can have a gradient, through a term that does not carry it"""

    def __call__(self, batch: PolicyBatch, **thresholds: float) -> tuple[Tensor, Statistics]:
        assert set(thresholds) <= set(self.thresholds), (self.name, thresholds)
        return self.function(batch, **{**self.thresholds, **thresholds})


OBJECTIVES: dict[str, Objective] = {}


def objective(name: str, needs_pi_old: bool = False, trains_without_advantage: bool = False, **thresholds: float):
    """Register a loss under its command-line name, with the defaults of the thresholds it uses."""

    def register(function):
        OBJECTIVES[name] = Objective(name, function, needs_pi_old, thresholds, trains_without_advantage)
        return function

    return register


# ------------------------------------------------------------------------------------------------ importance weights


def share(flags: Tensor) -> Tensor:
    """A boolean tensor as one that can be averaged."""
    return flags.double()


def importance_weight(
    level: str,
    log_weight: Tensor,
    log_weight_clamp: float,
    tis_cap: float | None = None,
    mis_cap: float | None = None,
) -> tuple[Tensor, Statistics]:
    """exp(log_weight), limited in up to three ways; detached if ``log_weight`` is.

    Args:
        level: "token" or "sequence".
        log_weight: (B, T) of tokens, or (B, 1) of sequences.
        log_weight_clamp: keeps the logarithm within +- this; 0 is off.
        tis_cap: truncates, min(w, C).
        mis_cap: masks, w where w <= C and 0 elsewhere.

    Returns:
        The weight to use, and statistics of the weight as it was before all that.
    """
    weight = log_weight.exp()
    statistics = {f"{level}_weight": weight}
    used = log_weight.clamp(-log_weight_clamp, log_weight_clamp).exp() if log_weight_clamp else weight
    if tis_cap is not None:
        statistics["truncated_fraction"] = share(weight > tis_cap)
        used = used.clamp(max=tis_cap)
    if mis_cap is not None:
        statistics["masked_fraction"] = share(weight > mis_cap)
        used = used.where(used <= mis_cap, used.new_zeros(()))
    return used, statistics


# ------------------------------------------------------------------------------------------------ policy gradients


@objective("reinforce")
def reinforce(batch: PolicyBatch) -> tuple[Tensor, Statistics]:
    """-A log pi: as if mu were pi."""
    return -batch.gain, {}


def weighted_gain(batch: PolicyBatch, level: str, **limits: float) -> tuple[Tensor, Statistics]:
    """-w A log pi with w = pi / mu of the level."""
    log_weight = batch.log_ratio(batch.logp, batch.mu_logp, level)
    weight, statistics = importance_weight(level, log_weight, **limits)
    return -weight * batch.gain, statistics


@objective("pg-seq-is", log_weight_clamp=0.0)
def pg_seq_is(batch: PolicyBatch, **limits: float) -> tuple[Tensor, Statistics]:
    """-w A log pi with w = prod_t pi / mu: the unbiased policy gradient of pi from samples of mu."""
    return weighted_gain(batch, "sequence", **limits)


@objective("pg-seq-tis", tis_cap=3.0, log_weight_clamp=0.0)
def pg_seq_tis(batch: PolicyBatch, **limits: float) -> tuple[Tensor, Statistics]:
    """-min(w, C) A log pi, w of the sequence."""
    return weighted_gain(batch, "sequence", **limits)


@objective("pg-seq-mis", mis_cap=3.0, log_weight_clamp=0.0)
def pg_seq_mis(batch: PolicyBatch, **limits: float) -> tuple[Tensor, Statistics]:
    """-w 1{w <= C} A log pi, w of the sequence."""
    return weighted_gain(batch, "sequence", **limits)


@objective("pg-token-is", log_weight_clamp=0.0)
def pg_token_is(batch: PolicyBatch, **limits: float) -> tuple[Tensor, Statistics]:
    """-w_t A log pi with w_t = pi / mu of the token alone."""
    return weighted_gain(batch, "token", **limits)


@objective("pg-token-tis", tis_cap=2.0, log_weight_clamp=0.0)
def pg_token_tis(batch: PolicyBatch, **limits: float) -> tuple[Tensor, Statistics]:
    """-min(w_t, C) A log pi."""
    return weighted_gain(batch, "token", **limits)


# ------------------------------------------------------------------------------------------------ clipped surrogates


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float = 0.0
) -> tuple[Tensor, Statistics]:
    """The pessimistic of the surrogate -A r and its clipped form, per token, and where the clipped one was taken.

    Args:
        ratio: (B, T), carries the gradient.
        advantages: (B, 1).
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        dual_clip: where A < 0 the loss is at most -A dual_clip (arXiv 1912.09729); 0 leaves that out.
    """
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = plain.maximum(clipped)
    statistics = {"ratio": ratio.detach(), "clip_fraction": share(clipped > plain)}
    if dual_clip:
        bound = -advantages * dual_clip
        above = (advantages < 0) & (loss > bound)
        loss = bound.expand_as(loss).where(above, loss)
        statistics["dual_clip_fraction"] = share(above)
    return loss, statistics


SURROGATE = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 0.0}


@objective("grpo", needs_pi_old=True, **SURROGATE)
def grpo(batch: PolicyBatch, **clips: float) -> tuple[Tensor, Statistics]:
    """max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)) with r = pi / pi_old: PPO's clipped surrogate
    (arXiv 1707.06347), as GRPO uses it (arXiv 2402.03300)."""
    return clipped_surrogate(batch.ratio, batch.advantages[:, None], **clips)


def weighted_grpo(
    batch: PolicyBatch, level: str, clips: dict[str, float], **limits: float
) -> tuple[Tensor, Statistics]:
    """GRPO's loss times rho = pi_old / mu of the level."""
    loss, statistics = grpo(batch, **clips)
    log_weight = batch.log_ratio(batch.old_logp, batch.mu_logp, level)
    weight, weight_statistics = importance_weight(level, log_weight, **limits)
    return weight * loss, statistics | weight_statistics


@objective("grpo-token-tis", needs_pi_old=True, tis_cap=2.0, log_weight_clamp=0.0, **SURROGATE)
def grpo_token_tis(
    batch: PolicyBatch, tis_cap: float, log_weight_clamp: float, **clips: float
) -> tuple[Tensor, Statistics]:
    """GRPO's loss times min(rho_t, C) with rho_t = pi_old / mu of the token (Yao et al., 2025)."""
    return weighted_grpo(batch, "token", clips, tis_cap=tis_cap, log_weight_clamp=log_weight_clamp)


@objective("grpo-seq-tis", needs_pi_old=True, tis_cap=2.0, log_weight_clamp=0.0, **SURROGATE)
def grpo_seq_tis(
    batch: PolicyBatch, tis_cap: float, log_weight_clamp: float, **clips: float
) -> tuple[Tensor, Statistics]:
    """GRPO's loss times min(rho, C) with rho = prod_t pi_old / mu."""
    return weighted_grpo(batch, "sequence", clips, tis_cap=tis_cap, log_weight_clamp=log_weight_clamp)


@objective("grpo-seq-mis", needs_pi_old=True, mis_cap=10.0, log_weight_clamp=0.0, **SURROGATE)
def grpo_seq_mis(
    batch: PolicyBatch, mis_cap: float, log_weight_clamp: float, **clips: float
) -> tuple[Tensor, Statistics]:
    """GRPO's loss times rho 1{rho <= C} with rho = prod_t pi_old / mu ("When Speed Kills Stability", 2025)."""
    return weighted_grpo(batch, "sequence", clips, mis_cap=mis_cap, log_weight_clamp=log_weight_clamp)


@objective("icepop", needs_pi_old=True, icepop_low=0.5, icepop_high=5.0, log_weight_clamp=0.0, **SURROGATE)
def icepop(
    batch: PolicyBatch, icepop_low: float, icepop_high: float, log_weight_clamp: float, **clips: float
) -> tuple[Tensor, Statistics]:
    """GRPO's loss times rho_t where low <= rho_t <= high, and 0 elsewhere, with rho_t = pi_old / mu of the token
    (IcePop, Ling team, 2025)."""
    loss, statistics = weighted_grpo(batch, "token", clips, log_weight_clamp=log_weight_clamp)
    weight = statistics["token_weight"]
    dropped = (weight < icepop_low) | (weight > icepop_high)
    return loss.where(~dropped, loss.new_zeros(())), statistics | {"masked_fraction": share(dropped)}


@objective("gspo", needs_pi_old=True, clip_low=3e-4, clip_high=4e-4)
def gspo(batch: PolicyBatch, **clips: float) -> tuple[Tensor, Statistics]:
    """The clipped surrogate in the sequence's ratio s = exp(mean_t(log pi - log pi_old)), which each token carries as
    sg(s) pi / sg(pi) (GSPO-token, arXiv 2507.18071)."""
    lengths = batch.mask.sum(1, keepdim=True)
    mean_log_ratio = batch.log_ratio(batch.logp, batch.old_logp, "sequence") / lengths.clamp(min=1)
    own = batch.inside(batch.logp - batch.logp.detach()).exp()  # 1, with the gradient of log pi
    return clipped_surrogate(mean_log_ratio.exp() * own, batch.advantages[:, None], **clips)


@objective("cispo", needs_pi_old=True, clip_low=1.0, clip_high=4.0)
def cispo(batch: PolicyBatch, clip_low: float, clip_high: float) -> tuple[Tensor, Statistics]:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi with r = pi / pi_old: the weight is clipped and no token is
    dropped (MiniMax-M1, arXiv 2506.13585; the upper end at 5 as in ScaleRL, arXiv 2510.13786; none below)."""
    ratio = batch.ratio.detach()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -weight * batch.gain, {"ratio": ratio, "clip_fraction": share(weight != ratio)}


# ------------------------------------------------------------------------------------------------ trust regions


def masked_surrogate(batch: PolicyBatch, divergence: Tensor, delta: float) -> tuple[Tensor, Statistics]:
    """-A r with r = pi / mu, without the tokens whose probability is more than ``delta`` away from mu's already and
    which the update would push further: up (A > 0, r > 1), or down (A < 0, r < 1). arXiv 2602.04879.

    Args:
        divergence: (B, T), detached.
        delta: radius of the trust region.
    """
    advantages = batch.advantages[:, None]
    ratio = batch.inside(batch.logp - batch.mu_logp).exp()
    pushed_away = ((advantages > 0) & (ratio > 1)) | ((advantages < 0) & (ratio < 1))
    dropped = pushed_away & (divergence > delta)
    loss = (-advantages * ratio).where(~dropped, ratio.new_zeros(()))
    return loss, {"ratio": ratio.detach(), "masked_fraction": share(dropped)}


@objective("dppo-tv", dppo_delta=0.15)
def dppo_tv(batch: PolicyBatch, dppo_delta: float) -> tuple[Tensor, Statistics]:
    """DPPO with the total variation between "this token or another" under mu and under pi: |pi - mu|."""
    pi, mu = batch.inside(batch.logp.detach()).exp(), batch.inside(batch.mu_logp).exp()
    return masked_surrogate(batch, (pi - mu).abs(), dppo_delta)


@objective("dppo-kl", dppo_delta=0.05)
def dppo_kl(batch: PolicyBatch, dppo_delta: float) -> tuple[Tensor, Statistics]:
    """DPPO with the KL divergence between "this token or another" under mu and under pi:
    mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi))."""
    log_pi, log_mu = batch.inside(batch.logp.detach()), batch.inside(batch.mu_logp)
    mu_others, pi_others = (-log.expm1().clamp(max=-1e-12) for log in (log_mu, log_pi))  # 1 - p, exact near p = 1
    divergence = log_mu.exp() * (log_mu - log_pi) + mu_others * (mu_others.log() - pi_others.log())
    return masked_surrogate(batch, divergence, dppo_delta)


# ------------------------------------------------------------------------------------------------ what comes on top


def reference_kl(logp: Tensor, reference_logp: Tensor, mask: Tensor) -> Tensor:
    """(B, T): the k3 estimate of KL(pi, reference) per token, e^d - 1 - d with d = log reference - log pi, carrying the
    gradient; d is kept within +-40, as in Oat. http://joschu.net/blog/kl-approx.html"""
    difference = reference_logp - logp
    difference = difference.where(mask, difference.new_zeros(())).clamp(-40.0, 40.0)
    return difference.expm1() - difference


# ------------------------------------------------------------------------------------------------ authors' constants

# The authors' two frameworks differ in these; `oat` is what each objective was registered with above. Source: their
# code as of October 2025 (sail-sg/Precision-RL). What an objective has no use for is left out.
RECIPES: dict[str, dict[str, float]] = {
    "oat": {},
    "verl": {"clip_high": 0.28, "tis_cap": 3.0, "mis_cap": 3.0, "log_weight_clamp": 20.0},
}
OWN_CLIPS = ("gspo", "cispo")  # their clipping is of another size, the same in both

THRESHOLDS = sorted({threshold for made in OBJECTIVES.values() for threshold in made.thresholds})


def defaults(name: str, recipe: str) -> dict[str, float | str]:
    """What an objective's options default to under a recipe: its thresholds, the advantage and the aggregation.

    Both frameworks of the authors use Dr.GRPO's advantage and normalisation throughout; GSPO averages over each
    response's tokens, and divides the advantage by the group's spread in Oat.
    """
    chosen = dict(OBJECTIVES[name].thresholds)
    for threshold, value in RECIPES[recipe].items():
        if threshold in chosen and not (threshold == "clip_high" and name in OWN_CLIPS):
            chosen[threshold] = value
    gspo = name == "gspo"
    return chosen | {
        "advantage": "group-std" if gspo and recipe == "oat" else "group-mean",
        "aggregation": "token-mean-sequence" if gspo else "token-sum-constant",
    }
