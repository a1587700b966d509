"""Causes that are seen in the numbers as such: what is no number, or stored, cut off or shifted."""

from learners.diagnosis.case import Case
from learners.diagnosis.findings import Finding
from learners.diagnosis.rules import rule

FEW_ROWS = 0.01  # of unequal lengths, below which they are an accident and no habit of the writer


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


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
def not_written(case: Case) -> Finding | None:
    get = case.get
    for side, other in (("mu", "pi"), ("pi", "mu")):
        # A filter that leaves one token makes zeros too, and not of tokens that are unlikely.
        filled = get(f"same_{side}_value") < -1e-6 or get(f"same_{side}_far") > 0.01
        if filled and get("tokens") >= 8 and get(f"same_{side}") >= 0.99 and get(f"same_{other}", 1.0) < 0.5:
            return Finding(
                "not-written", f"log_{side} was never written", 0.97,
                f"it is {get(f'same_{side}_value'):.6g} at {get(f'same_{side}'):.0%} of the tokens, whatever "
                f"log_{other} is there.",
                f"Write the {'sampler' if side == 'mu' else 'trainer'}'s log-probability of each token before the "
                "buffer is saved; it still holds what it was filled with.",
            )  # fmt: skip
    return None


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
    part = share(case.unequal, case.unequal + case.get("responses"))
    if part < FEW_ROWS:
        return None  # a note says it
    told = next(problem for problem in case.problems if "unequal lengths" in problem)
    return Finding(
        "unequal-lengths", "rows whose columns have unequal lengths", min(0.98, 0.5 + 5 * part),
        f"{part:.0%} of the rows; {told.rstrip('.')}.",
        "Write one log-probability of either engine for each token of response_ids: one side counts a token more, such "
        "as the end-of-sequence token, or the prompt's last.",
    )  # fmt: skip


@rule(explains_the_gap=True)
def shifted(case: Case) -> Finding | None:
    get = case.get
    if not case.has("lag_best"):
        return None
    here, there = get("lag_0_distance"), get("lag_best_distance")
    gain = get("lag_best_correlation") - get("correlation")
    is_large = here >= 0.1 and there <= 0.35 * here
    if not (is_large or there <= 0.02 * here) or gain < 0.2:  # of a policy that is sure, the gap is small
        return None
    lag = int(get("lag_best"))
    return Finding(
        "shifted", f"log-probabilities shifted by {abs(lag)} token{'s' * (abs(lag) > 1)}",
        min(0.99, 0.7 + 0.3 * (1 - there / here)),
        f"log mu of a token is correlated {get('lag_best_correlation'):.3f} with log pi of the token "
        f"{abs(lag)} {'later' if lag > 0 else 'earlier'}, and {get('correlation'):.3f} with log pi of the same.",
        "The logits at place t - 1 give the probability of the token at t: cut labels and logits by one against each "
        "other, once, on the side that does it twice or not at all.",
    )  # fmt: skip


@rule()
def rounded(case: Case) -> Finding | None:
    get = case.get
    sides, worst, forms = [], 0.0, []
    for side in ("mu", "pi"):
        bits, step = get(f"bits_{side}"), get(f"step_{side}")
        if not step:
            continue
        coarse = step >= 1e-3 if not bits else True
        if coarse or step > 0.5 * get("g_rms"):
            sides.append(f"log_{side}")
            forms.append({8.0: "BF16's 8 bits", 11.0: "FP16's 11 bits"}.get(bits, f"multiples of {step:g}"))
            worst = max(worst, step)
    if not sides:
        return None
    return Finding(
        "rounded", f"{' and '.join(sides)} lie on a grid", 0.97,
        f"99% of the values of {' and '.join(sides)} are {' and '.join(dict.fromkeys(forms))}: about "
        f"{worst:.1g} apart, "
        f"where the gap is {get('g_rms'):.1g}.",
        "Compute log-softmax in FP32 and keep its values in FP32: neither .half() nor .bfloat16() nor round().",
    )  # fmt: skip


@rule()
def clamped(case: Case) -> Finding | None:
    get = case.get
    for side in ("mu", "pi"):
        spread = max(0.3, 10 * min(get("d_90"), 0.3))
        if (get(f"clamp_{side}") >= 3 and get(f"clamp_{side}_spread") > spread
                and get(f"clamp_{side}_ids") >= 3 and get(f"clamp_{side}_below") > 0.7):  # fmt: skip
            return Finding(
                "clamped", f"log_{side} is cut off below", 0.95,
                f"{get(f'clamp_{side}'):.0f} tokens of the sample have exactly {get(f'clamp_{side}_at'):.4g}, "
                f"the lowest value, where the other side's spread over {get(f'clamp_{side}_spread'):.2g} nats.",
                "Take the clamp out: it hides the tokens that the two engines differ by most on.",
            )  # fmt: skip
        ceiling = get(f"ceiling_{side}_at")
        if ceiling < -1e-5 and get(f"ceiling_{side}_ids") >= 3 and get(f"ceiling_{side}") > max(3, 0.02 * get("open")):
            return Finding(
                "clamped", f"log_{side} is cut off above", 0.9,
                f"{get(f'ceiling_{side}'):.0f} tokens of the sample have exactly {ceiling:.3g}, the highest value.",
                "Take the clamp out of the probabilities before their logarithm.",
            )  # fmt: skip
    return None


@rule(explains_the_gap=True)
def special_token(case: Case) -> Finding | None:
    get = case.get
    for where in ("last", "first"):
        if not case.has(f"{where}_far"):
            continue
        far, others = get(f"{where}_far"), get(f"others_far_{where}")
        alone = get(f"{where}_rms") > 30 * get(f"others_rms_{where}")
        large = far >= 0.2 and others <= 0.02 * far
        if where == "last" and not (large or alone):
            for side, other in (("pi", "mu"), ("mu", "pi")):
                none_left = get(f"last_zero_{side}") >= 0.9 and get(f"last_zero_{other}") < 0.8
                none_left = none_left and get(f"forced_{side}_inside") < 3
                alone = alone or (none_left and get("last_rms") > 5 * get("others_rms_last"))
        if where == "first" and not (large and alone and case.middle_is_rounding and get("first_correlation") < 0.5):
            continue  # first tokens that are off and go together are those that training moves most
        if large or alone:
            return Finding(
                "special-token", f"the {where} token of a response counts on one side only",
                0.95 if large and alone else 0.85,
                f"at the {where} token the gap is {get(f'{where}_rms'):.2g} (root mean square), at the others "
                f"{get(f'others_rms_{where}'):.2g}; {far:.0%} of the {where} tokens are off by more than 1 nat.",
                "Let both sides score the same ids, end-of-sequence token included: do not append, replace or "
                "mask it on "
                "one side.",
            )  # fmt: skip
    if case.one_id_holds_the_gap and get("id_typical") > 0.1 * get("id_rms"):  # most of them, and not one by chance
        return Finding(
            "special-token", f"token {get('id'):.0f} counts on one side only", 0.9,
            f"token id {get('id'):.0f}, {get('id_count'):.0f} of the sample's tokens, makes up "
            f"{get('id_share'):.0%} of the squared gap.",
            "Look at how that token is masked, inserted or replaced on one side.",
        )  # fmt: skip
    return None
