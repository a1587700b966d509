"""Causes that change what a token is conditioned on: positions, padding, dropout, prompts, other responses."""

import math

from learners.diagnosis.case import LIMITS, Case
from learners.diagnosis.findings import Finding
from learners.diagnosis.rules import rule


@rule(explains_the_gap=True)
def places(case: Case) -> Finding | None:
    """Positions or padding: which place a token has, or what stands beside it, decides over its gap."""
    get = case.get
    middle, _ = LIMITS[case.expected]
    moved = get("repeats_moved_pi") >= 3 and get("repeat_pi") > 4 * get("repeat_mu")
    uneven = get("row_10") < middle / 2 and get("row_90") > 15 * get("row_10", 1.0)
    if moved and get("row_90") > middle and get("repeat_pi") > 0.05 * get("repeat_gap") and get("g_rms") > 0.1 and (
        uneven or (get("row_spread") > 0.9 and get("row_largest") > 30) or get("row_largest") > 200
    ):  # fmt: skip
        return Finding(
            "positions", "padding or positions: what a response is batched with decides over its log pi", 0.85,
            f"the gap of the responses is from {get('row_10'):.2g} to {get('row_90'):.2g} (log odds, 10% and 90% "
            f"quantiles), and the same token in the same context has log pi that differ by {get('repeat_pi'):.2g}.",
            "Give the trainer's model the attention mask, and positions that count a response's own tokens: "
            "padding on the "
            "left is otherwise seen.",
        )  # fmt: skip
    if not case.is_beyond_rounding:
        return None
    gross = get("d_50") if get("d_50") > LIMITS["8-bit"][0] else 0.0
    first, second = get("place_0", math.inf), get("place_1", gross)
    if second > 20 * first and first < middle:
        return Finding(
            "positions", "positions: they go wrong where the response begins", 0.9,
            f"the first token of the responses agrees to {first:.2g} (log odds, median), the next ones are off "
            f"by {second:.2g}.",
            "Let the positions of the response go on from those of the prompt, in the trainer and in the sampler.",
        )  # fmt: skip
    if get("sure_median") < -0.7 and get("k1") > 0.5:
        return Finding(
            "positions", "positions or another model: pi does not know the context at all", 0.8,
            f"tokens that mu gives more than 0.9 have a median log pi of {get('sure_median'):.2g}, and log pi is lower "
            f"than log mu by {get('k1'):.2g} nats on average.",
            "Compare the positions and the rotary settings (theta, scaling) of both sides, then their weights.",
        )  # fmt: skip
    if case.has("early") and get("late") > 3 * get("early") and get("place_rank") > 0.3:
        return Finding(
            "positions", "positions: the gap grows with a token's place", 0.75,
            f"the median gap is {get('early'):.2g} at the places 1 to 7 and {get('late'):.2g} late (log odds).",
            "Compare the rotary settings (theta, scaling) and the attention windows of both sides.",
        )  # fmt: skip
    return None


@rule(explains_the_gap=True)
def not_deterministic(case: Case) -> Finding | None:
    get = case.get
    pi, mu, gap = get("repeat_pi"), get("repeat_mu"), get("repeat_gap")
    limit = LIMITS[case.expected][0]
    mend = "Put the model into eval() for log-probabilities and set every dropout of its configuration to 0."
    if case.has("again_90") and get("again_90") > 0.4 * get("d_90") and case.is_beyond_rounding:
        return Finding(
            "not-deterministic", "the trainer is not deterministic (dropout?)", 0.97,
            f"its second pass over the same tokens moves the log odds of a tenth of them by more than "
            f"{get('again_90'):.2g}, where the gap between the engines is as large in a tenth: {get('d_90'):.2g}.",
            mend,
        )  # fmt: skip
    if get("repeats_moved_pi") >= 3 and pi > 0.3 * gap and pi > 4 * mu and pi > limit and case.is_beyond_rounding:
        return Finding(
            "not-deterministic", "the trainer is not deterministic (dropout?)", 0.93,
            f"the same token after the same prompt and prefix has log pi that differ by {pi:.2g} (root mean square of "
            f"{get('repeats'):.0f} pairs) and log mu that differ by {mu:.2g}; the gap is {gap:.2g}.", mend,
        )  # fmt: skip
    if get("repeats_moved_mu") >= 3 and mu > 0.3 * gap and mu > 4 * pi and mu > limit and case.is_beyond_rounding:
        return Finding(
            "sampler-changed", "the sampler changed within the rollout", 0.85,
            f"the same token after the same prompt and prefix has log mu that differ by {mu:.2g} (root mean square of "
            f"{get('repeats'):.0f} pairs) and log pi that differ by {pi:.2g}.",
            "Weights were loaded while responses were being sampled, or several engines hold different ones: "
            "finish the "
            "rollout before the update, or keep with each response what it was sampled with.",
        )  # fmt: skip
    return None


@rule(explains_the_gap=True)
def few_responses(case: Case) -> Finding | None:
    get = case.get
    middle = LIMITS[case.expected][0]
    if case.one_id_holds_the_gap and get("id_typical") <= 0.1 * get("id_rms"):
        return Finding(
            "few-responses", "a few tokens make up the gap", 0.7,
            f"some of the {get('id_count'):.0f} tokens of id {get('id'):.0f} hold {get('id_share'):.0%} of the squared "
            "gap; the others are at rounding.",
            "Look at the tokens listed: they were scored in another context, or overwritten on one side.",
        )  # fmt: skip
    far = get("row_far")
    if (0 < far <= 0.3 and get("row_median") <= middle and get("row_largest") > 20
            and get("row_few_share") > 0.8 and get("g_rms") > middle):  # fmt: skip
        return Finding(
            "few-responses", "a few responses make up the gap", 0.8,
            f"in {far:.0%} of the responses the gap is more than 8 times that of the median one, in the worst "
            f"{get('row_largest'):.0f} times; the worst tenth has {get('row_few_share'):.0%} of the squared gap.",
            "Look at the responses listed below: a row in another's place, a text that was tokenised anew, a sequence "
            "that was cut or sampled with other weights.",
        )  # fmt: skip
    return None


@rule(explains_the_gap=True)
def prompts_differ(case: Case) -> Finding | None:
    get = case.get
    early, late, first = get("early"), get("late"), get("place_0", math.inf)
    falls = late > 0 and early > 1.9 * late and get("place_rank") < -0.15 and first > late
    falls = falls and (case.is_beyond_rounding or get("place_rank") * math.sqrt(get("open")) < -8)
    broken = case.is_beyond_rounding and get("k1") > 0.3 and get("correlation", 1.0) < 0.7
    if not (falls or broken):
        return None
    shape = (
        f"the median gap is {early:.2g} at the places 1 to 7 and {late:.2g} late (log odds)" if falls else
        f"log pi is lower than log mu by {get('k1'):.2g} nats on average, with a correlation of "
        f"{get('correlation'):.2f}"
    )  # fmt: skip
    return Finding(
        "prompts-differ", "the two sides condition on different prompts", 0.85 if falls else 0.65, shape + ".",
        "Log the token ids of the prompt on both sides and compare them: system prompt, chat template, "
        "beginning-of-sequence "
        "token, truncation.",
    )  # fmt: skip
