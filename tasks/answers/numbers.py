"""Plain numbers, exactly."""

import re
from fractions import Fraction

SIGNIFICANT_DIGITS = 6
"""a decimal with as many may stand for a number that has no shorter one: 0.333333 for a third, 3.14159 for pi"""

_DECIMAL = re.compile(r"[-+]?\d+(?:\.\d+)?")
_FRACTION = re.compile(r"([-+]?)\\frac\{(-?\d+(?:\.\d+)?)\}\{(-?\d+(?:\.\d+)?)\}|([-+]?\d+)/(\d+)")
_SCIENTIFIC = re.compile(r"([-+]?\d+(?:\.\d+)?)\\cdot10\^\{([-+]?\d{1,4})\}|([-+]?)10\^\{([-+]?\d{1,4})\}")


def as_fraction(latex: str) -> Fraction | None:
    """The number that a squeezed text is, or None: an integer, a decimal, a fraction or scientific notation."""
    if len(latex) > 100:
        return None
    if _DECIMAL.fullmatch(latex):
        return Fraction(latex)
    if (found := _FRACTION.fullmatch(latex)) is not None:
        sign, above, below, plain_above, plain_below = found.groups()
        above, below = Fraction(above or plain_above), Fraction(below or plain_below)
        return None if below == 0 else (-above if sign == "-" else above) / below
    if (found := _SCIENTIFIC.fullmatch(latex)) is not None:
        mantissa, power, sign, plain_power = found.groups()
        return Fraction(mantissa or f"{sign}1") * Fraction(10) ** int(power or plain_power)
    return None


def decimal_places(latex: str) -> int | None:
    """Digits after the point of a decimal that has at least `SIGNIFICANT_DIGITS`; None for all else."""
    if not _DECIMAL.fullmatch(latex) or "." not in latex:
        return None
    significant = latex.lstrip("+-").replace(".", "").lstrip("0")
    return len(latex.partition(".")[2]) if len(significant) >= SIGNIFICANT_DIGITS else None


def rounds_to(value, decimal: str) -> bool:
    """Whether the decimal is the value, rounded to a long enough decimal.

    Args:
        value: Fraction, or any number that subtracts from one.
        decimal: squeezed text.
    """
    places = decimal_places(decimal)
    return places is not None and abs(value - Fraction(decimal)) <= Fraction(1, 2 * 10**places)
