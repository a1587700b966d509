"""Units of measurement: which words name the same one. Nothing is converted: 100 cm is not 1 m."""

import re
from collections import Counter

_TABLE = (  # what is not here is its own name
    "mm millimeter millimetre, cm centimeter centimetre, m meter metre, km kilometer, in inch inche, ft foot feet,"
    "yd yard, mi mile, s sec second, min minute, h hr hour, day, week, month, yr year, mg, g gram, kg kilogram,"
    "l liter, ml milliliter, lb pound, oz ounce, deg degree, rad radian, a ampere, c celsius, f fahrenheit, am, pm,"
    "dollar, cent ¢, percent percentage pct, unit"
)
_UNITS = {name: names.split()[0] for names in _TABLE.split(",") for name in names.split()}
PLAIN_UNIT = rf"(?:{'|'.join(name for name in _UNITS if len(name) > 1)}|[ap]\.\s?m|sq|square|cubic)s?\.?(?![a-zA-Z])"
_SPELLINGS = {  # 20\%, 0.003'', 34\text{ sq. units}, 4\!:\!51\!:\!06 \text{ p.m.}
    **{r"\\%": " percent ", r"\^\\circ": " degree ", "''": " arcsecond ", r"\\text|\\cdot|[{}\\]": " ", "/": " per "},
    **{r"(?i)\b([ap])\.\s?m\b": r"\1m", r"\bsq\b": "square", r"\s*\^\s*": "^"},
}
_NO_UNIT = re.compile(  # another number, or none: 5\text{ or more}, 5\text{ tenths}, 5\text{ and not 6}
    r"dozen|or|and|but|nor|not?|if|is|does|than|more|less|times|plus|minus|over|choose|factorial|mod|squared|cubed"
    r"|(?:.*th|third|quarter|half|halve|pair|score)s?|.*(?<!\^)(?<!\^-)\d.*|.*\^(?!-?\d).*"
)


def read_unit(text: str) -> frozenset[tuple[str, int]] | None:
    r"""A unit from its words, as powers: {("cm", 2)} of "square cm" and "cm^2"; None if they say something else."""
    for pattern, word in _SPELLINGS.items():
        text = re.sub(pattern, word, text)
    powers, sign, power = Counter(), 1, 1
    for token in (token.strip(".,()") for token in text.casefold().split()):
        name, _, exponent = token.partition("^")
        plain = name[:-1] if len(name) > 3 and name.endswith("s") and not name.endswith("ss") else name
        name = _UNITS.get(name) or _UNITS.get(plain, plain)
        if name not in _UNITS and _NO_UNIT.fullmatch(token):
            return None
        if token in ("per", "square", "cubic"):
            sign, power = (-1, 1) if token == "per" else (sign, 2 if token == "square" else 3)
        elif token not in ("", "of", "the"):
            powers[name] += sign * power * int(exponent or 1)
            power = 1
    return frozenset(powers.items()) | ({("area", 1)} if power > 1 else set())  # 5\text{ square}


def same_unit(first: frozenset, second: frozenset) -> bool:
    """A missing unit is taken as meant, and so are words that are none: "7 integers" are "7 distinct integers"."""
    smaller, larger = sorted((first, second), key=len)
    if not smaller or any(name == "unit" for name, _ in first | second):
        return True
    return smaller <= larger and all(name not in _UNITS and power == 1 for name, power in larger - smaller)
