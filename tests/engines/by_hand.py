"""What the learner should make of an update's log-probabilities: objective, rejections, counts, in plain Python."""

import math
from types import SimpleNamespace

import torch

from tests.test_objectives import reference, weigh
from tests.test_rejections import RESPONSES, TOKENS

STAYS_COUNTED = set(RESPONSES) | set(TOKENS)  # all but m2po


def rejected_by(name: str, options: dict, pairs: dict, advantages: list[float]) -> set:
    """Which tokens, as (response, place), a rejection rejects; ``pairs`` has (pi, mu) of each."""
    rows = {row: [place for place in pairs if place[0] == row] for row, _ in pairs}
    if name in RESPONSES:
        keeps = lambda row: RESPONSES[name]([pairs[place] for place in rows[row]], advantages[row], options)
        return {place for row in rows if not keeps(row) for place in rows[row]}
    if name in TOKENS:
        return {place for place, (pi, mu) in pairs.items() if not TOKENS[name](pi, mu, options)}
    left = sorted(pairs, key=lambda place: math.log(pairs[place][0] / pairs[place][1]) ** 2)
    while left and sum(math.log(pairs[p][0] / pairs[p][1]) ** 2 for p in left) / len(left) > options["m2_cap"]:
        left.pop()
    return set(pairs) - set(left)


def slopes_by_hand(batch, logp: torch.Tensor, options: dict, max_length: int) -> torch.Tensor:
    """(B, L - 1) FP64: the derivative of the update's loss by each log pi, at the rollout weights.

    Args:
        batch: the update's responses.
        logp: (B, L - 1), log pi.
        options: the objective's, with their thresholds.
        max_length: of a response, tokens.
    """
    mask = batch.response_mask & batch.kept[:, None]
    places = [tuple(place) for place in mask.nonzero().tolist()]
    log_pi, log_mu = ({place: values[place].item() for place in places} for values in (logp, batch.mu_logp))
    pairs = {place: (math.exp(log_pi[place]), math.exp(log_mu[place])) for place in places}
    advantages = batch.advantages.tolist()
    gone = {name: rejected_by(name, options, pairs, advantages) for name in options["reject"]}
    counted = set(places).difference(*(gone[name] for name in gone if name not in STAYS_COUNTED))
    used = counted.difference(*gone.values())
    lengths = {row: sum(place[0] == row for place in counted) for row, _ in counted}

    name, weights = options["objective"], []
    th = SimpleNamespace(**{"log_weight_clamp": 0.0} | options)
    made = torch.zeros(mask.shape, dtype=torch.float64)
    for row in sorted({row for row, _ in places}):
        own = [place for place in places if place[0] == row]
        pi, mu = ([values[place] for place in own] for values in (log_pi, log_mu))
        _, slopes, _ = reference(name, pi, mu, pi, advantages[row], options)
        if options["is_batch_normalize"]:
            logs = [sum(pi) - sum(mu)] if "seq" in name else [p - m for p, m in zip(pi, mu, strict=True)]
            weights += [weigh(name, log, th)[0] for log in logs]
        for place, slope in zip(own, slopes, strict=True):
            if place in used:
                denominator = {
                    "token-sum-constant": len(batch) * max_length,
                    "token-mean-sequence": len(lengths) * lengths[row],
                    "token-mean-batch": len(counted),
                }[options["aggregation"]]
                made[place] = slope / denominator
    return made / (sum(weights) / len(weights) if weights else 1.0)
