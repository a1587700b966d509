"""Units of measurement: which are the same, and by what factor one is another."""

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

_TABLE = """
length: mm millimeter millimetre 1/1000, cm centimeter centimetre 1/100, m meter metre 1, km kilometer kilometre 1000,
length: in inch inche 127/5000, ft foot feet 381/1250, yd yard 1143/1250, mi mile 201168/125
time: s sec second 1, min minute 60, h hr hour 3600, day 86400, week 604800
month: month 1
year: yr year 1
mass: mg milligram 1/1000, g gram 1, kg kilogram 1000, oz ounce 1, lb pound 1
money: cent ¢ 1/100, dollar usd buck $ 1
euro: euro 1
sterling: sterling 1
charge: coulomb 1
force: newton 1
energy: j joule 1, kj kilojoule 1000
power: w watt 1, kw kilowatt 1000
celsius: celsius 1
fahrenheit: fahrenheit 1
kelvin: kelvin 1
degree: degree deg 1
radian: radian rad 1
percent: percent % 1
arcsecond: arcsecond 1
"""
_VOLUMES = {
    "ml": Fraction(1, 10**6),
    "milliliter": Fraction(1, 10**6),
    "l": Fraction(1, 1000),
    "liter": Fraction(1, 1000),
}
_AREAS = {"acre": ("acre", Fraction(1)), "hectare": ("hectare", Fraction(1))}
_SEPARATE = {"oz": "ounce", "ounce": "ounce", "lb": "pound", "pound": "pound"}


def _read_table() -> dict[str, tuple[str, Fraction]]:
    units = {}
    for line in _TABLE.strip().splitlines():
        dimension, _, entries = line.partition(":")
        for entry in filter(None, map(str.strip, entries.split(","))):
            *names, scale = entry.split()
            units |= {name: (_SEPARATE.get(name, dimension), Fraction(scale)) for name in names}
    return units | _AREAS


_UNITS = _read_table()


@dataclass(frozen=True)
class Unit:
    """What a quantity is measured in."""

    words: frozenset[str]
    """as it is written, in the singular"""
    dimensions: tuple[tuple[str, int], ...] | None
    """powers of the dimensions: (("length", 2),) for an area; None if a word is not known as a unit"""
    scale: Fraction = Fraction(1)

    def is_a(self, dimension: str) -> bool:
        return self.dimensions == ((dimension, 1),)


def singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def read_unit(text: str) -> Unit:
    """A unit from its words. Example: ``read_unit("square cm")`` and ``read_unit("cm^2")`` are the same area."""
    text = re.sub(r"\bm\.?p\.?h\b\.?", "mile per hour", text.casefold())
    text = re.sub(r"[{}]|\\text|\\cdot|\\", " ", text)
    text = re.sub(r"\bsq(?=\b|\.)\.?", "square", text)
    text = re.sub(r"\bcu(?=\b|\.)\.?", "cubic", text)
    text = re.sub(r"(\w+)\s+(squared|cubed)\b", lambda m: f"{m[1]}^{2 if m[2] == 'squared' else 3}", text)
    text = re.sub(r"\s*\^\s*", "^", text)
    tokens = [token.strip(".,()") for token in re.sub(r"/", " per ", text).split()]
    words = frozenset(singular(token) for token in tokens if token and token not in ("of", "the"))
    powers, scale, sign, power = Counter(), Fraction(1), 1, 1
    for token in filter(None, tokens):
        if token in ("per", "a", "an"):
            sign = -1
        elif token in ("square", "cubic"):
            power = 2 if token == "square" else 3
        else:
            name, _, exponent = token.partition("^")
            exponent = sign * (int(exponent) if re.fullmatch(r"-?\d", exponent) else 1) * power
            if name in _VOLUMES or singular(name) in _VOLUMES:
                powers["length"] += 3 * exponent
                scale *= (_VOLUMES.get(name) or _VOLUMES[singular(name)]) ** exponent
            elif name in _UNITS or singular(name) in _UNITS:
                dimension, factor = _UNITS.get(name) or _UNITS[singular(name)]
                powers[dimension] += exponent
                scale *= factor**exponent
            elif singular(name) == "unit":  # a generic unit is whatever the other side's is
                return Unit(words, ())
            else:
                return Unit(words, None)
            power = 1
    return Unit(words, tuple(sorted((d, p) for d, p in powers.items() if p)), scale)


def factor_between(first: Unit | None, second: Unit | None) -> Fraction | None:
    """What a number in the first unit is multiplied by to be one in the second; None if they measure different things.

    A unit on one side alone is taken as understood on the other.
    """
    if first is None or second is None or () in (first.dimensions, second.dimensions):
        return Fraction(1)
    if first.dimensions is None or second.dimensions is None:
        return Fraction(1) if first.words <= second.words or second.words <= first.words else None
    return first.scale / second.scale if first.dimensions == second.dimensions else None
