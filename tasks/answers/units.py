"""Units of measurement: which are the same, and by what factor one is another."""

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

_TABLE = (  # what is not here is measured by itself
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


class Unit(NamedTuple):
    """What a quantity is measured in: powers, {("length", 2)} of an area, and the scale, 1/10000 of a cm^2."""

    powers: frozenset[tuple[str, int]]
    scale: Fraction


def read_unit(text: str) -> Unit:
    """A unit from its words; "square cm" and "cm^2" are the same."""
    for sign, name in (("\\%", " percent "), ("^\\circ", " degree "), ("''", " arcsecond ")):
        text = text.replace(sign, name)
    text = re.sub(r"[{}]|\\text|\\cdot|\\", " ", text)
    text = re.sub(r"(?<=[a-z]\s)\s*an?(?=\s)|/", " per ", text)  # "a" in "miles a day"; "5 A" is five amperes
    text = re.sub(r"\bm\.?p\.?h\b\.?", "mile per hour", re.sub(r"\bA\b", "ampere", text).casefold())
    text = re.sub(r"\bcu(?=\b|\.)\.?", "cubic", re.sub(r"\bsq(?=\b|\.)\.?", "square", text))  # 34\text{ sq. units}
    text = re.sub(r"(\w+)\s+(squared|cubed)\b", lambda m: f"{m[1]}^{2 if m[2] == 'squared' else 3}", text)
    powers, scale, sign, power = Counter(), Fraction(1), 1, 1
    for token in (token.strip(".,()") for token in re.sub(r"\s*\^\s*", "^", text).split()):
        if token in ("per", "square", "cubic"):
            sign, power = (-1, 1) if token == "per" else (sign, 2 if token == "square" else 3)
        elif token not in ("", "of", "the"):
            name, _, exponent = token.partition("^")
            plain = name[:-1] if len(name) > 3 and name.endswith("s") and not name.endswith("ss") else name
            dimension, factor = _UNITS.get(name) or _UNITS.get(plain) or (plain, Fraction(1))
            exponent = sign * power * (int(exponent) if re.fullmatch(r"-?\d", exponent) else 1)
            powers[dimension] += exponent
            scale, power = scale * factor**exponent, 1
    return Unit(frozenset(item for item in powers.items() if item[1]), scale)


def factor_between(first: Unit, second: Unit) -> Fraction | None:
    """What a number in the first unit is multiplied by to be one in the second; None if they measure different things.

    Words that are no unit may be left out: "7 integers" are "7 distinct integers". A "unit" is whatever the other's is.
    """
    if any(name == "unit" for unit in (first, second) for name, _ in unit.powers):
        return Fraction(1)
    smaller, larger = sorted((first.powers, second.powers), key=len)
    further = larger - smaller
    if not smaller <= larger or not smaller or any(name in _DIMENSIONS or power != 1 for name, power in further):
        return None
    return first.scale / second.scale
