"""What an answer's text says."""

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache

from tasks.answers.text import is_enclosed, split_top, squeeze, tidy
from tasks.answers.units import PLAIN_UNIT, read_unit


@dataclass(frozen=True)
class Value:
    r"""What an answer, or a part of one, says, by kind:

    expression  parts is LaTeX without spaces
    words       parts is text in small letters; "52 in base 8" too
    quantity    parts is an expression or a ratio, note its unit
    many        parts are values in no order: a list, a union, a set, with note {}; the equations of "x = 1, y = 2"
    row         parts are values in their order, note the brackets, "[)", or the lengths of a matrix's rows
    equation    parts are its sides, LaTeX without spaces, note =, < or \le
    ratio       parts are integers, also of a clock
    """

    kind: str
    parts: "str | tuple[str | int | Value, ...] | Value"
    note: object = None

    @property
    def name(self) -> str | None:
        """What an equation names, "x" or "f(x)"; None if its left side is more than a name."""
        return self.parts[0] if self.note == "=" and _NAME.fullmatch(self.parts[0]) else None


_NAME = re.compile(  # of an unknown, or of what is asked: m_{\max}, f(2), \angle BEA_{1}, \frac{dM}{dt}, S_{MBCN}:S
    r"(?:[a-zA-Z()\[\]|,:/'{} \\]|_(?:\w|\{[^{}]*\})|\^\{-1\}|(?<=[a-zA-Z])\(\d+\))+|\\begin\{vmatrix\}.*"
)
_VARIABLE = re.compile(r"(?!\\pi$|e$|\\infty$)\\?[a-zA-Z]+(\([a-z]\))?")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(,\d{3})+(?![\d,])")
_BASED = re.compile(r"(-?)\(?(\d[0-9A-Fa-f]*)\)?_\{?(?:\\text\{)?(\d{1,2})\}{0,2}")
_SEPARATORS = (  # from the loosest to the tightest: p=5,q=2;p=7,q=2
    r"\\cup(?![a-zA-Z])|(?<=[)\]])\s*U\s*(?=[(\[])",
    r"\s*;\s*",
    r"\s*[,;]\s*(?:\\text\{\s*(?:and|or)\s*\}|(?:and|or)\s)?|\s*\\text\{\s*,?\s*(?:and|or)\s*\}"
    r"|\s+(?:and|or)\s+|(?<=\))(?:and|or)(?=\()",
)
_MATRIX = re.compile(
    r"[\[(]?\s*\\begin\{(?P<kind>[pbBvV]?(?:small)?matrix|array)\}(?:\{[lcr| ]+\})?(.*)\\end\{(?P=kind)\}\s*[\])]?"
)
_RELATION = r"\\[lg]e(?![a-zA-Z])|<|>"
_TURNED = {">": "<", "\\ge": "\\le"}
_UNITS = (
    r"((?!.*(?:\\circ.*\\circ|sin|cos|tan|cot|sec|csc)).+?)\s*(\^\\circ(?:\s*(?:\\text\{\s*)?[CF]\s*\}?)?)",
    r"(.*\d)\s*(\\%|'')",
    r"(.*?[^\s\\])\s*(\\text\{[^{}]*[a-zA-Z¢][^{}]*\}(?:\s*(?:/|\\cdot)?\s*\\text\{[^{}]*\})*(?:\s*\^\s*\{-?\d\})?)",
    rf"(.*[\d}}])\s*({PLAIN_UNIT}[\w\s/^{{}}.-]*)",  # 250 in
    r"(.*[\d}])\s+([a-zA-Z]{4,}(?:\s+[a-zA-Z]+)*)",  # 7 integers
)


@lru_cache(4096)  # a group's responses share a reference
def read(text: str) -> Value:
    """The reading of an answer as it was written."""
    text = tidy(text)
    if text[:1] not in "([" and not text.startswith("\\{"):
        text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    return read_value(text)


def read_value(text: str) -> Value:
    """The reading of a tidy text."""
    text = text.strip()
    for reader in (_text, _matrix, _several, _bracketed, _inequality, _equation, _numerals, _quantity):
        if (value := reader(text)) is not None:
            return value
    without_commands = re.sub(r"\\[a-zA-Z]+", " ", text.replace("\\text", "\0"))
    if re.search(r"\0|(?<![a-zA-Z])[a-zA-Z]{4,}", without_commands):
        return _words(text)
    return Value("expression", squeeze(text).removeprefix("+"))


def _all(kind: str, texts, note: object = None) -> Value:
    return Value(kind, tuple(map(read_value, texts)), note)


def _words(text: str) -> Value:
    """Words keep their spaces and signs: "no where" is not "nowhere", nor "slope -2" "slope 2"."""
    text = re.sub(r"\\text|(?<=[a-z])-(?=[a-z])|[{}$]", " ", text.casefold())
    text = re.sub(r"\s+", " ", text).strip(" .,;:!\"'")
    return Value("words", re.sub(r"^\(([^()]*)\)$", r"\1", text).strip())


def _text(text: str) -> Value | None:
    whole = re.fullmatch(r"\(?\\text\{([^{}]*)\}\)?", text)
    if whole is None or re.search(r"\d", whole[1]):  # \text{13}
        return read_value(whole[1]) if whole else None
    items = [item for item in re.split(_SEPARATORS[-1], whole[1]) if item.strip()]  # \text{A, D, F, G, H}
    return Value("many", tuple(map(_words, items))) if len(items) > 1 else _words(whole[1])


def _matrix(text: str) -> Value | None:
    if (found := _MATRIX.fullmatch(text)) is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", found[2]) if row.strip()]
    return _all("row", itertools.chain(*rows), (found["kind"].startswith(("v", "V")), *map(len, rows)))


def _several(text: str) -> Value | None:
    """A list; of "x = 1 or x = -2" what x may be. "x > 1 and x < 5" is none: it is no union."""
    for separator in _SEPARATORS if not re.search(rf"(?:{_RELATION}).*\band\b", text) else ():
        parts = [part for part in split_top(text, separator) if part.strip()]
        if len(parts) > 1 or separator == _SEPARATORS[-1]:
            parts = [choice for part in parts for choice in _choices(part)]
        if len(parts) > 1:
            values = list(map(read_value, parts))
            names = {value.name if value.kind == "equation" else None for value in values}
            if len(names) == 1 and None not in names:  # x = 1, x = -2
                values = [read_value(value.parts[-1]) for value in values]
            return Value("many", tuple(values))
    return None


def _choices(text: str) -> list[str]:
    r"""``1 \pm \sqrt{2}`` is two texts; each sign is chosen alone."""
    first, *others = re.split(r"\\pm(?![a-zA-Z])", text)
    if not 0 < len(others) < 4 or text.startswith("\\{"):
        return [text]
    choices = itertools.product(*(("+" + other, "-" + other) for other in others))
    return [re.sub(r"(^|[=(,])\s*\+", r"\1", (first + "".join(choice)).strip()) for choice in choices]


def _bracketed(text: str) -> Value | None:
    if text.startswith("\\{") and text.endswith("\\}"):
        value = read_value(re.sub(r"^\s*\\?[a-zA-Z]\s*[|:]", "", text[2:-2]))  # \{x : x > 3\}
        return Value("many", value.parts, "{}") if value.kind == "many" else value
    if member := re.fullmatch(r"\\?[a-zA-Z]\s*\\in(?![a-zA-Z])(.+)", text):
        return read_value(member[1])
    if text[:1] not in "([" or text[-1:] not in ")]" or not is_enclosed(text):
        return None
    parts = split_top(text[1:-1], r"\s*[,;]\s*")
    if len(parts) > 1:
        return _all("row", parts, text[0] + text[-1])
    return read_value(parts[0]) if text[0] + text[-1] == "()" and parts[0].strip() else None


def _inequality(text: str) -> Value | None:
    """Of one name the interval that it describes: x > 3 is (3, infinity). It is not solved: 2x > 6 is not."""
    sides, signs = [squeeze(side) for side in split_top(text, _RELATION)], re.findall(_RELATION, text)
    if signs and signs[0] in _TURNED:
        sides, signs = sides[::-1], [_TURNED.get(sign) for sign in signs[::-1]]
    if not set(signs) <= {"<", "\\le"} or len(sides) not in (2, 3) or len(signs) != len(sides) - 1 or not all(sides):
        return None
    if any(re.fullmatch(r"-\\?[a-zA-Z]+", side) for side in sides):  # -x > -1
        sides = [side[1:] if re.fullmatch(r"-\\?[a-zA-Z]+", side) else f"-({side})" for side in sides[::-1]]
    named = [bool(_VARIABLE.fullmatch(side)) for side in sides]
    if len(sides) == 2 and sum(named) == 1:
        sides, signs = (["-\\infty", *sides], ["<", *signs]) if named[0] else ([*sides, "\\infty"], [*signs, "<"])
        named = [False, True, False]
    if len(sides) == 3 and named[1]:
        return _all("row", sides[::2], "(["[signs[0] == "\\le"] + ")]"[signs[1] == "\\le"])
    return Value("equation", tuple(sides), signs[0]) if len(sides) == 2 else None


def _equation(text: str) -> Value | None:
    exact, *about = split_top(text, r"\\approx(?![a-zA-Z])")  # S = \frac{1}{2} \approx 0.5; not x \approx 2
    if about and not _NAME.fullmatch(squeeze(exact)):
        return read_value(exact)
    sides = [squeeze(side) for side in split_top(text, r"=|\\(?:equiv|approx)(?![a-zA-Z])")]
    return Value("equation", tuple(sides), "=") if all(sides) and len(sides) > 1 else None


def _numerals(text: str) -> Value | None:
    """Digits in a base, 422_8, or with colons, 3:8 and 8:34."""
    text = squeeze(text)
    if (found := _BASED.fullmatch(text)) and 2 <= int(found[3]) <= 36:
        return Value("words", f"{found[1]}{found[2].upper().lstrip('0') or '0'} in base {int(found[3])}")
    return Value("ratio", tuple(map(int, text.split(":")))) if re.fullmatch(r"\d+(:\d+){1,2}", text) else None


def _quantity(text: str) -> Value | None:
    r"""``10\text{ cm}``, ``250 in``, ``20\%``."""
    for pattern in _UNITS:
        found = re.fullmatch(pattern, text)
        if found and "\\text" not in found[1] and "," not in found[2] and (unit := read_unit(found[2])) is not None:
            value = read_value(found[1])
            return Value("quantity", value, unit) if value.kind in ("expression", "ratio") else None
    return None
