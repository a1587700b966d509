"""Places where the same prompt was continued in the same way: there engines must repeat themselves.

The same token there must get the same log-probability from an engine that is deterministic. Of two different tokens the
difference of log-probabilities is that of their logits, whatever the normaliser: on the grid of the dtype that the
logits were computed in, and stretched by a temperature.
"""

import numpy as np

from learners.diagnosis.sample import Sample, mixed

PLACES = 32  # of a response, from its first token
ON_GRID = 3e-5  # nats: what FP32 leaves of a difference's place on a grid
EXPONENTS = range(0, 12)  # finer ones are too near to what FP32 leaves
MOST = 0.85  # of the differences, that must lie on a grid


def contexts_of(dump, sample: Sample) -> np.ndarray | None:
    """(T,) uint64: the same for tokens after the same prompt and prefix in the same step; None without prompts."""
    rows = sample.responses
    if dump.prompt_ids is not None:
        prompts = np.array([hash(tuple(dump.prompt_ids[i])) & (2**63 - 1) for i in rows], np.uint64)
    elif dump.group is not None:
        prompts = np.asarray(dump.group)[rows].astype(np.uint64)
    else:
        return None
    if dump.step is not None:
        prompts = mixed(prompts, np.asarray(dump.step)[rows].astype(np.int64).view(np.uint64))
    made, prefix = np.zeros(len(sample), np.uint64), prompts
    for place in range(PLACES):
        at = np.flatnonzero(sample.place == place)
        if not len(at):
            break
        made[at] = prefix[sample.row[at]]
        prefix = prefix.copy()
        prefix[sample.row[at]] = mixed(made[at], sample.ids[at].astype(np.uint64) + np.uint64(1))
    return made


def compare(dump, sample: Sample) -> dict[str, float]:
    """Statistics of repeated contexts, by name; empty without prompts."""
    made = contexts_of(dump, sample)
    if made is None:
        return {}
    early = np.flatnonzero((sample.place < PLACES) & (np.minimum(sample.x, sample.y) < -1e-5))
    order = early[np.lexsort((sample.ids[early], made[early]))]
    context, ids = made[order], sample.ids[order]
    same_context = context[1:] == context[:-1]
    same_token = same_context & (ids[1:] == ids[:-1])
    other_token = same_context & ~same_token
    numbers = {"repeats": float(same_token.sum()), "pairs": float(other_token.sum())}
    x, y = sample.x[order], sample.y[order]
    if same_token.any():
        here = np.flatnonzero(same_token)
        gap = sample.g[order][here]
        for name, values in (("mu", x), ("pi", y)):
            numbers[f"repeat_{name}"] = float(np.sqrt(np.mean((values[here + 1] - values[here]) ** 2)))
        numbers["repeat_gap"] = float(np.sqrt(np.mean(gap**2)))
        numbers["repeats_moved_pi"] = float(np.sum(np.abs(y[here + 1] - y[here]) > 1e-3))
        numbers["repeats_moved_mu"] = float(np.sum(np.abs(x[here + 1] - x[here]) > 1e-3))
    numbers |= _pairs(x, y, other_token)
    return numbers


def _pairs(x: np.ndarray, y: np.ndarray, other_token: np.ndarray) -> dict[str, float]:
    """Of two tokens in one context: how far pi's differences are stretched against mu's, and what grid each is on."""
    here = np.flatnonzero(other_token)
    dx, dy = x[here + 1] - x[here], y[here + 1] - y[here]
    _, first = np.unique(mixed(dx.astype(np.float32).view(np.uint32)), return_index=True)
    dx, dy = dx[first], dy[first]
    numbers = {"pairs": float(len(dx))}
    if len(dx) < 2 or not (dx**2).sum():
        return numbers
    slope = (dx @ dy) / (dx @ dx)
    numbers |= {
        "pair_slope": float(slope),
        "pair_slope_error": float(np.sqrt(((dx * (dy - slope * dx)) ** 2).sum()) / (dx @ dx)),
        "pair_size": float(np.sqrt(np.mean(dx**2))),
        "pair_residual": float(np.sqrt(np.mean((dy - slope * dx) ** 2))),
    }
    for name, values in (("mu", dx), ("pi", dy)):
        share = [np.mean(np.abs(values * 2.0**k - np.round(values * 2.0**k)) < ON_GRID * 2.0**k) for k in EXPONENTS]
        share = np.array(share)
        fits = np.flatnonzero(share >= MOST)
        numbers[f"grid_{name}"] = float(fits[0]) if len(fits) else np.inf
    return numbers
