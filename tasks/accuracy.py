"""The statistics of an evaluation: pure functions of which responses were right.

Throughout, ``correct`` is a (problems, n) array of 0 and 1 (or booleans): n responses to each problem.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Accuracy:
    """Example: ``Accuracy.of([[1, 0], [1, 1]], k=2)`` is 0.75 +- 0.25, pass@2 1.0."""

    mean: float
    """avg@n, from 0 to 1"""
    stderr: float | None
    """of the mean, clustered by problem; None where there is one problem"""
    pass_at_k: float
    k: int

    @classmethod
    def of(cls, correct, k: int) -> "Accuracy":
        correct = np.asarray(correct, dtype=float)
        return cls(float(np.mean(correct)), clustered_stderr(correct), pass_at_k(correct, k), k)


def clustered_stderr(correct) -> float | None:
    """Standard error of the share of right responses over a draw of problems, responses clustered by problem.

    The n responses to a problem are not independent observations of the benchmark, so they are summed before they are
    squared (E. Miller, "Adding Error Bars to Evals", arXiv 2411.00640, section 2.2), which for P problems of n
    responses each, with problem means m_p and their mean m, is sqrt(sum_p (m_p - m)^2) / P. As is usual for few
    clusters it is multiplied by sqrt(P / (P - 1)), which makes it the standard error of the mean of the m_p.

    Returns:
        The standard error, 0 to 1; None for a single problem, which says nothing of others.
    """
    means = np.asarray(correct, dtype=float).mean(axis=1)
    return float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None


def pass_at_k(correct, k: int) -> float:
    """Mean over problems of the chance that k of its n responses, drawn without replacement, hold a right one.

    1 - C(n - c, k) / C(n, k) with c right responses of n, the unbiased estimate of M. Chen et al., "Evaluating Large
    Language Models Trained on Code" (arXiv 2107.03374), as a product of ratios so that nothing overflows.

    Raises:
        ValueError: k is not between 1 and n.
    """
    correct = np.asarray(correct, dtype=float)
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; it must lie between 1 and the {n} responses to a problem")
    wrong = n - correct.sum(axis=1).round()
    drawn = np.arange(k)
    all_wrong = np.prod(np.clip(wrong[:, None] - drawn, 0, None) / (n - drawn), axis=1)
    return float(np.mean(1 - all_wrong))
