"""The mismatch metrics of a set of responses, with bootstrap intervals, and the ratio of two dtypes.

The metrics themselves are the training run's, learners/record/mismatch.py. A response is the unit that is drawn again:
its tokens depend on each other, so that intervals which drew tokens would be far too narrow.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch

from learners.diagnosis.bootstrap import Interval, interval, resamples
from learners.record.mismatch import MOMENT, PREFIX, derive, measure
from learners.record.tally import Tally
from scripts.parts.responses import Response

AGREEMENT_IS_ONE = {"ppl_ratio", "ess_token", "ess_seq", "pearson"}  # the others are 0 where both engines agree
SEQUENCE_KL = ("seq_kl_k1", "seq_kl_k3")


class ResponseTallies:
    """The sums of every mismatch metric, response by response, from which any weighting of the responses is quick.

    Args:
        responses: scored ones.
    """

    def __init__(self, responses: Iterable[Response]):
        tallies = [tally_of(response) for response in responses]
        assert tallies, "no responses"
        first = tallies[0]
        self.names, self.extremes, self.negated = list(first.sums), list(first.maxima), first.negated
        self.sums = np.array([list(tally.sums.values()) for tally in tallies])  # (responses, names)
        self.counts = np.array([list(tally.counts.values()) for tally in tallies])
        self.maxima = np.array([list(tally.maxima.values()) for tally in tallies])

    def __len__(self) -> int:
        return len(self.sums)

    def metrics(self, times: np.ndarray | None = None) -> dict[str, float]:
        """The metrics of the responses, each counted as often as ``times`` says, shape (responses,); default once.

        Returns:
            The names of learners/record/mismatch.py without their prefix, and the KL divergence of whole responses
            estimated in two ways: k1, -mean(y), and k3, the token estimates summed over a response. By the chain rule
            both have the same expectation; k3 has by far the smaller variance.
        """
        times = np.ones(len(self)) if times is None else times
        tally = Tally()
        tally.negated = self.negated
        tally.sums = dict(zip(self.names, (times @ self.sums).tolist(), strict=True))
        tally.counts = dict(zip(self.names, (times @ self.counts).tolist(), strict=True))
        tally.maxima = dict(zip(self.extremes, self.maxima[times > 0].max(0).tolist(), strict=True))
        means = tally.result()
        metrics = {name.removeprefix(PREFIX): value for name, value in derive(means).items()}
        metrics["seq_kl_k1"] = -metrics["seq_log_ratio_mean"]
        metrics["seq_kl_k3"] = metrics["kl_k3"] * means[f"{MOMENT}length"]
        return metrics

    def replicates(self, count: int, seed: int) -> dict[str, np.ndarray]:
        """Every metric of ``count`` bootstrap samples of the responses: (count,) each."""
        made = [self.metrics(times) for times in resamples(len(self), count, seed)]
        return {name: np.array([metrics[name] for metrics in made]) for name in made[0]} if made else {}


def tally_of(response: Response) -> Tally:
    """What learners/record/mismatch.py makes of one response."""
    tally = Tally()
    log_pi, log_mu = (torch.tensor([values], dtype=torch.float32) for values in (response.log_pi, response.log_mu))
    measure(tally, log_pi, log_mu, torch.ones_like(log_mu, dtype=torch.bool))
    return tally


def departure(name: str, value):
    """How far a metric is from its value where both engines agree (0, or 1 for some)."""
    return value - 1 if name in AGREEMENT_IS_ONE else value


def ratio(name: str, over: Interval, over_replicates, under: Interval, under_replicates, confidence) -> Interval | None:
    """A metric's departure from agreement in one dtype over that in another; the two samples are independent.

    Returns:
        None where the lower one cannot be told from 0, so that a ratio would mean nothing.
    """
    bounds = departure(name, under.low), departure(name, under.high)
    if not (bounds[0] > 0 or bounds[1] < 0):
        return None
    replicates = departure(name, over_replicates) / departure(name, under_replicates)
    return interval(departure(name, over.estimate) / departure(name, under.estimate), replicates, confidence)


def slope_and_intercept(lengths: np.ndarray, log_ratios: np.ndarray) -> tuple[float, float]:
    """The least-squares line through sequence log-ratios over lengths; NaN where all lengths are the same."""
    if len(set(lengths.tolist())) < 2:
        return math.nan, math.nan
    slope, intercept = np.polyfit(lengths, log_ratios, 1)
    return float(slope), float(intercept)
