"""How far the sampler's probabilities mu are from the trainer's pi, on the tokens that were sampled.

Both engines hold the same weights, so with exact arithmetic every number here would be 0.
"""

import torch
from torch import Tensor

from learners.tally import Tally


def measure(tally: Tally, logp: Tensor, mu_logp: Tensor, mask: Tensor) -> None:
    """Add a batch to the mismatch statistics of a step, in FP64 from unclamped FP32 log-probabilities.

    ``abs_prob_diff_mean`` and ``_max``: of |pi - mu| over the tokens. ``kl_k1``: mean of log mu - log pi, the plain
    estimate of KL[mu|pi] per token. ``kl_k3``: mean of r - 1 - log r with r = pi / mu, its non-negative estimate of
    lower variance (http://joschu.net/blog/kl-approx.html).

    Args:
        tally: what it is added to, under names that begin with ``mismatch/``.
        logp: (B, T) FP32, log pi at the weights that mu sampled with; no gradient is kept.
        mu_logp: (B, T) FP32, log mu as the sampler reported it.
        mask: (B, T) bool, response tokens.
    """
    log_pi, log_mu = logp.detach()[mask].double(), mu_logp[mask].double()
    log_ratio = log_pi - log_mu
    difference = (log_pi.exp() - log_mu.exp()).abs()
    tally.add("mismatch/abs_prob_diff_mean", difference)
    tally.maximum("mismatch/abs_prob_diff_max", difference.max().item() if difference.numel() else 0.0)
    tally.add("mismatch/kl_k1", -log_ratio)
    tally.add("mismatch/kl_k3", torch.expm1(log_ratio) - log_ratio)
