"""The causes, one function each, from the most particular to the most general: `diagnose` asks them in this order."""

import math
from collections.abc import Callable

from learners.diagnosis.case import LEVELS, LIMITS, Case
from learners.diagnosis.findings import Finding

Rule = Callable[[Case], Finding | None]
RULES: list[Rule] = []
EXPLAIN_THE_GAP: list[Rule] = []
"""the causes of which one is enough: beside it the more general ones say nothing new"""


def rule(explains_the_gap: bool = False) -> Callable[[Rule], Rule]:
    def add(made: Rule) -> Rule:
        RULES.append(made)
        if explains_the_gap:
            EXPLAIN_THE_GAP.append(made)
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
        if (case.get(f"clamp_{side}") >= 3 and case.get(f"clamp_{side}_spread") > spread
                and case.get(f"clamp_{side}_ids") >= 3 and case.get(f"clamp_{side}_below") > 0.7):  # fmt: skip
            return Finding(
                "clamped", f"log_{side} is cut off below", 0.95,
                f"{case.get(f'clamp_{side}'):.0f} tokens of the sample have exactly {case.get(f'clamp_{side}_at'):.4g}, "
                f"the lowest value, where the other side's spread over {case.get(f'clamp_{side}_spread'):.2g} nats.",
                "Take the clamp out: it hides the tokens that the two engines differ by most on.",
            )  # fmt: skip
        ceiling = case.get(f"ceiling_{side}_at")
        if ceiling < -1e-5 and case.get(f"ceiling_{side}_ids") >= 3 and case.get(f"ceiling_{side}") > max(3, 0.02 * case.get("open")):
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
                none_left = none_left and case.get(f"forced_{side}_inside") < 3
                alone = alone or (none_left and case.get("last_rms") > 5 * case.get("others_rms_last"))
        if where == "first" and not (large and alone and case.middle_is_rounding):
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
    if case.middle_is_rounding and case.get("id_share") > 0.8 and case.get("id_count") >= 4 and case.get("id_others_rms") < 0.1 * case.get("id_rms") and case.get("id_rms") > 0.3:
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
        one_sided = case.get("down_squared", 0.5) if side == "mu" else 1 - case.get("down_squared", 0.5)
        gross = one_sided > 0.98 and against > 1.5 and excess > 2 and case.get("far_tokens") >= 6
        many = marks[0] and against > 1.5 and (marks[1] or marks[2]) and sum(marks) >= 4
        if body > 1e-3 and (many or gross) and not _is_constant(case):
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
    if case.has("pair_residual") and pairs >= 3:
        moved = abs(slope - 1) * case.get("pair_size")
        residual = case.get("pair_residual")
        clear = residual < 0.5 * moved and pairs >= 8 or residual < 0.2 * moved and pairs >= 4 or residual < 0.03 * moved
        if abs(slope - 1) > max(0.01, 8 * error) and 0.1 < slope < 10 and clear:
            return slope, min(0.98, 0.8 + 0.03 * pairs)
        if pairs >= 4 and abs(slope - 1) + 3 * error < 0.03:
            return 1.0, 0.0  # of any two tokens the odds are the same: not a temperature, whatever the signs say
    if not case.has("likely_up"):
        return 1.0, 0.0
    up, down = case.get("likely_up"), case.get("unlikely_up", -1.0)
    squared = case.get("likely_up_squared")
    slope, explained = case.get("odds_slope"), case.get("odds_explained")
    sharper = up > 0.9 and squared > 0.97
    flatter = up < 0.1 and squared < 0.03
    opposite = down < 0 or (down < 0.25 if sharper else down > 0.75)
    enough = case.get("likely") >= 16 and -0.75 < slope < 3 and abs(slope) > 4 * case.get("odds_slope_error")
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


# ------------------------------------------------------------------------------------------------ what the context is


@rule(explains_the_gap=True)
def places(case: Case) -> Finding | None:
    """Positions or padding: which place a token has, or what stands beside it, decides over its gap."""
    middle, most = LIMITS[case.expected]
    moved = case.get("repeats_moved_pi") >= 3 and case.get("repeat_pi") > 4 * case.get("repeat_mu")
    uneven = case.get("row_10") < middle / 2 and case.get("row_90") > 15 * case.get("row_10", 1.0)
    if moved and case.get("repeat_pi") > 0.05 * case.get("repeat_gap") and case.get("g_rms") > 0.1 and (
        uneven or case.get("row_spread") > 0.9 and case.get("row_largest") > 30 or case.get("row_largest") > 200
    ):  # fmt: skip
        return Finding(
            "positions", "padding or positions: what a response is batched with decides over its log pi", 0.85,
            f"the gap of the responses is from {case.get('row_10'):.2g} to {case.get('row_90'):.2g} (log odds, 10% and 90% "
            f"quantiles), and the same token in the same context has log pi that differ by {case.get('repeat_pi'):.2g}.",
            "Give the trainer's model the attention mask, and positions that count a response's own tokens: padding on the "
            "left is otherwise seen.",
        )  # fmt: skip
    if not case.is_beyond_rounding:
        return None
    first, second = case.get("place_0", math.inf), case.get("place_1")
    if second > 20 * first and first < middle:
        return Finding(
            "positions", "positions: they go wrong where the response begins", 0.9,
            f"the first token of the responses agrees to {first:.2g} (log odds, median), the second is off by {second:.2g}.",
            "Let the positions of the response go on from those of the prompt, in the trainer and in the sampler.",
        )  # fmt: skip
    if case.get("sure_median") < -0.7 and case.get("k1") > 0.5:
        return Finding(
            "positions", "positions or another model: pi does not know the context at all", 0.8,
            f"tokens that mu gives more than 0.9 have a median log pi of {case.get('sure_median'):.2g}, and log pi is lower "
            f"than log mu by {case.get('k1'):.2g} nats on average.",
            "Compare the positions and the rotary settings (theta, scaling) of both sides, then their weights.",
        )  # fmt: skip
    if case.has("early") and case.get("late") > 3 * case.get("early") and case.get("place_rank") > 0.3:
        return Finding(
            "positions", "positions: the gap grows with a token's place", 0.75,
            f"the median gap is {case.get('early'):.2g} at the places 1 to 7 and {case.get('late'):.2g} late (log odds).",
            "Compare the rotary settings (theta, scaling) and the attention windows of both sides.",
        )  # fmt: skip
    return None


@rule(explains_the_gap=True)
def not_deterministic(case: Case) -> Finding | None:
    pi, mu, gap = case.get("repeat_pi"), case.get("repeat_mu"), case.get("repeat_gap")
    limit = LIMITS[case.expected][0]
    mend = "Put the model into eval() for log-probabilities and set every dropout of its configuration to 0."
    if case.has("again_90") and case.get("again_90") > 0.4 * case.get("d_90") and case.is_beyond_rounding:
        return Finding(
            "not-deterministic", "the trainer is not deterministic (dropout?)", 0.97,
            f"its second pass over the same tokens moves the log odds of a tenth of them by more than "
            f"{case.get('again_90'):.2g}, where the gap between the engines is as large in a tenth: {case.get('d_90'):.2g}.",
            mend,
        )  # fmt: skip
    if case.get("repeats_moved_pi") >= 3 and pi > 0.3 * gap and pi > 4 * mu and pi > limit and case.is_beyond_rounding:
        return Finding(
            "not-deterministic", "the trainer is not deterministic (dropout?)", 0.93,
            f"the same token after the same prompt and prefix has log pi that differ by {pi:.2g} (root mean square of "
            f"{case.get('repeats'):.0f} pairs) and log mu that differ by {mu:.2g}; the gap is {gap:.2g}.", mend,
        )  # fmt: skip
    if case.get("repeats_moved_mu") >= 3 and mu > 0.3 * gap and mu > 4 * pi and mu > limit and case.is_beyond_rounding:
        return Finding(
            "sampler-changed", "the sampler changed within the rollout", 0.85,
            f"the same token after the same prompt and prefix has log mu that differ by {mu:.2g} (root mean square of "
            f"{case.get('repeats'):.0f} pairs) and log pi that differ by {pi:.2g}.",
            "Weights were loaded while responses were being sampled, or several engines hold different ones: finish the "
            "rollout before the update, or keep with each response what it was sampled with.",
        )  # fmt: skip
    return None


@rule(explains_the_gap=True)
def few_responses(case: Case) -> Finding | None:
    middle = LIMITS[case.expected][0]
    far = case.get("row_far")
    if (0 < far <= 0.3 and case.get("row_median") <= middle and case.get("row_largest") > 20
            and case.get("row_few_share") > 0.8 and case.get("g_rms") > middle):  # fmt: skip
        return Finding(
            "few-responses", "a few responses make up the gap", 0.8,
            f"in {far:.0%} of the responses the gap is more than 8 times that of the median one, in the worst "
            f"{case.get('row_largest'):.0f} times; the worst tenth has {case.get('row_few_share'):.0%} of the squared gap.",
            "Look at the responses listed below: a row in another's place, a text that was tokenised anew, a sequence "
            "that was cut or sampled with other weights.",
        )  # fmt: skip
    return None


@rule(explains_the_gap=True)
def prompts_differ(case: Case) -> Finding | None:
    early, late, first = case.get("early"), case.get("late"), case.get("place_0", math.inf)
    falls = late > 0 and early > 1.9 * late and case.get("place_rank") < -0.15 and first > late
    falls = falls and (case.is_beyond_rounding or case.get("place_rank") * math.sqrt(case.get("open")) < -8)
    broken = case.is_beyond_rounding and case.get("k1") > 0.3 and case.get("correlation", 1.0) < 0.7
    if not (falls or broken):
        return None
    shape = (
        f"the median gap is {early:.2g} at the places 1 to 7 and {late:.2g} late (log odds)" if falls else
        f"log pi is lower than log mu by {case.get('k1'):.2g} nats on average, with a correlation of "
        f"{case.get('correlation'):.2f}"
    )  # fmt: skip
    return Finding(
        "prompts-differ", "the two sides condition on different prompts", 0.85 if falls else 0.65, shape + ".",
        "Log the token ids of the prompt on both sides and compare them: system prompt, chat template, beginning-of-sequence "
        "token, truncation.",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ what computes


@rule(explains_the_gap=True)
def precision(case: Case) -> Finding | None:
    order = ["fp32", "fp16", "bf16"]
    broken = []
    for side, name in (("mu", "sample"), ("pi", "train")):
        claimed, seen = case.claimed(name), case.seen(side)
        if claimed and seen and order.index(seen) > order.index(claimed):
            broken.append((name, claimed, seen, case.get(f"grid_{side}")))
    if broken:
        told = " and ".join(
            f"the {name[:-1] if name == 'sample' else name}er's logits lie on a grid of 2^-{grid:.0f}, {LEVELS[seen]}'s, where "
            f"{LEVELS[claimed]} is claimed" for name, claimed, seen, grid in broken
        )  # fmt: skip
        return Finding(
            "precision", f"looks like {LEVELS[broken[0][2]]} under the name of {LEVELS[broken[0][1]]}", 0.93, told + ".",
            "Read the dtypes off both engines' tensors at the start of a run: checkpoints are BF16 as a rule, and "
            "dtype=auto follows them.",
        )  # fmt: skip
    claimed = [case.claimed("sample"), case.claimed("train")]
    scaled = case.claims.get("temperature") not in (None, 1, 1.0)  # logits that were divided are on no grid
    unseen = (case.seen("mu") is None or case.seen("pi") is None) and (case.get("pairs") < 8 or scaled)
    coarser = case.level in ("fp16", "bf16") and all(claimed) and order.index(case.level) > order.index(case.expected)
    if coarser and unseen and case.is_beyond_rounding and not case.is_directed and not case.claims.get("rollout_quantization"):
        return Finding(
            "precision", f"looks like {LEVELS[case.level]} under the name of {LEVELS[case.expected]}", 0.7,
            f"the median gap is {case.get('d_50'):.2g} in log odds, where rounding in {LEVELS[case.expected]} leaves at most "
            f"{LIMITS[case.expected][0]:.2g}.",
            "Read the dtypes off both engines' tensors at the start of a run: checkpoints are BF16 as a rule, and "
            "dtype=auto follows them.",
        )  # fmt: skip
    return None


def _steps(case: Case) -> list[tuple[int, float]]:
    return sorted((int(name[5:]), value) for name, value in case.numbers.items() if name.startswith("step_")
                  and name[5:].isdigit())  # fmt: skip


def lag_of(levels: list[tuple[int, float]]) -> tuple[int, bool] | None:
    """By how many steps the sampler is behind, from the gap's size at each step of a run's beginning, and whether it
    still grows at the last: a sampler that is k steps behind is at the first weights until step k + 1, so that the gap
    is rounding's at the first step, grows for k steps and then stays.
    """
    if len(levels) < 3 or levels[1][1] < 2.5 * levels[0][1]:
        return None
    values = [value for _, value in levels]
    settled = sorted(values[len(values) // 2 :])[len(values[len(values) // 2 :]) // 2]
    reached = next(i for i, value in enumerate(values) if value > 0.75 * settled)
    grows = values[-1] > 1.25 * values[len(values) // 2] and reached >= len(values) // 2
    return max(reached, 1), grows


@rule(explains_the_gap=True)
def other_weights(case: Case) -> Finding | None:
    """Stale, without adapters, or quantised: what is left when rounding is not enough and the context is the same."""
    levels = _steps(case)
    lag = lag_of(levels) if levels and levels[0][0] <= 1 else None
    if not (case.is_beyond_rounding or case.is_directed or lag):
        return None
    rewarded = case.get("reward_z") > 3
    uneven = case.get("d_90") > 7 * case.get("d_50")  # rounding of weights moves all contexts alike, training does not
    directed = case.is_directed or lag is not None or (uneven and case.is_beyond_rounding)
    size = f"the median gap is {case.get('d_50'):.2g} in log odds (a tenth above {case.get('d_90'):.2g})"
    if case.units is not None:
        size += f", {case.units:.2g} units of the logits' grid"
    way = (
        f"; {case.get('likely_up', 0.5):.0%} of the likely tokens and {case.get('unlikely_up', 0.5):.0%} of the unlikely ones "
        f"are likelier by pi"
    )
    quantised = case.claims.get("rollout_quantization") not in (None, "", "none", False)
    if quantised and not directed and case.level:
        return None  # as told: a note says how large it is
    if quantised and not case.claims.get("lora") or not directed and not case.claims.get("lora"):
        return Finding(
            "quantised", "the sampler's weights are rounded: a quantised rollout", 0.75 if case.level else 0.55,
            f"{size}, more than rounding in {LEVELS[case.expected]} makes, in no direction{way}.",
            "Sample with the weights that are trained, or correct for mu at every token; look for a quantised checkpoint "
            "or cache (int8, fp8), or for another beginning-of-sequence token, which looks alike.",
        )  # fmt: skip
    if case.claims.get("lora"):
        return Finding(
            "adapters", "the adapters are not in the sampler", 0.8,
            f"{size}{way}, and LoRA is claimed.",
            "Merge the adapters before the weights go to the sampler, or load them there; check that the sampler's "
            "responses change with training.",
        )  # fmt: skip
    if lag is not None:
        steps, grows = lag
        much = f"{steps} step{'s' * (steps > 1)} behind" if not grows else f"behind from the first step on, {steps} and more"
        shown = ", ".join(f"{value:.2g}" for _, value in levels[:6])
        return Finding(
            "stale", f"the sampler seems to be {much}", 0.9,
            f"the gap (root mean square) of the steps from {levels[0][0]} on is {shown}: it grows and "
            f"{'goes on growing' if grows else 'then stays'}.",
            "Load the weights into the sampler after every update, empty its prefix cache, and count the version that each "
            "response was sampled with.",
        )  # fmt: skip
    told = f"; a response's log ratio goes with its reward ({case.get('reward_z'):.1f} standard errors)" if rewarded else ""
    return Finding(
        "stale", "the sampler has other weights than the trainer: stale, or without the adapters", 0.75,
        f"{size}{way}{told}.",
        "Load the weights into the sampler after every update, empty its prefix cache, and count the version that each "
        "response was sampled with; with LoRA, merge the adapters.",
    )  # fmt: skip


@rule(explains_the_gap=True)
def biased_normaliser(case: Case) -> Finding | None:
    if "rounded" in case.found or not case.has("shift_z"):
        return None
    shift, z = 2 * case.get("shift"), case.get("shift_z")
    error = max(case.get("sampled_from_error"), 1e-9)
    if abs(z) < 8 or abs(case.get("sampled_from") + 1) < 4 * error or case.get("k3") <= 0:
        return None
    return Finding(
        "biased-normaliser", "a biased normaliser", 0.9,
        f"k1 is {case.get('k1'):.2g} and k3 {case.get('k3'):.2g}, which have the same expectation where both sides are "
        f"normalised: every token is off by about {shift:.2g} nats ({abs(z):.0f} standard errors), "
        f"{abs(shift) * case.get('tokens') / max(case.get('responses'), 1):.1g} a response.",
        "Compute log p as logits - logsumexp(logits) in FP32 on both sides; torch's log_softmax on a CPU sums FP32 numbers "
        "of a large vocabulary too small.",
    )  # fmt: skip


def notes(case: Case) -> list[str]:
    """What is worth knowing and no fault."""
    made = [problem for problem in case.problems if "length" not in problem]
    if case.has("again_90") and "not-deterministic" not in case.found and case.get("again_90") > 1e-5:
        made.append(
            f"The trainer's second pass moves a tenth of its log odds by more than {case.get('again_90'):.2g}, within "
            "rounding: batches of another shape are summed in another order."
        )
    if case.claims.get("rollout_quantization") and case.is_beyond_rounding and not case.found:
        made.append(f"The rollout is quantised, and the median gap is {case.get('d_50'):.2g} in log odds.")
    for side, name in (("mu", "sampler"), ("pi", "trainer")):
        if case.seen(side):
            made.append(f"The {name}'s logits lie on a grid of 2^-{case.get(f'grid_{side}'):.0f}: {LEVELS[case.seen(side)]}.")
    return made
