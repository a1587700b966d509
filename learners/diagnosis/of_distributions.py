"""Causes that make the two sides two distributions over the same context: filters and temperatures."""

import math

from learners.diagnosis.case import Case
from learners.diagnosis.findings import Finding
from learners.diagnosis.rules import rule


@rule(explains_the_gap=True)
def filtered(case: Case) -> Finding | None:
    """One side's probabilities are renormalised over fewer tokens."""
    get = case.get
    if not case.has("shift_z", "sampled_from"):
        return None
    for side, sign, forced in (("mu", -1, "forced_mu"), ("pi", 1, "forced_pi")):
        shift = sign * get("shift_z")
        against = -get("sampled_from") * -sign  # k1 in units of k3, positive towards this side
        excess = (against - 1) / max(get("sampled_from_error"), 1e-9)
        same_odds = case.has("pair_slope") and abs(get("pair_slope") - 1) < max(
            0.015, 5 * get("pair_slope_error")
        ) and get("pair_residual") < 0.5 * get("g_rms") + 0.1  # fmt: skip
        one_way = get("likely_up", 0.0) if side == "mu" else 1 - get("likely_up", 1.0)
        tails = get("g_95") if side == "mu" else -get("g_05")
        body = -get("g_05") if side == "mu" else get("g_95")
        marks = [shift > 6, excess > 4 and against > 1.5, get(forced) >= 3, one_way < 0.12,
                 body > 2.5 * tails, same_odds]  # fmt: skip
        one_sided = get("down_squared", 0.5) if side == "mu" else 1 - get("down_squared", 0.5)
        left_alone = get(forced) >= 3 and (same_odds or not case.has("pair_slope"))
        told = one_sided > 0.8 if left_alone else one_sided > 0.98 and get("far_tokens") >= 6
        gross = told and against > 1.5 and excess > 2
        many = marks[0] and against > 1.5 and (marks[1] or marks[2]) and sum(marks) >= 4
        if body > 1e-3 and (many or gross) and not _is_constant(case):
            least = get("g_smallest") if side == "mu" else -get("g_largest")
            mass = math.exp(min(max(least, -50.0), 0.0))
            return Finding(
                "filtered", f"log_{side} is of a filtered distribution (top-p, top-k or min-p)",
                min(0.98, 0.55 + 0.09 * sum(marks)),
                f"log pi - log mu is {'below' if side == 'mu' else 'above'} 0 on average by {abs(get('shift')):.2g} "
                f"({shift:.0f} standard errors), its 5% and 95% quantiles are {get('g_05'):.2g} and "
                f"{get('g_95'):.2g}: as if the tokens kept had had {mass:.0%} of the mass at least, and up to all.",
                "Sample with top_p=1, top_k=-1 and min_p=0, or let the other side apply the same filter; the ratio "
                "pi/mu is otherwise off by the mass that was cut." if side == "mu" else
                "Take the filter out of the trainer's log-probabilities, or report the sampler's after its filter "
                "(vLLM: logprobs_mode=processed_logprobs).",
            )  # fmt: skip
    return None


def _is_constant(case: Case) -> bool:
    """Whether the gap is one number, at certain tokens too."""
    get = case.get
    offset, shift = get("offset_certain", 0.0), get("shift")
    same = case.get("g_95") - case.get("g_05") < abs(shift) < 0.01  # nats: no filter takes so little everywhere
    return same or (abs(offset) > 0.5 * abs(2 * shift) and abs(shift) > 0)


def _ratio(case: Case) -> tuple[float, float]:
    """(temperature of mu over that of pi, how sure that it is a temperature), 1 and 0 if none is seen."""
    get = case.get
    slope, error = get("pair_slope", 1.0), get("pair_slope_error")
    pairs = get("pairs")
    if case.has("pair_residual"):
        moved = abs(slope - 1) * get("pair_size")
        residual = get("pair_residual")
        clear = (
            (residual < 0.5 * moved and pairs >= 8)
            or (residual < 0.2 * moved and pairs >= 4)
            or (residual < 0.03 * moved and get("line_up", float(slope > 1)) == (slope > 1))
        )
        if abs(slope - 1) > max(0.01 if pairs >= 32 else 0.03, 8 * error) and 0.1 < slope < 10 and clear:
            return slope, min(0.98, 0.8 + 0.03 * pairs)
        if pairs >= 4 and abs(slope - 1) + 3 * error < 0.03:
            return 1.0, 0.0  # of any two tokens the odds are the same: not a temperature, whatever the signs say
    slope, explained = get("odds_slope"), get("odds_explained")
    if not -0.75 < slope < 3 or abs(slope) <= 4 * get("odds_slope_error"):
        return 1.0, 0.0
    pairs_say = get("pair_slope", 1 + slope)
    if pairs_say < 0.1 or abs(pairs_say - (1 + slope)) > 0.5 * abs(slope) + 3 * get("pair_slope_error"):
        return 1.0, 0.0  # two tokens in one context know nothing of it
    if case.is_beyond_rounding and explained > 0.97 and get("line_up") == (slope > 0):
        return 1 + slope, 0.75
    if not case.has("likely_up"):
        return 1.0, 0.0
    up, down, squared = get("likely_up"), get("unlikely_up", -1.0), get("likely_up_squared")
    sharper = up > 0.9 and squared > 0.97
    flatter = up < 0.1 and squared < 0.03
    much = 0.4 if explained > 0.9 else 0.25  # tokens of these probabilities may be likely ones where all are unlikely
    opposite = down < 0 or (down < much if sharper else down > 1 - much)
    enough = get("likely") >= (16 if case.is_beyond_rounding or explained > 0.95 else 60)
    enough = enough and (case.is_beyond_rounding or abs(slope) > 0.05)
    if (sharper or flatter) and opposite and enough and explained > 0.75 and (slope > 0) == sharper:
        return 1 + slope, min(0.95, 0.5 + 0.5 * explained * (0.8 if down < 0 else 1.0))
    return 1.0, 0.0


@rule(explains_the_gap=True)
def raw(case: Case) -> Finding | None:
    """mu is not what was sampled from, but what the model said before temperature or filter."""
    get = case.get
    ratio, sure = _ratio(case)
    error, drawn = get("sampled_from_error"), get("sampled_from", -1.0)
    claimed = case.claims.get("temperature")
    if sure:
        from_pi = drawn > 0 and drawn + 1 > 4 * error and get("open") >= 64  # fewer tell neither it nor its error
        as_claimed = (
            claimed is not None and claimed > 0 and abs(claimed - 1) > 0.02 and abs(math.log(ratio * claimed)) < 0.06
        )
        on_grid = case.seen("mu") is not None and case.seen("pi") is None and drawn > -0.5 + error
        # Claimed to be 1, raw and processed are the same, and it is pi that is at another.
        if claimed != 1.0 and (from_pi or as_claimed or (on_grid and error < 0.7 and drawn > 0)):
            told = f", as claimed ({claimed:g})" if as_claimed else ""
            return Finding(
                "raw-log-probs", "log_mu is raw: it is of the model's own logits, not of what was sampled from",
                max(sure - 0.05, 0.6),
                f"mu's logits are pi's times {1 / ratio:.3g}, a temperature of {1 / ratio:.3g} on pi "
                f"alone{told}, and the "
                f"tokens are drawn from {'pi' if drawn > 0 else 'mu'} (statistic {drawn:+.2f} ± {error:.2f}; -1 is mu, "
                "+1 is pi).",
                "Report the sampler's log-probabilities after temperature and filters (vLLM: "
                "logprobs_mode=processed_logprobs).",
            )  # fmt: skip
    filters = [
        f"{name} {case.claims[name]:g}" for name, off in (("top_p", 1.0), ("min_p", 0.0))
        if case.claims.get(name) not in (None, off)
    ] + ([f"top_k {case.claims['top_k']:g}"] if (case.claims.get("top_k") or 0) > 0 else [])  # fmt: skip
    unaware = not case.is_beyond_rounding and get("exact_one_mu") <= get("exact_one_pi") + 0.02
    if not filters or not unaware or get("tokens") < 64:
        return None
    return Finding(
        "raw-log-probs", "log_mu is raw: it does not know of the filter", 0.8,
        f"{' and '.join(filters)} is claimed, and log mu agrees with an unfiltered log pi to {get('g_rms'):.1g}.",
        "Report the sampler's log-probabilities after its filter (vLLM: logprobs_mode=processed_logprobs), or sample "
        "without one: tokens are not drawn from this mu.",
    )  # fmt: skip


@rule(explains_the_gap=True)
def temperature(case: Case) -> Finding | None:
    get = case.get
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
        f"pi is {way} than mu as at temperatures with mu's / pi's = {ratio:.3g}{told}: "
        f"{get('likely_up', 0):.0%} of the "
        f"likely tokens and {get('unlikely_up', 0):.0%} of the unlikely ones are likelier by pi{side}.",
        "Divide both sides' logits by the same temperature: the trainer's before its log-softmax, the sampler's with "
        "processed log-probabilities.",
    )  # fmt: skip
