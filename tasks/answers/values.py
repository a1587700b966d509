r"""What an answer's text says: a number, a list, an interval, a matrix, an equation, a measurement or words.

`read` gives the readings of a tidy text (`tasks.answers.text`), mostly one; "1,234" has two.
"""

import re
from dataclasses import dataclass

from tasks.answers.text import squeeze, tidy
from tasks.answers.units import Unit, read_unit


@dataclass(frozen=True)
class Expression:
    """Mathematics with nothing around it, as LaTeX."""

    latex: str


@dataclass(frozen=True)
class Words:
    """Text, without case, spaces at the ends, outer parentheses and full stops."""

    text: str


@dataclass(frozen=True)
class Measurement:
    """A value with a unit."""

    value: "Value"
    unit: Unit


@dataclass(frozen=True)
class Several:
    """Values next to each other, "1 and 2", or a set: the order says nothing."""

    items: tuple["Value", ...]


@dataclass(frozen=True)
class Bracketed:
    """A tuple, a point or an interval: the order and the kind of the brackets count. "(0, 1)" may be either."""

    opener: str
    closer: str
    items: tuple["Value", ...]


@dataclass(frozen=True)
class Union:
    parts: tuple["Value", ...]


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple["Value", ...], ...]
    is_determinant: bool = False


@dataclass(frozen=True)
class Equation:
    """sides[0] = sides[1] = ..., each as LaTeX."""

    sides: tuple[str, ...]

    @property
    def name(self) -> str | None:
        """The name that the left side gives to the right one: "x", "f(x)"; None if it is more than a name."""
        return self.sides[0] if _NAME.fullmatch(self.sides[0]) else None


@dataclass(frozen=True)
class Based:
    """Digits in a base other than ten."""

    digits: str
    base: int


@dataclass(frozen=True)
class Ratio:
    """Numbers with colons between them: a ratio or a time of the day."""

    numbers: tuple[int, ...]
    may_be_a_time: bool
    half_of_day: str = ""
    """ "am", "pm" or nothing"""


Value = (
    Expression | Words | Measurement | Several | Bracketed | Union | Matrix | Equation | Based | Ratio
)  # fmt: skip

NO_SOLUTION = "no solution"
_NAME = re.compile(
    r"\([a-zA-Z](,[a-zA-Z])+\)"
    r"|(\\text\{[^{}]*\}|\\angle[A-Za-z_{}0-9 ]+|\\frac\{d\w\}\{d\w\}|[A-Z]{2,3}|(\\[a-zA-Z]+|[a-zA-Z])'*)"
    r"(_(\{[^{}]*\}|\w))?(\^\{-1\})?'*(\([a-zA-Z0-9,]*\))?"
)
_SYNONYMS = {
    "no real solution": NO_SOLUTION,
    "no real solutions": NO_SOLUTION,
    "no solutions": NO_SOLUTION,
    "empty set": NO_SOLUTION,
    "the empty set": NO_SOLUTION,
    "empty": NO_SOLUTION,
    "does not exist": "dne",
    "undefined": "dne",
    "all reals": "all real numbers",
    "all real": "all real numbers",
    "the real numbers": "all real numbers",
    "infinite": "infinity",
}  # fmt: skip
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(,\d{3})+(?![\d,])")
_DIGITS_IN_BASE = re.compile(r"(-?)\(?([0-9A-Fa-f]+)\)?_\{?(?:\\text\{)?(\d+)\}{0,2}")
_CLOCK = re.compile(r"(\d+):(\d+)(?::(\d+))?(?:\\text\{)?([apAP]\.?[mM]\.?)?\}?")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_LONG_WORD = re.compile(r"(?<![\\a-zA-Z])(?!(?:begin|end)\{)[a-zA-Z]{4,}")
_SHORT_WORDS = {"yes", "no", "odd", "all", "one", "two", "six", "ten", "may", "none", "dne", "n/a"}
_RELATION = re.compile(r"\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\ne(?![a-zA-Z])|<|>")
_PLAIN_UNITS = (
    "mm cm km kg mg in inches inch feet foot ft miles mile meters metres meter hours hour minutes seconds days "
    "dollars cents degrees degree radians percent units unit square sq cubic cu mph liters pounds "
    "ounces grams years weeks months acres"
).split()
_ANGLED = re.compile(r"\\(circ|sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_NUMBER = r"-?(?:\d+(?:\.\d+)?|\\frac\{\d+\}\{\d+\}|\(\d+\+\\frac\{\d+\}\{\d+\}\)|\d+/\d+)"


def read(text: str) -> list[Value]:
    """The readings of an answer as it was written, the likelier first."""
    text = tidy(text)
    if _THOUSANDS.search(text) and text[:1] not in "([" and not text.startswith("\\{"):
        as_numbers = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
        return [read_value(as_numbers), read_value(text)]
    return [read_value(text)]


def read_value(text: str) -> Value:
    """The one reading of a tidy text."""
    text = text.strip()
    for reader in (
        _words_alone,
        _matrix,
        _union,
        _several,
        _plus_minus,
        _bracketed,
        _member,
        _relation,
        _based,
        _clock,
    ):
        if (value := reader(text)) is not None:
            return value
    return _measurement(text) or _words(text) or Expression(squeeze(text))


def split_top(text: str, separator: re.Pattern) -> list[str]:
    """The parts of a text between the separators that stand outside all brackets."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        if text.startswith("\\begin{", position) or text.startswith("\\end{", position):
            depth += 1 if text[position + 1] == "b" else -1
        if depth == 0 and (found := separator.match(text, position)):
            parts.append(text[start:position])
            start = position = found.end()
            continue
        if text[position] in "([{":
            depth += 1
        elif text[position] in ")]}":
            depth -= 1
        position += 1
    return [*parts, text[start:]]


def _words_alone(text: str) -> Value | None:
    whole = _TEXT.fullmatch(text) or re.fullmatch(r"\(\\text\{([^{}]*)\}\)", text)
    if whole is None:
        return None
    items = [part for part in re.split(r"\s*[,;]\s*(?:and |or )?|\s+and\s+|\s+or\s+", whole[1]) if part.strip()]
    if len(items) > 1 and (all(len(item.strip()) <= 2 for item in items) or "," in whole[1]):
        return Several(tuple(_make_words(item) for item in items))
    return _make_words(whole[1])


def _make_words(text: str) -> Words:
    text = re.sub(r"[{}$]|\\text|\\", " ", text).casefold().replace("p.m.", "pm").replace("a.m.", "am")
    text = re.sub(r"\s+", " ", text).strip(" .,;:!\"'")
    text = re.sub(r"^\((.*)\)$", r"\1", text).strip()
    return Words(_SYNONYMS.get(text, text))


def _matrix(text: str) -> Matrix | None:
    text = re.sub(r"^\[\s*(\\begin\{array\}.*\\end\{array\})\s*\]$", r"\1", text)
    text = re.sub(r"^\(\s*(\\begin\{array\}.*\\end\{array\})\s*\)$", r"\1", text)
    found = re.fullmatch(
        r"\\begin\{(?P<kind>[pbBvV]?(?:small)?matrix|array)\}(\{[lcr| ]+\})?(?P<body>.*)\\end\{(?P=kind)\}", text
    )
    if found is None or "\\begin" in found["body"]:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", found["body"]) if row.strip()]
    cells = tuple(tuple(read_value(cell) for cell in row.split("&")) for row in rows)
    return Matrix(cells, is_determinant=found["kind"].startswith(("v", "V")))


def _union(text: str) -> Value | None:
    parts = split_top(text, re.compile(r"\\cup(?![a-zA-Z])|(?<=[)\]])\s*U\s*(?=[(\[])"))
    if len(parts) == 1:
        return None
    if "\\in" in parts[0] and isinstance(member := _member(parts[0]), Bracketed):
        return Union((member, *(read_value(part) for part in parts[1:])))
    return Union(tuple(read_value(part) for part in parts))


_BETWEEN = re.compile(
    r"\s*[,;]\s*(?:\\text\{\s*(?:and|or)\s*\}|(?:and|or)\s)?|\s*\\text\{\s*,?\s*(?:and|or)\s*\}"
    r"|\s+(?:and|or)\s+|\s*\\(?:lor|vee|land|wedge)(?![a-zA-Z])|\s*\\q?quad\s*"
)  # fmt: skip


def _several(text: str) -> Value | None:
    parts = [part for part in split_top(text, _BETWEEN) if part.strip()]
    if len(parts) < 2:
        return None
    items = []
    for part in parts:
        value = read_value(part)
        items += value.items if isinstance(value, Several) and "\\pm" in part else [value]
    return Several(tuple(items))


def with_bare_unit(latex: str) -> Measurement | None:
    """``3m^{2}`` as three square metres; for where the other side tells that m is a unit."""
    found = re.fullmatch(rf"({_NUMBER})([a-zA-Z]{{1,3}}(?:/[a-zA-Z]{{1,3}})?(?:\^\{{\d\}})?)", latex)
    return Measurement(Expression(found[1]), read_unit(found[2])) if found else None


def _plus_minus(text: str) -> Value | None:
    signs = re.findall(r"\\(?:pm|mp)(?![a-zA-Z])", text)
    if len(signs) != 1:
        return None
    return Several(tuple(read_value(re.sub(r"\\(?:pm|mp)(?![a-zA-Z])", sign, text).lstrip("+ ")) for sign in "+-"))


def _bracketed(text: str) -> Value | None:
    if text.startswith("\\{") and text.endswith("\\}"):
        inner = text[2:-2]
        if re.search(r"\\[{}]", re.sub(r"\\\{.*?\\\}", "", inner)):
            return None
        condition = split_top(inner, re.compile(r"\||:"))
        if len(condition) == 2:
            return read_value(condition[1])
        value = read_value(inner)
        return value if isinstance(value, Several) else Several((value,))
    if text[:1] not in "([" or text[-1:] not in ")]" or _outer_end(text) != len(text) - 1:
        return None
    parts = split_top(text[1:-1], re.compile(r"\s*,\s*|\s*;\s*"))
    if len(parts) > 1:
        return Bracketed(text[0], text[-1], tuple(read_value(part) for part in parts))
    return read_value(text[1:-1]) if text[0] == "(" and text[-1] == ")" and parts[0].strip() else None


def _outer_end(text: str) -> int:
    """Where the first bracket closes; "[0, 1)" closes, as brackets of all kinds are counted together."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return position
    return -1


def _member(text: str) -> Value | None:
    found = re.fullmatch(r"\s*\\?[a-zA-Z]\s*\\in(?![a-zA-Z])(.*)", text)
    return read_value(found[1]) if found and found[1].strip() else None


def _relation(text: str) -> Value | None:
    if (order := split_top(text, _RELATION)) and len(order) > 1:
        return _interval_of(text, order)
    sides = [side.strip() for side in split_top(text, re.compile(r"=|\\equiv(?![a-zA-Z])"))]
    sides[-1] = split_top(sides[-1], re.compile(r"\\approx(?![a-zA-Z])"))[0].strip()
    if len(sides) == 1:
        about = [side.strip() for side in split_top(text, re.compile(r"\\approx(?![a-zA-Z])"))]
        if len(about) == 1:
            return None
        return read_value(about[1] if _NAME.fullmatch(squeeze(about[0])) else about[0])
    return Equation(tuple(map(squeeze, sides))) if all(sides) else None


def _interval_of(text: str, sides: list[str]) -> Value | None:
    """An inequality in one name as the interval it describes; others stay expressions."""
    sides, signs = [squeeze(side) for side in sides], _RELATION.findall(text)
    names = [bool(re.fullmatch(r"\\?[a-zA-Z]+", side)) and side not in ("\\pi", "e", "\\infty") for side in sides]
    if len(sides) == 2 and names in ([True, False], [False, True]):
        sign = signs[0]
        if names[1]:
            sides, sign = sides[::-1], {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}.get(sign, sign)
        below, above, bound = Expression("-\\infty"), Expression("\\infty"), read_value(sides[1])
        if sign == "\\ne":
            return Union((Bracketed("(", ")", (below, bound)), Bracketed("(", ")", (bound, above))))
        if sign in ("<", "\\le"):
            return Bracketed("(", ")" if sign == "<" else "]", (below, bound))
        return Bracketed("(" if sign == ">" else "[", ")", (bound, above))
    if len(sides) == 3 and names == [False, True, False]:
        if signs[0] in (">", "\\ge") and signs[1] in (">", "\\ge"):
            sides, signs = sides[::-1], [{">": "<", "\\ge": "\\le"}[sign] for sign in signs[::-1]]
        if signs[0] in ("<", "\\le") and signs[1] in ("<", "\\le"):
            ends = (read_value(sides[0]), read_value(sides[2]))
            return Bracketed("(" if signs[0] == "<" else "[", ")" if signs[1] == "<" else "]", ends)
    return None


def _based(text: str) -> Based | None:
    found = _DIGITS_IN_BASE.fullmatch(squeeze(text))
    if found is None or not found[2][0].isdigit() or not 2 <= int(found[3]) <= 36:
        return None
    return Based(found[1] + (found[2].upper().lstrip("0") or "0"), int(found[3]))


def _clock(text: str) -> Ratio | None:
    found = _CLOCK.fullmatch(squeeze(text).replace(" ", ""))
    if found is None:
        return None
    numbers = tuple(int(number) for number in found.groups()[:3] if number)
    is_time = all(len(group) == 2 and int(group) < 60 for group in found.groups()[1:3] if group) and numbers[0] < 25
    return Ratio(numbers, is_time, (found[4] or "").casefold().replace(".", ""))


def _measurement(text: str) -> Value | None:
    """A value and its unit; None if there is no unit."""
    if money := re.match(r"-?\s*\\(\$|(?:euro|pounds)(?![a-z]))\s*", text):
        unit = read_unit({"$": "dollar", "euro": "euro", "pounds": "sterling"}[money[1]])
        sign = "-" if money[0].startswith("-") else ""
        value = read_value(sign + text[money.end() :])
        if isinstance(value, Measurement):  # "$5 million", "$5 dollars", "$5 per hour"
            value = value.value
        return Measurement(value, unit) if isinstance(value, Expression) else None
    for pattern, name in (
        (r"\^\\circ\s*(?:\\text\{\s*)?C\s*\}?$", "celsius"),
        (r"\^\\circ\s*(?:\\text\{\s*)?F\s*\}?$", "fahrenheit"),
        (r"\s*\^\\circ$", "degree"),
        (r"\s*\\%$", "percent"),
        (r"(?<=\d)\s*''$", "arcsecond"),
    ):
        if (found := re.search(pattern, text)) and found.start() and not _ANGLED.search(text[: found.start()]):
            value = read_value(text[: found.start()])
            return Measurement(value, read_unit(name)) if isinstance(value, Expression) else None
    for pattern in (
        r"(?P<value>.*?[^\s\\])\s*(?P<unit>\\text\{[^{}]*[a-zA-Z¢][^{}]*\}(?:\s*(?:/|\\cdot)?\s*\\text\{[^{}]*\})*"
        r"(?:\s*\^\s*\{-?\d\})?)",
        rf"(?P<value>{_NUMBER}|.*[\d}})]\s|.*\\pi\s)\s*(?P<unit>(?:{'|'.join(_PLAIN_UNITS)})(?![a-zA-Z]).*)",
        rf"(?P<value>{_NUMBER})\s+(?P<unit>(?:[a-zA-Z]{{3,}}(?:\s|$))+)",
    ):
        found = re.fullmatch(pattern, text)
        if found and "\\text" not in found["value"] and "," not in found["unit"]:
            value = read_value(found["value"])
            if isinstance(value, Expression):
                return Measurement(value, read_unit(found["unit"]))
    return None


def _words(text: str) -> Words | None:
    if text == "\\emptyset":
        return Words(NO_SOLUTION)
    if text in ("\\mathbb{R}", "(-\\infty,\\infty)"):
        return Words("all real numbers")
    without_commands = re.sub(r"\\[a-zA-Z]+", " ", _TEXT.sub("\0", text))
    has_words = "\0" in without_commands or _LONG_WORD.search(without_commands)
    return _make_words(text) if has_words or text.casefold() in _SHORT_WORDS else None
