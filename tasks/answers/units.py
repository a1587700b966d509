"""Units of measurement: which are the same, and by what factor one is another."""

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

_TABLE = (  # what is not here is measured by itself
    "number: dozen 12, hundred 100, thousand 1000, million 1000000, billion 1000000000, trillion 1000000000000,"
    "third 1/3, tenth 1/10, hundredth 1/100, thousandth 1/1000;"
    "length: mm millimeter millimetre 1/1000, cm centimeter centimetre 1/100, m meter metre 1, km kilometer 1000,"
    "in inch inche 127/5000, ft foot feet 381/1250, yd yard 1143/1250, mi mile 201168/125;"
    "time: s sec second 1, min minute 60, h hr hour 3600, day 86400, week 604800; money: cent ¢ 1/100, dollar 1;"
    "mass: mg 1/1000, g gram 1, kg kilogram 1000; volume: ml milliliter 1/1000, l liter 1; year: yr year 1;"
    "ounce: oz ounce 1; pound: lb pound 1; degree: deg degree 1; radian: rad radian 1; current: ampere 1;"
    "celsius: c celsius 1; fahrenheit: f fahrenheit 1; percent: percent percentage pct 1"
)
_UNITS = {
    name: (dimension.strip(), Fraction(entry.split()[-1]))
    for dimension, _, entries in (line.partition(":") for line in _TABLE.split(";"))
    for entry in entries.split(",")
    for name in entry.split()[:-1]
}
_DIMENSIONS = {dimension for dimension, _ in _UNITS.values()}
PLAIN_UNIT = rf"(?:{'|'.join(name for name in _UNITS if len(name) > 1)}|sq|cu|square|cubic|mph|unit)s?(?![a-zA-Z])"
_SPELLINGS = {  # 5 A, but "a" in "miles a day" is "per"; 34\text{ sq. units}
    **{r"\\%": " percent ", r"\^\\circ": " degree ", "''": " arcsecond ", r"[{}]|\\text|\\cdot|\\": " "},
    **{r"\bA\b": "ampere", r"(?<=[a-z]\s)\s*an?(?=\s)|/": " per ", r"(?i)\bm\.?p\.?h\b\.?": "mile per hour"},
    **{r"\bsq\b\.?": "square", r"\bcu\b\.?": "cubic", r"\s+squared\b": "^2", r"\s+cubed\b": "^3", r"\s*\^\s*": "^"},
}


class Unit(NamedTuple):
    """What a quantity is measured in: ``powers``, {("length", 2)} of an area, ``scale``, 1/10000 of a cm^2, and the
    ``number`` that stands before it in words, 1,000,000 of "million dollars"."""

    powers: frozenset[tuple[str, int]] = frozenset()
    scale: Fraction = Fraction(1)
    number: Fraction = Fraction(1)


def read_unit(text: str) -> Unit:
    """A unit from its words; "square cm" and "cm^2" are the same."""
    for pattern, word in _SPELLINGS.items():
        text = re.sub(pattern, word, text)
    powers, scale, number, sign, power = Counter(), Fraction(1), Fraction(1), 1, 1
    for token in (token.strip(".,()") for token in text.casefold().split()):
        name, _, exponent = token.partition("^")
        plain = name[:-1] if len(name) > 3 and name.endswith("s") and not name.endswith("ss") else name
        dimension, factor = _UNITS.get(name) or _UNITS.get(plain) or (plain, Fraction(1))
        if token in ("per", "square", "cubic"):
            sign, power = (-1, 1) if token == "per" else (sign, 2 if token == "square" else 3)
        elif dimension == "number":
            number *= factor
        elif token not in ("", "of", "the"):
            exponent = sign * power * (int(exponent) if re.fullmatch(r"-?\d", exponent) else 1)
            powers[dimension] += exponent
            scale, power = scale * factor**exponent, 1
    if power > 1:
        powers["area"] += 1  # "5 square" is no 5
    return Unit(frozenset(item for item in powers.items() if item[1]), scale, number)


def factor_between(first: Unit, second: Unit) -> Fraction | None:
    """What a number in the first unit is multiplied by to be one in the second; None if they measure different things.

    A missing unit is taken as meant, and so are words that are none: "7 integers" are "7 distinct integers".
    """
    smaller, larger = sorted((first.powers, second.powers), key=len)
    number = first.number / second.number
    if not smaller or any(name == "unit" for name, _ in smaller | larger):
        return number
    if not smaller <= larger or any(name in _DIMENSIONS or power != 1 for name, power in larger - smaller):
        return None
    return number * first.scale / second.scale
