"""Causes in what computes: dtypes, weights, the normaliser; asked when nothing else explains the gap."""

import math

from learners.diagnosis.case import LEVELS, LIMITS, Case
from learners.diagnosis.findings import Finding
from learners.diagnosis.rules import rule


@rule(explains_the_gap=True)
def precision(case: Case) -> Finding | None:
    get = case.get
    order = ["fp32", "fp16", "bf16"]
    broken = []
    for side, name in (("mu", "sample"), ("pi", "train")):
        claimed, seen = case.claimed(name), case.seen(side)
        if claimed and seen and order.index(seen) > order.index(claimed):
            broken.append((name, claimed, seen, get(f"grid_{side}")))
    if broken:
        told = " and ".join(
            f"the {name[:-1] if name == 'sample' else name}er's logits lie on a grid of 2^-{grid:.0f}, "
            f"{LEVELS[seen]}'s, where "
            f"{LEVELS[claimed]} is claimed" for name, claimed, seen, grid in broken
        )  # fmt: skip
        return Finding(
            "precision",
            f"looks like {LEVELS[broken[0][2]]} under the name of {LEVELS[broken[0][1]]}", 0.93, told + ".",
            "Read the dtypes off both engines' tensors at the start of a run: checkpoints are BF16 as a rule, and "
            "dtype=auto follows them.",
        )  # fmt: skip
    claimed = [case.claimed("sample"), case.claimed("train")]
    scaled = case.claims.get("temperature") not in (None, 1, 1.0)  # logits that were divided are on no grid
    unseen = (case.seen("mu") is None or case.seen("pi") is None) and (get("pairs") < 8 or scaled)
    coarser = case.level in ("fp16", "bf16") and all(claimed) and order.index(case.level) > order.index(case.expected)
    if (
        coarser
        and unseen
        and case.is_beyond_rounding
        and not case.is_directed
        and not case.claims.get("rollout_quantization")
    ):
        return Finding(
            "precision", f"looks like {LEVELS[case.level]} under the name of {LEVELS[case.expected]}", 0.7,
            f"the median gap is {get('d_50'):.2g} in log odds, where rounding in {LEVELS[case.expected]} "
            "leaves at most "
            f"{LIMITS[case.expected][0]:.2g}.",
            "Read the dtypes off both engines' tensors at the start of a run: checkpoints are BF16 as a rule, and "
            "dtype=auto follows them.",
        )  # fmt: skip
    return None


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
    get = case.get
    levels = case.levels
    lag = lag_of(levels) if levels and levels[0][0] <= 1 else None
    # Weights that two dtypes hold differ by rounding from the first update on, so that the gap then grows too.
    alike = case.claimed("sample") is not None and case.claimed("sample") == case.claimed("train")
    if not (case.is_beyond_rounding or case.is_directed or (lag and alike)):
        return None
    rewarded = get("reward_z") > 3
    # Rounded weights move all contexts alike and tokens either way: those drawn from mu a little down. Training moves
    # few contexts far, and what was rewarded, which was likely, further up.
    spread = get("d_90") / max(get("d_50"), 1e-12)
    sharper = get("likely_up_z") > 2 and get("unlikely_up") < 0.5
    uneven = spread > 9 or (spread > 4.2 and sharper)
    directed = case.is_directed or lag is not None or (uneven and case.is_beyond_rounding)
    size = f"the median gap is {get('d_50'):.2g} in log odds (a tenth above {get('d_90'):.2g})"
    if case.units is not None:
        size += f", {case.units:.2g} units of the logits' grid"
    way = (
        f"; {get('likely_up', 0.5):.0%} of the likely tokens and {get('unlikely_up', 0.5):.0%} of the unlikely ones "
        f"are likelier by pi"
    )
    quantised = case.claims.get("rollout_quantization") not in (None, "", "none", False)
    if quantised and not directed and case.level:
        return None  # as told: a note says how large it is
    if (quantised and not case.claims.get("lora")) or (not directed and not case.claims.get("lora")):
        return Finding(
            "quantised", "the sampler's weights are rounded: a quantised rollout",
            0.75 if case.level and get("open") >= 64 else 0.55,
            f"{size}, more than rounding in {LEVELS[case.expected]} makes, in no direction{way}.",
            "Sample with the weights that are trained, or correct for mu at every token; look for a quantised "
            "checkpoint "
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
        much = (
            f"{steps} step{'s' * (steps > 1)} behind"
            if not grows
            else f"behind from the first step on, {steps} and more"
        )
        shown = ", ".join(f"{value:.2g}" for _, value in levels[:6])
        return Finding(
            "stale", f"the sampler seems to be {much}", 0.9,
            f"the gap (root mean square) of the steps from {levels[0][0]} on is {shown}: it grows and "
            f"{'goes on growing' if grows else 'then stays'}.",
            "Load the weights into the sampler after every update, empty its prefix cache, and count the "
            "version that each "
            "response was sampled with.",
        )  # fmt: skip
    told = f"; a response's log ratio goes with its reward ({get('reward_z'):.1f} standard errors)" if rewarded else ""
    return Finding(
        "stale", "the sampler has other weights than the trainer: stale, or without the adapters", 0.75,
        f"{size}{way}{told}.",
        "Load the weights into the sampler after every update, empty its prefix cache, and count the version that each "
        "response was sampled with; with LoRA, merge the adapters.",
    )  # fmt: skip


@rule(explains_the_gap=True)
def biased_normaliser(case: Case) -> Finding | None:
    get = case.get
    if "rounded" in case.found or not case.has("shift_z") or get("tokens") < 100:
        return None
    shift, z = 2 * get("shift"), get("shift_z")
    error = max(get("sampled_from_error"), 1e-9)
    if abs(z) < 8 or abs(get("sampled_from") + 1) < 4 * error or get("k3") <= 0:
        return None
    return Finding(
        "biased-normaliser", "a biased normaliser", 0.9,
        f"k1 is {get('k1'):.2g} and k3 {get('k3'):.2g}, which have the same expectation where both sides are "
        f"normalised: every token is off by about {shift:.2g} nats ({abs(z):.0f} standard errors), "
        f"{abs(shift) * get('tokens') / max(get('responses'), 1):.1g} a response.",
        "Compute log p as logits - logsumexp(logits) in FP32 on both sides; torch's log_softmax on a CPU sums "
        "FP32 numbers "
        "of a large vocabulary too small.",
    )  # fmt: skip


def notes(case: Case) -> list[str]:
    """What is worth knowing and no fault."""
    get = case.get
    shown = "unequal-lengths" in case.found
    made = [problem for problem in case.problems if not (shown and "unequal lengths" in problem)] + refuted(case)
    if case.has("again_90") and "not-deterministic" not in case.found and get("again_90") > 1e-5:
        made.append(
            f"The trainer's second pass moves a tenth of its log odds by more than {get('again_90'):.2g}, within "
            "rounding: batches of another shape are summed in another order."
        )
    if case.claims.get("rollout_quantization") and case.is_beyond_rounding and not case.found:
        made.append(f"The rollout is quantised, and the median gap is {get('d_50'):.2g} in log odds.")
    for side, name in (("mu", "sampler"), ("pi", "trainer")):
        if case.seen(side):
            made.append(
                f"The {name}'s logits lie on a grid of 2^-{get(f'grid_{side}'):.0f}: {LEVELS[case.seen(side)]}."
            )
    return made


def refuted(case: Case) -> list[str]:
    """What is claimed and cannot be, where no finding says so."""
    get, claims, made = case.get, case.claims, []
    sides = (("sample", "mu", "sampler"), ("train", "pi", "trainer"))
    for claim, side, name in sides:
        claimed, seen = case.claimed(claim), case.seen(side)
        if claimed and seen and claimed != seen and "precision" not in case.found:
            made.append(
                f"The {name} is claimed to be in {LEVELS[claimed]}, and its logits lie on {LEVELS[seen]}'s grid."
            )
    claimed = {case.claimed(claim) for claim, _, _ in sides} - {None}
    if not case.found and case.level == "fp32" and get("gap_largest") and claimed and "fp32" not in claimed:
        made.append(
            f"{' and '.join(sorted(LEVELS[name] for name in claimed))} is claimed, and the gap is at the level of FP32 "
            "rounding."
        )
    temperature = claims.get("temperature") or 1.0
    if temperature > 0 and not math.log2(temperature).is_integer() and case.seen("mu") and case.seen("pi"):
        made.append(
            f"Temperature {temperature:g} is claimed, and both sides' logits lie on a grid that a division would have "
            "taken them off: both log-probabilities are at temperature 1."
        )
    quantised = claims.get("rollout_quantization")
    if quantised not in (None, "", "none") and not case.found and case.level == "fp32":
        made.append(f"{quantised} is claimed of the rollout, and the gap is at the level of FP32 rounding.")
    filters = [name for name, off in (("top_p", 1), ("min_p", 0)) if claims.get(name) == off]
    filters += ["top_k"] * (claims.get("top_k") is not None and claims["top_k"] <= 0)
    if filters and "filtered" in case.found:
        made.append(
            f"No filter is claimed ({', '.join(f'{name} {claims[name]:g}' for name in filters)}), and one is seen."
        )
    return made
