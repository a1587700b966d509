"""The divergence from the initial model that ``--beta`` adds to any objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def reference_kl(logp: Tensor, reference_logp: Tensor, mask: Tensor) -> Tensor:
    """(B, T): the k3 estimate of KL(pi, reference) per token, e^d - 1 - d with d = log reference - log pi, carrying the
    gradient; d is kept within +-40, as in Oat. http://joschu.net/blog/kl-approx.html"""
    difference = reference_logp - logp
    difference = difference.where(mask, difference.new_zeros(())).clamp(-40.0, 40.0)
    return difference.expm1() - difference
