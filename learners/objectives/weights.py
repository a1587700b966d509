"""Importance weights, and the ways to limit them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from learners.objectives.batch import Statistics

if TYPE_CHECKING:
    from torch import Tensor


def importance_weight(
    level: str,
    log_weight: Tensor,
    log_weight_clamp: float,
    tis_cap: float | None = None,
    mis_cap: float | None = None,
    icepop_low: float | None = None,
    icepop_high: float | None = None,
) -> tuple[Tensor, Statistics]:
    """exp(log_weight), limited in up to four ways; detached if ``log_weight`` is.

    Args:
        level: "token" or "sequence".
        log_weight: (B, T) of tokens, or (B, 1) of sequences.
        log_weight_clamp: keeps the logarithm within +- this; 0 is off.
        tis_cap: truncates, min(w, C).
        mis_cap: masks, w where w <= C and 0 elsewhere.
        icepop_low, icepop_high: mask, w where it was within these before it was clamped, and 0 elsewhere.

    Returns:
        The weight to use, and statistics of the weight as it was before all that.
    """
    weight = log_weight.exp()
    statistics = {f"{level}_weight": weight}
    used = log_weight.clamp(-log_weight_clamp, log_weight_clamp).exp() if log_weight_clamp else weight
    if tis_cap is not None:
        statistics["truncated_fraction"] = (weight > tis_cap).double()
        used = used.clamp(max=tis_cap)
    if mis_cap is not None:
        statistics["masked_fraction"] = (weight > mis_cap).double()
        used = used.where(used <= mis_cap, used.new_zeros(()))
    if icepop_low is not None:
        inside = (weight >= icepop_low) & (weight <= icepop_high)
        statistics["masked_fraction"] = (~inside).double()
        used = used.where(inside, used.new_zeros(()))
    return used, statistics


LIMITS = ("log_weight_clamp", "tis_cap", "mis_cap", "icepop_low", "icepop_high")


def limits_of(thresholds: dict[str, float]) -> dict[str, float]:
    """Those of an objective's thresholds that `importance_weight` takes."""
    return {name: thresholds[name] for name in LIMITS if name in thresholds}
