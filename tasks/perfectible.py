"""Which problems are perfectible: neither too hard nor too easy for a model, and how soon that is certain.

A problem is kept when c of N sampled responses are right with ``low <= c / N <= high``. Pure functions of counts.
"""

from collections.abc import Sequence
from fractions import Fraction


def band_counts(samples: int, low: float, high: float) -> tuple[int, int]:
    """The least and the greatest number of right responses, of ``samples``, inside the band, bounds included.

    The bounds are taken as the decimals they are written as, so that 0.2 of 40 is 8 and not a little more.

    Example: ``band_counts(40, 0.2, 0.8) == (8, 32)``.
    """
    least, most = (Fraction(str(bound)) * samples for bound in (low, high))
    return -(-least.numerator // least.denominator), most.numerator // most.denominator


def verdict(right: int, drawn: int, samples: int, low: float, high: float) -> bool | None:
    """Whether a problem will be kept, after ``drawn`` of its ``samples`` responses; None while that is open.

    The final number of right responses lies between ``right`` and ``right + samples - drawn``: the problem is decided
    as soon as this range is wholly inside the band or wholly outside it. So deciding early keeps exactly what drawing
    all would keep.

    Returns:
        True: kept, False: left out, None: go on drawing.
    """
    least, most = band_counts(samples, low, high)
    lowest, highest = right, right + samples - drawn
    if lowest > most or highest < least or least > most:
        return False
    return True if least <= lowest and highest <= most else None


def draws_needed(correct: Sequence[bool], samples: int, low: float, high: float) -> int | None:
    """How many responses, taken in their order, decide a problem; None if these do not.

    Args:
        correct: whether response 0, 1, ... is right.
    """
    right = 0
    for drawn in range(len(correct) + 1):
        if verdict(right, drawn, samples, low, high) is not None:
            return drawn
        if drawn < len(correct):
            right += bool(correct[drawn])
    return None
