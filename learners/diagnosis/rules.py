"""The causes, one function each, from the most particular to the most general: `diagnose` asks them in this order."""

import math
from collections.abc import Callable

from learners.diagnosis.case import LEVELS, LIMITS, Case
from learners.diagnosis.findings import Finding

Rule = Callable[[Case], Finding | None]
RULES: list[Rule] = []
EXPLAINS_THE_GAP = set()
"""names of the causes beside which the more general ones say nothing new"""


def rule(explains_the_gap: bool = False) -> Callable[[Rule], Rule]:
    def add(made: Rule) -> Rule:
        RULES.append(made)
        if explains_the_gap:
            EXPLAINS_THE_GAP.add(made.__name__.replace("_", "-"))
        return made

    return add


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


# ------------------------------------------------------------------------------------------------ the numbers as such


@rule()
def not_finite(case: Case) -> Finding | None:
    found = case.totals.not_finite
    if not found:
        return None
    named = ", ".join(f"{count:,} of {name}" for name, count in found.items())
    if any(name.startswith("log_pi -inf") for name in found):
        advice = (
            "The trainer gives tokens that were sampled no probability: it filters (top-p, top-k), or its logits "
            "overflow; take the filter out of the trainer's log-probabilities."
        )
    else:
        advice = (
            "Look at the first of them: an overflow of a half-precision engine (run scripts/check_range.py), a token "
            "without a log-probability, or padding that was not cut off."
        )
    return Finding(
        "not-finite", "log-probabilities that are no numbers", 1.0,
        f"{named} among {case.get('tokens'):,.0f} tokens.", advice,
    )  # fmt: skip


@rule(explains_the_gap=True)
def not_log_probabilities(case: Case) -> Finding | None:
    above, tokens = case.totals.above_zero, case.get("tokens")
    sides = [side for side, count in above.items() if count > max(2, 0.01 * tokens)]
    if not sides:
        return None
    counted = " and ".join(f"{share(above[side], tokens):.0%} of {side}" for side in sides)
    return Finding(
        "not-log-probabilities", f"{' and '.join(sides)} cannot be log-probabilities", 1.0,
        f"{counted} are above 0.",
        "Write log p: not p, not -log p (a loss), not a logit.",
    )  # fmt: skip


@rule()
def unequal_lengths(case: Case) -> Finding | None:
    told = [problem for problem in case.problems if "length" in problem]
    if not told:
        return None
    return Finding(
        "unequal-lengths", "rows whose columns have unequal lengths", 0.98, told[0].rstrip(".") + ".",
        "Write one log-probability of either engine for each token of response_ids: one side counts a token more, such "
        "as the end-of-sequence token, or the prompt's last.",
    )  # fmt: skip


@rule(explains_the_gap=True)
def shifted(case: Case) -> Finding | None:
    if not case.has("lag_best"):
        return None
    here, there = case.get("lag_0_distance"), case.get("lag_best_distance")
    gain = case.get("lag_best_correlation") - case.get("correlation")
    if here < 0.1 or there > 0.35 * here or gain < 0.2:
        return None
    lag = int(case.get("lag_best"))
    return Finding(
        "shifted", f"log-probabilities shifted by {abs(lag)} token{'s' * (abs(lag) > 1)}",
        min(0.99, 0.7 + 0.3 * (1 - there / here)),
        f"log mu of a token is correlated {case.get('lag_best_correlation'):.3f} with log pi of the token "
        f"{abs(lag)} {'later' if lag > 0 else 'earlier'}, and {case.get('correlation'):.3f} with log pi of the same.",
        "The logits at place t - 1 give the probability of the token at t: cut labels and logits by one against each "
        "other, once, on the side that does it twice or not at all.",
    )  # fmt: skip


@rule()
def rounded(case: Case) -> Finding | None:
    sides, worst, forms = [], 0.0, []
    for side in ("mu", "pi"):
        bits, step = case.get(f"bits_{side}"), case.get(f"step_{side}")
        if not step:
            continue
        coarse = step >= 1e-3 if not bits else True
        if coarse or step > 0.5 * case.get("g_rms"):
            sides.append(f"log_{side}")
            forms.append({8.0: "BF16's 8 bits", 11.0: "FP16's 11 bits"}.get(bits, f"multiples of {step:g}"))
            worst = max(worst, step)
    if not sides:
        return None
    return Finding(
        "rounded", f"{' and '.join(sides)} lie on a grid", 0.97,
        f"99% of the values of {' and '.join(sides)} are {' and '.join(dict.fromkeys(forms))}: about {worst:.1g} apart, "
        f"where the gap is {case.get('g_rms'):.1g}.",
        "Compute log-softmax in FP32 and keep its values in FP32: neither .half() nor .bfloat16() nor round().",
    )  # fmt: skip


@rule()
def clamped(case: Case) -> Finding | None:
    for side in ("mu", "pi"):
        spread = max(0.3, 10 * min(case.get("d_90"), 0.3))
        if case.get(f"clamp_{side}") >= 3 and case.get(f"clamp_{side}_spread") > spread:
            return Finding(
                "clamped", f"log_{side} is cut off below", 0.95,
                f"{case.get(f'clamp_{side}'):.0f} tokens of the sample have exactly {case.get(f'clamp_{side}_at'):.4g}, "
                f"the lowest value, where the other side's spread over {case.get(f'clamp_{side}_spread'):.2g} nats.",
                "Take the clamp out: it hides the tokens that the two engines differ by most on.",
            )  # fmt: skip
        ceiling = case.get(f"ceiling_{side}_at")
        if ceiling < -1e-5 and case.get(f"ceiling_{side}") > max(3, 0.02 * case.get("open")):
            return Finding(
                "clamped", f"log_{side} is cut off above", 0.9,
                f"{case.get(f'ceiling_{side}'):.0f} tokens of the sample have exactly {ceiling:.3g}, the highest value.",
                "Take the clamp out of the probabilities before their logarithm.",
            )  # fmt: skip
    return None


@rule(explains_the_gap=True)
def special_token(case: Case) -> Finding | None:
    for where in ("last", "first"):
        if not case.has(f"{where}_far"):
            continue
        far, others = case.get(f"{where}_far"), case.get(f"others_far_{where}")
        alone = case.get(f"{where}_rms") > 30 * case.get(f"others_rms_{where}")
        large = far >= 0.2 and others <= 0.02 * far
        if where == "last" and not (large or alone):
            for side, other in (("pi", "mu"), ("mu", "pi")):
                none_left = case.get(f"last_zero_{side}") >= 0.9 and case.get(f"last_zero_{other}") < 0.8
                alone = alone or (none_left and case.get("last_rms") > 5 * case.get("others_rms_last"))
        if where == "first" and not (large and alone):
            continue
        if large or alone:
            return Finding(
                "special-token", f"the {where} token of a response counts on one side only",
                0.95 if large and alone else 0.85,
                f"at the {where} token the gap is {case.get(f'{where}_rms'):.2g} (root mean square), at the others "
                f"{case.get(f'others_rms_{where}'):.2g}; {far:.0%} of the {where} tokens are off by more than 1 nat.",
                "Let both sides score the same ids, end-of-sequence token included: do not append, replace or mask it on "
                "one side.",
            )  # fmt: skip
    if case.get("id_share") > 0.8 and case.get("id_count") >= 4 and case.get("id_others_rms") < 0.05 * case.get("id_rms"):
        return Finding(
            "special-token", f"token {case.get('id'):.0f} counts on one side only", 0.9,
            f"token id {case.get('id'):.0f}, {case.get('id_count'):.0f} of the sample's tokens, makes up "
            f"{case.get('id_share'):.0%} of the squared gap.",
            "Look at how that token is masked, inserted or replaced on one side.",
        )  # fmt: skip
    return None


# ------------------------------------------------------------------------------------------------ the distributions


@rule(explains_the_gap=True)
def filtered(case: Case) -> Finding | None:
    """One side's probabilities are renormalised over fewer tokens."""
    if not case.has("shift_z", "sampled_from"):
        return None
    for side, sign, forced in (("mu", -1, "forced_mu"), ("pi", 1, "forced_pi")):
        shift = sign * case.get("shift_z")
        against = -case.get("sampled_from") * -sign  # k1 in units of k3, positive towards this side
        excess = (against - 1) / max(case.get("sampled_from_error"), 1e-9)
        same_odds = case.has("pair_slope") and abs(case.get("pair_slope") - 1) < max(
            0.015, 5 * case.get("pair_slope_error")
        ) and case.get("pair_residual") < 0.5 * case.get("g_rms") + 0.1  # fmt: skip
        one_way = case.get("likely_up", 0.0) if side == "mu" else 1 - case.get("likely_up", 1.0)
        tails = case.get("g_95") if side == "mu" else -case.get("g_05")
        body = -case.get("g_05") if side == "mu" else case.get("g_95")
        marks = [shift > 6, excess > 4 and against > 1.5, case.get(forced) >= 3, one_way < 0.12,
                 body > 2.5 * tails, same_odds]  # fmt: skip
        if marks[0] and (marks[1] or marks[2]) and sum(marks) >= 4 and not _is_constant(case):
            least = case.get("g_smallest") if side == "mu" else -case.get("g_largest")
            mass = math.exp(max(least, -50.0))
            return Finding(
                "filtered", f"log_{side} is of a filtered distribution (top-p, top-k or min-p)",
                min(0.98, 0.55 + 0.09 * sum(marks)),
                f"log pi - log mu is {'below' if side == 'mu' else 'above'} 0 on average by {abs(case.get('shift')):.2g} "
                f"({shift:.0f} standard errors), its 5% and 95% quantiles are {case.get('g_05'):.2g} and "
                f"{case.get('g_95'):.2g}: as if the tokens kept had had {mass:.0%} of the mass at least, and up to all.",
                "Sample with top_p=1, top_k=-1 and min_p=0, or let the other side apply the same filter; the ratio "
                "pi/mu is otherwise off by the mass that was cut." if side == "mu" else
                "Take the filter out of the trainer's log-probabilities, or report the sampler's after its filter "
                "(vLLM: logprobs_mode=processed_logprobs).",
            )  # fmt: skip
    return None


def _is_constant(case: Case) -> bool:
    """Whether the gap is one number, at certain tokens too."""
    offset, shift = case.get("offset_certain", 0.0), case.get("shift")
    return abs(offset) > 0.5 * abs(2 * shift) and abs(shift) > 0


def _ratio(case: Case) -> tuple[float, float]:
    """(temperature of mu over that of pi, how sure that it is a temperature), 1 and 0 if none is seen."""
    slope, error = case.get("pair_slope", 1.0), case.get("pair_slope_error")
    pairs = case.get("pairs")
    if case.has("pair_residual") and pairs >= 4:
        moved = abs(slope - 1) * case.get("pair_size")
        if abs(slope - 1) > max(0.01, 6 * error) and 0.1 < slope < 10 and case.get("pair_residual") < 0.2 * moved:
            return slope, min(0.98, 0.8 + 0.03 * pairs)
        if moved < 3 * case.get("pair_residual") or abs(slope - 1) < 0.01:
            return 1.0, 0.0
    if not case.has("likely_up"):
        return 1.0, 0.0
    up, down = case.get("likely_up"), case.get("unlikely_up", -1.0)
    squared = case.get("likely_up_squared")
    slope, explained = case.get("odds_slope"), case.get("odds_explained")
    sharper = up > 0.9 and squared > 0.97
    flatter = up < 0.1 and squared < 0.03
    opposite = down < 0 or (down < 0.12 if sharper else down > 0.88)
    enough = case.get("likely") >= 16 and abs(slope) > 4 * case.get("odds_slope_error")
    if (sharper or flatter) and opposite and enough and explained > 0.75 and (slope > 0) == sharper:
        return 1 + slope, min(0.95, 0.5 + 0.5 * explained * (0.8 if down < 0 else 1.0))
    return 1.0, 0.0


@rule(explains_the_gap=True)
def raw(case: Case) -> Finding | None:
    """mu is not what was sampled from, but what the model said before temperature or filter."""
    ratio, sure = _ratio(case)
    error, drawn = case.get("sampled_from_error"), case.get("sampled_from", -1.0)
    claimed = case.claims.get("temperature")
    if sure:
        from_pi = drawn > 0.25 and error < 0.35
        as_claimed = claimed is not None and abs(claimed - 1) > 0.02 and abs(math.log(ratio * claimed)) < 0.06
        on_grid = case.seen("mu") is not None and case.seen("pi") is None and drawn > -0.5 + error
        if from_pi or as_claimed or (on_grid and error < 0.7 and drawn > 0):
            told = f", as claimed ({claimed:g})" if as_claimed else ""
            return Finding(
                "raw-log-probs", "log_mu is raw: it is of the model's own logits, not of what was sampled from",
                max(sure - 0.05, 0.6),
                f"mu's logits are pi's times {1 / ratio:.3g}, a temperature of {1 / ratio:.3g} on pi alone{told}, and the "
                f"tokens are drawn from {'pi' if drawn > 0 else 'mu'} (statistic {drawn:+.2f} ± {error:.2f}; -1 is mu, "
                "+1 is pi).",
                "Report the sampler's log-probabilities after temperature and filters (vLLM: "
                "logprobs_mode=processed_logprobs).",
            )  # fmt: skip
    filters = [
        f"{name} {case.claims[name]:g}" for name, off in (("top_p", 1.0), ("min_p", 0.0))
        if case.claims.get(name) not in (None, off)
    ] + ([f"top_k {case.claims['top_k']:g}"] if (case.claims.get("top_k") or 0) > 0 else [])  # fmt: skip
    if filters and "filtered" not in case.found and not case.is_beyond_rounding and case.get("tokens") >= 64:
        if case.get("exact_one_mu") <= case.get("exact_one_pi") + 0.02:
            return Finding(
                "raw-log-probs", "log_mu is raw: it does not know of the filter", 0.8,
                f"{' and '.join(filters)} is claimed, and log mu agrees with an unfiltered log pi to "
                f"{case.get('g_rms'):.1g}.",
                "Report the sampler's log-probabilities after its filter (vLLM: logprobs_mode=processed_logprobs), or "
                "sample without one: tokens are not drawn from this mu.",
            )  # fmt: skip
    return None


@rule(explains_the_gap=True)
def temperature(case: Case) -> Finding | None:
    ratio, sure = _ratio(case)
    if not sure or "raw-log-probs" in case.found:
        return None
    claimed = case.claims.get("temperature")
    side = ""
    if case.seen("mu") is not None and case.seen("pi") is None:
        side = f"; mu's logits are the model's own, so pi is at {1 / ratio:.3g}"
    elif case.seen("pi") is not None and case.seen("mu") is None:
        side = f"; pi's logits are the model's own, so mu is at {ratio:.3g}"
    told = f" ({claimed:g} is claimed)" if claimed is not None else ""
    way = "sharper" if ratio > 1 else "flatter"
    return Finding(
        "temperature", "another temperature on one side", sure,
        f"pi is {way} than mu as at temperatures with mu's / pi's = {ratio:.3g}{told}: {case.get('likely_up', 0):.0%} of the "
        f"likely tokens and {case.get('unlikely_up', 0):.0%} of the unlikely ones are likelier by pi{side}.",
        "Divide both sides' logits by the same temperature: the trainer's before its log-softmax, the sampler's with "
        "processed log-probabilities.",
    )  # fmt: skip


@rule(explains_the_gap=True)
def not_deterministic(case: Case) -> Finding | None:
    repeats, moved = case.get("repeats"), case.get("repeats_moved_pi")
    pi, mu, gap = case.get("repeat_pi"), case.get("repeat_mu"), case.get("repeat_gap")
    limit = LIMITS[case.expected][1]
    if case.has("again_50"):
        again, own = case.get("again_90"), case.get("d_90")
        if again > 0.4 * own and case.is_beyond_rounding:
            return Finding(
                "not-deterministic", "the trainer is not deterministic (dropout?)", 0.97,
                f"its second pass over the same tokens moves log odds by {case.get('again_50'):.2g} (median; a tenth by more "
                f"than {again:.2g}), where the gap between the engines is {case.get('d_50'):.2g}.",
                "Put the model into eval() for log-probabilities and set every dropout of its configuration to 0.",
            )  # fmt: skip
    if repeats >= 8 and moved >= 4 and pi > 0.4 * gap and pi > 4 * mu and pi > min(0.05, limit):
        return Finding(
            "not-deterministic", "the trainer is not deterministic (dropout?)", 0.93,
            f"the same token after the same prompt and prefix has log pi that differ by {pi:.2g} (root mean square of "
            f"{repeats:.0f} pairs) and log mu that differ by {mu:.2g}; the gap is {gap:.2g}.",
            "Put the model into eval() for log-probabilities and set every dropout of its configuration to 0.",
        )  # fmt: skip
    moved = case.get("repeats_moved_mu")
    if repeats >= 8 and moved >= 4 and mu > 0.4 * gap and mu > 4 * pi and mu > min(0.05, limit):
        return Finding(
            "sampler-changed", "the sampler changed within the rollout", 0.85,
            f"the same token after the same prompt and prefix has log mu that differ by {mu:.2g} (root mean square of "
            f"{repeats:.0f} pairs) and log pi that differ by {pi:.2g}.",
            "Weights were loaded while responses were being sampled, or several engines hold different ones: finish the "
            "rollout before the update, or keep what was sampled with which weights.",
        )  # fmt: skip
    return None


# ------------------------------------------------------------------------------------------------ what the context is


@rule(explains_the_gap=True)
def few_responses(case: Case) -> Finding | None:
    if not case.is_beyond_rounding and case.get("row_largest") < 30:
        return None
    far = case.get("row_far")
    median = case.get("row_median")
    if 0 < far <= 0.35 and median <= LIMITS["bf16"][0] and case.get("row_few_share") > 0.8 and case.get("row_largest") > 20:
        return Finding(
            "few-responses", "a few responses make up the gap", 0.8,
            f"in {far:.0%} of the responses the gap is more than 8 times that of the median one, in the worst "
            f"{case.get('row_largest'):.0f} times; the worst tenth has {case.get('row_few_share'):.0%} of the squared gap.",
            "Look at the responses listed below: a row in another's place, a text that was tokenised anew, a sequence "
            "that was cut or sampled with other weights.",
        )  # fmt: skip
    return None
