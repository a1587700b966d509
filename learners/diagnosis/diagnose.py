"""From a dump to its diagnosis."""

import math
from collections.abc import Iterable

import numpy as np

from learners.diagnosis import of_contexts, of_distributions, of_numbers, of_weights
from learners.diagnosis.case import LEVELS, Case
from learners.diagnosis.dump import Dump
from learners.diagnosis.evidence import gather
from learners.diagnosis.findings import Diagnosis
from learners.diagnosis.horizon import horizon_of, kish_share
from learners.diagnosis.rules import EXPLAIN_THE_GAP, RULES
from learners.diagnosis.sample import draw
from learners.diagnosis.totals import Totals, add_up

ORDER = (of_numbers, of_distributions, of_contexts, of_weights)  # importing them registered their rules
LISTED = 8  # responses and tokens
FEW_TOKENS = 100
REACH = 10_000  # responses that the horizon is taken from


def diagnose(dump: Dump) -> Diagnosis:
    """What is wrong with a dump's log-probabilities, if anything.

    A dump may hold no token of which both are finite; then that is found.
    """
    case = examine(dump)
    totals, numbers, notes = case.totals, case.numbers, of_weights.notes(case)
    if numbers["tokens"] < FEW_TOKENS:
        notes.insert(0, f"{numbers['tokens']:.0f} tokens are too few to tell causes apart; give {FEW_TOKENS} or more.")
    if case.found & {"shifted", "not-finite", "not-log-probabilities"}:  # then the gap is not one of two policies
        return Diagnosis(case.findings, "", numbers, notes, {}, worst(dump, totals))
    level = LEVELS.get(case.level, "")
    return Diagnosis(case.findings, level, numbers, notes, reach(case), worst(dump, totals))


def examine(dump: Dump, earlier: Iterable[tuple[int, float]] = ()) -> Case:
    """The statistics and the findings.

    Args:
        dump: as above.
        earlier: `Case.levels` of the steps before those of the dump.
    """
    totals, sample = add_up(dump.starts, dump.log_mu, dump.log_pi), draw(dump)
    numbers = {f"step_{step}": level for step, level in earlier} | gather(dump, totals, sample)
    numbers["gap_largest"] = float(totals.worst_tokens[0][0]) if totals.worst_tokens else 0.0
    case = Case(numbers, dump.claims, totals, sample, list(dump.problems), dump.unequal)
    explained = False
    for rule in sorted(RULES, key=lambda made: [m.__name__ for m in ORDER].index(made.__module__)):
        explains = rule in EXPLAIN_THE_GAP
        finding = None if explained and explains else rule(case)
        if finding is not None:
            case.findings.append(finding)
            explained |= explains
    return case


def reach(case: Case) -> dict:
    """How long responses may be: ``half``, the length at which weights of whole responses leave half of the effective
    sample, an `Interval`; ``mean_length``, and the shares that weights of these responses leave, ``sequence_left`` and,
    of geometric ones, ``geometric_left``. Empty of fewer than two responses."""
    counted = case.totals.tokens > 0
    lengths, gap = case.totals.tokens[counted], case.totals.gap[counted]
    if len(gap) < 2:
        return {}
    starts = np.flatnonzero(np.diff(case.sample.row, prepend=-1))
    end = starts[REACH] if len(starts) > REACH else len(case.sample)
    half = horizon_of(case.sample.x[:end], case.sample.y[:end], starts[:REACH], lengths=(), replicates=200).half
    once = np.ones((1, len(gap)))
    left = {
        "sequence_left": float(kish_share(gap, once)[0]),
        "geometric_left": float(kish_share(gap / lengths, once)[0]),
    }
    return {"half": half, "mean_length": float(lengths.mean())} | left


def worst(dump, totals: Totals) -> dict:
    """The responses and tokens that make up most of the squared gap."""
    squares, total = totals.gap_squared, max(float(totals.gap_squared.sum()), 1e-300)
    most = np.argsort(squares)[::-1][:LISTED]
    responses = [
        {
            "response": int(i), "tokens": int(totals.tokens[i]), "share": float(squares[i] / total),
            "log_ratio": float(totals.gap[i]),
        }
        for i in most if squares[i] > 0
    ]  # fmt: skip
    tokens = []
    for size, index in totals.worst_tokens[:LISTED]:
        row = int(np.searchsorted(dump.starts, index, side="right")) - 1
        if size > 0:
            tokens.append(
                {
                    "response": row, "place": int(index - dump.starts[row]), "id": int(dump.response_ids[index]),
                    "log_mu": _plain(dump.log_mu[index]), "log_pi": _plain(dump.log_pi[index]),
                    "share": size**2 / total,
                }
            )  # fmt: skip
    return {"responses": responses, "tokens": tokens}


def _plain(value) -> float | None:
    return float(value) if math.isfinite(value) else None
