"""What storing did to log-probabilities: a coarser dtype, fewer digits, a bound that cuts them off."""

import numpy as np

from learners.diagnosis.sample import Sample

SHARE = 0.99  # of the values, that must lie on a grid
FEWEST = 24  # different values
DIGITS = range(1, 6)
POWERS = range(1, 11)


def look(sample: Sample) -> dict[str, float]:
    """``step_mu``: the typical distance of neighbours on the grid that log mu lies on, 0 if on none; ``bits_mu``: the
    significant bits of a float it was stored in, 0 if 24; ``clamp_mu``: how many tokens have its lowest value while
    pi's vary. And so for pi."""
    numbers = {}
    for name, own, other in (("mu", sample.x, sample.y), ("pi", sample.y, sample.x)):
        values = np.unique(own[np.abs(own) > 1e-6])
        numbers[f"bits_{name}"], numbers[f"step_{name}"] = _grid(values) if len(values) >= FEWEST else (0.0, 0.0)
        numbers |= _clamped(name, own, other, sample.ids)
        found, counts = np.unique(own, return_counts=True)
        numbers |= {f"same_{name}": float(counts.max() / len(own)), f"same_{name}_value": float(found[counts.argmax()])}
        numbers[f"same_{name}_far"] = float(np.mean(other < np.log(0.3)))
    return numbers


def _grid(values: np.ndarray) -> tuple[float, float]:
    single = values.astype(np.float32)
    bits = single.view(np.uint32)
    if np.mean((bits & 0xFFFF) == 0) > SHARE:
        return 8.0, float(np.median(np.abs(values))) * 2.0**-8
    if np.mean(single == single.astype(np.float16).astype(np.float32)) > SHARE:
        return 11.0, float(np.median(np.abs(values))) * 2.0**-11
    for digits in DIGITS:
        rounded = np.round(values, digits).astype(np.float32)
        if np.mean(np.abs(rounded - single) <= np.spacing(np.abs(single))) > SHARE:
            return 0.0, 10.0**-digits
    for power in POWERS:
        if np.mean(np.round(values * 2.0**power) == values * 2.0**power) > SHARE:
            return 0.0, 2.0**-power
    return 0.0, 0.0


def _clamped(name: str, own: np.ndarray, other: np.ndarray, ids: np.ndarray) -> dict[str, float]:
    """At its lowest value: how many tokens, and how far the other engine's values reach there."""
    low, high = own.min(), own.max()
    at, top = own == low, own == high
    numbers = {f"clamp_{name}": float(at.sum()), f"clamp_{name}_at": float(low),
               f"clamp_{name}_spread": float(np.ptp(other[at])), f"clamp_{name}_ids": float(len(np.unique(ids[at]))),
               f"clamp_{name}_below": float(np.mean(other[at] < low + 0.2))}  # fmt: skip
    numbers |= {f"ceiling_{name}": float(top.sum()), f"ceiling_{name}_at": float(high),
                f"ceiling_{name}_ids": float(len(np.unique(ids[top])))}  # fmt: skip
    return numbers
