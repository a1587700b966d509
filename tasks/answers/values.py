"""What an answer's text says. `read` gives its readings, mostly one; "1,234" has two."""

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache

from tasks.answers.text import closing, split_top, squeeze, tidy
from tasks.answers.units import read_unit


@dataclass(frozen=True)
class Value:
    r"""What an answer, or a part of one, says, by kind:

    expression  parts is LaTeX without spaces
    words       parts is text in small letters; "52 in base 8" too
    quantity    parts is an expression, note its unit
    many        parts are values in no order: a list, a set, a union; or the equations of "x = 1, y = 2"
    row         parts are values in their order, note the brackets, "[)", or the lengths of a matrix's rows
    equation    parts are its sides, LaTeX without spaces, note =, < or \le
    ratio       parts are numbers, as they are written, also of a clock, note is am, pm or nothing
    """

    kind: str
    parts: "str | tuple[str | Value, ...] | Value"
    note: object = None

    @property
    def name(self) -> str | None:
        """What an equation names, "x" or "f(x)"; None if its left side is more than a name."""
        return self.parts[0] if self.note == "=" and _NAME.fullmatch(self.parts[0]) else None


_SYNONYMS = {
    synonym: meaning
    for meaning, synonyms in {
        "\\emptyset": "no solution|no solutions|no real solution|no real solutions|empty set|the empty set|empty|\\{\\}",
        "(-\\infty,\\infty)": "all real numbers|all reals|the real numbers|\\reals",
        "\\text{undefined}": "does not exist|dne",
        "\\infty": "infinity|infinite|+\\infty",
    }.items()
    for synonym in synonyms.split("|")
}
_CORNERS = r"\|?[A-Z]{2,3}(?:_\w|_\{\w+\})?\|?"  # a length or a triangle
_NAMED = r"[A-Z](?:_\{[^{}]*\}|_\w)?"
_NAME = re.compile(
    rf"\(\\?[a-zA-Z]+(,\\?[a-zA-Z]+)+\)|\\text\{{[^{{}}]*\}}|m?\\(?:angle|triangle)[A-Za-z_{{}}0-9 ]+|\[[A-Z]{{3,}}\]"
    rf"|\\frac\{{(d\w|{_CORNERS})\}}\{{(d\w|{_CORNERS})\}}|{_CORNERS}([/:]{_CORNERS})?|{_NAMED}:{_NAMED}"
    r"|\\(?:lim|int)(?![a-zA-Z]).*|\\begin\{vmatrix\}.*|P\([^()=]*\)"  # whose value is asked, and not computed here
    r"|(\\[a-zA-Z]+|[a-zA-Z])'*(_(\{[^{}]*\}|\w))?(\^\{-1\})?'*(\([a-zA-Z0-9,]*\))?"
)
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(,\d{3})+(?![\d,])")
_BASED = re.compile(r"(-?)\(?(\d[0-9A-Fa-f]*)\)?_\{?(?:\\text\{)?(\d{1,2})\}{0,2}")
_RATIO = re.compile(r"(\d+(?::\d+){1,2})(?:\\text\{)?([apAP]\.?[mM]\.?)?\}?")
_UNION = r"\\cup(?![a-zA-Z])|(?<=[)\]])\s*U\s*(?=[(\[])"
_BETWEEN = (
    r"\s*[,;]\s*(?:\\text\{\s*(?:and|or)\s*\}|(?:and|or)\s)?|\s*\\text\{\s*,?\s*(?:and|or)\s*\}"
    r"|\s+(?:and|or)\s+|(?<=\))(?:and|or)(?=\()|\s*\\(?:lor|vee|land|wedge)(?![a-zA-Z])"
)
_MATRIX = r"(?P<kind>[pbBvV]?(?:small)?matrix|array)\}(?:\{[lcr| ]+\})?"
_RELATION = r"\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\ne(?![a-zA-Z])|<|>"
_TURNED = {">": "<", "\\ge": "\\le"}
_NUMBER = r"-?(?:\d+(?:\.\d+)?(?:\\cdot ?10\^\{-?\d+\})?|\\frac\{\d+\}\{\d+\}|\(\d+\+\\frac\{\d+\}\{\d+\}\)|\d+/\d+)"
_PLAIN_UNIT = r"(?:[mck]m|[km]g|in|ft|mi|sq|cu|mph|days?|feet|foot|mile|meter|metre|hour|minute|second|dollar|cent|inch)"
_UNITS = [
    r"(?P<value>(?!.*(?:\\circ.*\\circ|sin|cos|tan|cot|sec|csc)).+?)\s*(?P<unit>\^\\circ(?:\s*(?:\\text\{\s*)?[CF]\s*\}?)?)",
    r"(?P<value>.*\d)\s*(?P<unit>\\%|'')",
    r"(?P<value>.*?[^\s\\])\s*(?P<unit>\\text\{[^{}]*[a-zA-Z¢][^{}]*\}(?:\s*(?:/|\\cdot)?\s*\\text\{[^{}]*\})*"
    r"(?:\s*\^\s*\{-?\d\})?)",
    rf"(?P<value>{_NUMBER}|.*[\d}})]\s|.*\\pi\s)\s*(?P<unit>{_PLAIN_UNIT}(?:e?s)?(?![a-zA-Z]).*)",
    rf"(?P<value>{_NUMBER})\s+(?P<unit>[a-zA-Z]{{3,}}(?:\s+[a-zA-Z]+)*)",  # 7 integers
]


@lru_cache(4096)  # a group's responses share a reference
def read(text: str) -> tuple[Value, ...]:
    """The readings of an answer as it was written, the likelier first."""
    text = tidy(text)
    if _THOUSANDS.search(text) and text[:1] not in "([" and not text.startswith("\\{"):
        return read_value(_THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)), read_value(text)
    return (read_value(text),)


def read_value(text: str) -> Value:
    """The one reading of a tidy text."""
    text = text.strip()
    while text.startswith("{") and closing(text) == len(text) - 1:
        text = text[1:-1].strip()
    text = _SYNONYMS.get(squeeze(text).casefold(), text)
    for reader in (_text, _matrix, _several, _plus_minus, _bracketed, _relation, _numerals, _quantity, _words):
        if (value := reader(text)) is not None:
            return value
    return Value("expression", squeeze(text).removeprefix("+"))


def _all(kind: str, texts, note: object = None) -> Value:
    return Value(kind, tuple(map(read_value, texts)), note)


def _text(text: str) -> Value | None:
    whole = re.fullmatch(r"\(?\\text\{([^{}]*)\}\)?", text)
    if whole is None:
        return None
    if re.search(r"\d", whole[1]):  # \text{13}
        return read_value(whole[1])
    items = [item for item in re.split(_BETWEEN, whole[1]) if item.strip()]
    if len(items) > 1:  # \text{A, D, F, G, H}
        return Value("many", tuple(map(_make_words, items)))
    return _make_words(whole[1])


def _make_words(text: str) -> Value:
    """Words keep their spaces and signs: "no where" is not "nowhere", nor "slope -2" "slope 2"."""
    text = re.sub(r"\\text|(?<=[a-z])-(?=[a-z])|[{}$]", " ", text.casefold())
    text = re.sub(r"\s+", " ", text.replace("p.m.", "pm").replace("a.m.", "am")).strip(" .,;:!\"'")
    text = re.sub(r"^\(([^()]*)\)$", r"\1", text).strip()
    return read_value(_SYNONYMS[text]) if text in _SYNONYMS else Value("words", text)


def _matrix(text: str) -> Value | None:
    found = re.fullmatch(rf"[\[(]?\s*\\begin\{{{_MATRIX}(?P<body>.*)\\end\{{(?P=kind)\}}\s*[\])]?", text)
    if found is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", found["body"]) if row.strip()]
    return _all("row", itertools.chain(*rows), (found["kind"].startswith(("v", "V")), *map(len, rows)))


def _several(text: str) -> Value | None:
    for separator in (_UNION, r"\s*;\s*", _BETWEEN):  # p=5,q=2;p=7,q=2
        parts = [part for part in split_top(text, separator) if part.strip()]
        if len(parts) > 1:
            values = [(part, read_value(part)) for part in parts]
            return _many([v for part, value in values for v in (value.parts if _is_choice(part, value) else (value,))])
    return None


def _is_choice(text: str, value: Value) -> bool:
    return value.kind == "many" and "\\pm" in text


def _many(values: list[Value]) -> Value:
    """Values; of the same name, "x = 1, -2", what it may be."""
    names = [value.name if value.kind == "equation" else "" for value in values]
    if names[0] and set(names) <= {names[0], ""}:
        values = [read_value(value.parts[-1]) if name else value for name, value in zip(names, values, strict=True)]
    return Value("many", tuple(values))


def _plus_minus(text: str) -> Value | None:
    r"""``1 \pm \sqrt{2}`` is two values; of several signs each is chosen alone, ``\pm`` and ``\mp`` together."""
    parts = re.split(r"\\(pm|mp)(?![a-zA-Z])", text)
    if not 1 < len(parts) < 8 or text.startswith("\\{"):
        return None
    signs = itertools.product("+-", repeat=len(parts) // 2)
    if "mp" in parts[1::2]:
        signs = [[sign if kind == "pm" else "-+"[sign == "-"] for kind in parts[1::2]] for sign in "+-"]
    texts = ["".join(map("".join, zip(parts[::2], (*choice, ""), strict=True))) for choice in signs]
    return _many([read_value(re.sub(r"(^|[=(,])\s*\+", r"\1", choice)) for choice in texts])


def _bracketed(text: str) -> Value | None:
    if text.startswith("\\{") and text.endswith("\\}"):
        if condition := re.match(r"\\?[a-zA-Z]\s*(?:\\in\s*\\reals\s*)?[|:]", inner := text[2:-2].strip()):
            return read_value(inner[condition.end() :])  # \{x : x > 3\}
        value = read_value(inner)
        return value if value.kind == "many" else Value("many", (value,))
    if member := re.fullmatch(r"\\?[a-zA-Z]\s*\\in(?![a-zA-Z])(.+)", text):
        return read_value(member[1])
    if text[:1] not in "([" or text[-1:] not in ")]" or closing(text) != len(text) - 1:
        return None
    parts = split_top(text[1:-1], r"\s*[,;]\s*")
    if len(parts) > 1:
        return _all("row", parts, text[0] + text[-1])
    return read_value(parts[0]) if text[0] == "(" and text[-1] == ")" and parts[0].strip() else None


def _relation(text: str) -> Value | None:
    if len(order := split_top(text, _RELATION)) > 1:
        return _inequality([squeeze(side) for side in order], re.findall(_RELATION, text))
    sides = [side.strip() for side in split_top(text, r"=|\\equiv(?![a-zA-Z])")]
    sides[-1], *about = [side.strip() for side in split_top(sides[-1], r"\\approx(?![a-zA-Z])")]
    if len(sides) == 1:  # "x \approx 2" or "\frac{1}{2} \approx 0.5"
        return read_value(about[0] if _NAME.fullmatch(squeeze(sides[0])) else sides[0]) if about else None
    sides = [squeeze(side) for side in sides]
    if len(sides) == 2 and re.fullmatch("[a-z]", sides[1]) and not _NAME.fullmatch(sides[0]):
        sides.reverse()
    return Value("equation", tuple(sides), "=") if all(sides) else None


def _inequality(sides: list[str], signs: list[str]) -> Value | None:
    """Of one name the interval that it describes: x > 3 is (3, infinity). It is not solved: 2x > 6 is not."""
    if set(signs) <= set(_TURNED):
        sides, signs = sides[::-1], [_TURNED[sign] for sign in signs[::-1]]
    if not set(signs) <= {"<", "\\le", "\\ne"} or not all(sides) or len(sides) > 3:
        return None
    if any(re.fullmatch(r"-\\?[a-zA-Z]+", side) for side in sides):  # -x > -1
        sides = [side[1:] if re.fullmatch(r"-\\?[a-zA-Z]+", side) else f"-({side})" for side in sides[::-1]]
    named = [
        bool(re.fullmatch(r"\\?[a-zA-Z]+(\([a-z]\))?", side)) and side not in ("\\pi", "e", "\\infty") for side in sides
    ]
    brackets = "(["[signs[0] == "\\le"] + ")]"[signs[-1] == "\\le"]
    if len(named) == 3 and named[1]:
        return _all("row", sides[::2], brackets)
    if sum(named) != 1 or len(named) == 3:
        return Value("equation", tuple(sides), signs[0]) if len(sides) == 2 and signs[0] != "\\ne" else None
    below = _all("row", ("-\\infty", sides[named[0]]), "(" + brackets[1])
    above = _all("row", (sides[named[0]], "\\infty"), brackets[0] + ")")
    return Value("many", (below, above)) if signs[0] == "\\ne" else below if named[0] else above


def _numerals(text: str) -> Value | None:
    """Digits in a base, 422_8, or with colons, 3:8 and 8:34 p.m."""
    text = squeeze(text)
    if (found := _BASED.fullmatch(text)) and 2 <= int(found[3]) <= 36:
        return Value("words", f"{found[1]}{found[2].upper().lstrip('0') or '0'} in base {int(found[3])}")
    if found := _RATIO.fullmatch(text):
        return Value("ratio", tuple(found[1].split(":")), (found[2] or "").casefold().replace(".", ""))
    return None


def _quantity(text: str) -> Value | None:
    r"""``\$5.50``, ``10\text{ cm}``, ``250 in``, ``20\%``, ``3\text{ million}``."""
    if money := re.match(r"(-?)\s*\\(\$|(?:euro|pounds)(?![a-z]))\s*", text):
        value = read_value(money[1] + text[money.end() :])
        unit = read_unit({"$": "dollar", "pounds": "sterling"}.get(money[2], "euro"))
        if value.kind == "quantity":  # "$5 dollars", "$5 per hour", "$3 million"
            return Value("quantity", value.parts, unit._replace(number=value.note.number))
        return Value("quantity", value, unit) if value.kind == "expression" else None
    for pattern in _UNITS:
        found = re.fullmatch(pattern, text)
        if found and "\\text" not in found["value"] and "," not in found["unit"]:
            value = read_value(found["value"])
            return Value("quantity", value, read_unit(found["unit"])) if value.kind == "expression" else None
    return None


def _words(text: str) -> Value | None:
    without_commands = re.sub(r"\\[a-zA-Z]+", " ", text.replace("\\text", "\0"))
    return _make_words(text) if re.search(r"\0|(?<![a-zA-Z])[a-zA-Z]{4,}", without_commands) else None
