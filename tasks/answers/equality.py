"""Whether an answer is the reference: what a teacher would mark right.

Text becomes values (tasks/answers/values.py), values are compared kind by kind, and what is left, single expressions,
is computed (tasks/answers/algebra.py). In doubt two answers differ: the policy finds a wrong answer that is paid.
"""

import logging
import math
from functools import lru_cache

from tasks.answers.text import squeeze, tidy
from tasks.answers.units import factor_between
from tasks.answers.values import Value, read, read_value

ALTERNATIVES = "\n---\n"
"""stands between the references any of which is right"""


def warm_up() -> None:
    """Import what is slow and build the parser."""
    logging.disable(logging.WARNING)
    is_equal(r"\frac{x}{2}", "0.5x")


def grade_answer(answer: str, reference: str) -> float:
    """1 if the answer is one of the reference's alternatives, else 0. May take for ever: see tasks/grading_pool.py."""
    return float(any(is_equal(answer, alternative) for alternative in reference.split(ALTERNATIVES)))


def is_equal(answer: str, reference: str) -> bool:
    r"""Whether two answers say the same.

    Example: ``is_equal(r"\frac{1}{2}", "0.5")`` and ``is_equal("2, 1", r"\{1, 2\}")``, but not
    ``is_equal("(2, 1)", "(1, 2)")``.
    """
    given, wanted = squeeze(tidy(answer)), squeeze(tidy(reference))
    if not given or not wanted:
        return False
    return given == wanted or any(same(a, r) for r in _read(reference) for a in read(answer))


@lru_cache(4096)  # a group's responses share a reference
def _read(reference: str) -> list[Value]:
    return read(reference)


def same(a: Value, b: Value) -> bool:
    """Whether two values are equal. Symmetric."""
    if a == b:
        return True
    for first, second, compare in _RULES:
        for x, y in ((a, b), (b, a)):
            if x.kind == first and second in (y.kind, "any"):
                return compare(x, y)
    return False


def _in_order(a: tuple[Value, ...], b: tuple[Value, ...]) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def _in_any_order(a: tuple[Value, ...], b: tuple[Value, ...]) -> bool:
    left = list(b)
    for item in a:
        found = next((i for i, other in enumerate(left) if same(item, other)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _equations(a: Value, b: Value) -> bool:
    """``x + 2y = 4`` is ``2x + 4y = 8``; but ``2x = 4`` is not its solution, or the question would be the answer."""
    from tasks.answers.algebra import parse, same_equation

    if a.name is not None and a.name == b.name:
        return same(_last(a), _last(b))
    for equation in (a, b):
        right = parse(equation.parts[-1])
        if equation.name is not None and right is not None and not right.free_symbols:
            return False
    return a.note == b.note and len(a.parts) == len(b.parts) == 2 and same_equation(a.parts, b.parts, a.note != "=")


def _last(equation: Value) -> Value:
    return read_value(equation.parts[-1])


def _equation_and_value(equation: Value, value: Value) -> bool:
    """``x = 5`` is 5; so is ``2 + 3 = 5``, each of whose sides is."""
    sides = equation.parts[1:] if equation.name is not None else equation.parts
    return equation.note == "=" and all(same(read_value(side), value) for side in sides)


def _quantities(a: Value, b: Value) -> bool:
    factor = factor_between(a.note, b.note)
    return factor is not None and _same_scaled(
        a.parts, f"\\frac{{{factor.numerator}}}{{{factor.denominator}}}", b.parts
    )


def _same_scaled(value: Value, factor: str, other: Value) -> bool:
    return same(value if factor == "\\frac{1}{1}" else Value("expression", f"({value.parts})\\cdot{factor}"), other)


def _quantity_and_plain(quantity: Value, plain: Value) -> bool:
    """A missing unit is taken as meant; a percentage may be the number itself or a hundredth of it."""
    if same(quantity.parts, plain):
        return True
    if ("degree", 1) in quantity.note.powers and "\\pi" in plain.parts:
        return _same_scaled(quantity.parts, "\\frac{\\pi}{180}", plain)
    return ("percent", 1) in quantity.note.powers and _same_scaled(quantity.parts, "\\frac{1}{100}", plain)


def _named(many: Value) -> list[tuple[str, Value]]:
    """(name, value) of each item of "x = 1, y = 2"; none if one of them is no such equation."""
    named = [(item.name, _last(item)) for item in many.parts if item.kind == "equation" and item.name]
    return named if len(named) == len(many.parts) else []


def _many_and_row(many: Value, row: Value) -> bool:
    """(x, y) may be given as "x = 1, y = 2", and a longer tuple without its parentheses; two numbers may not, as
    "(1, 2)" is an interval too."""
    if row.note != "()":
        return False
    if named := dict(sorted(_named(many), key=lambda pair: pair[0])):
        return len(named) == len(many.parts) and _in_order(tuple(named.values()), row.parts)
    return len(many.parts) > 2 and _in_order(many.parts, row.parts)


def _manies(a: Value, b: Value) -> bool:
    """In any order; but "x = 1, y = 2" and "1, 2" only in the same one. "x = 1, -2" means two values of x."""
    for first, second in ((a, b), (b, a)):
        head, *rest = first.parts
        if head.kind == "equation" and head.name and not any(item.kind == "equation" for item in rest):
            return _in_any_order((_last(head), *rest), second.parts) or _in_any_order(a.parts, b.parts)
        if (named := _named(first)) and not _named(second):
            compare = _in_any_order if len(dict(named)) == 1 else _in_order
            return compare(tuple(value for _, value in named), second.parts)
    return _in_any_order(a.parts, b.parts)


def _ratios(a: Value, b: Value) -> bool:
    """3:8 is 6:16. A time is no ratio, nor is what has a 0 in it: 25:00 is not 05:00."""
    (a_time, a_half), (b_time, b_half) = a.note, b.note
    if a.parts == b.parts:
        return not (a_half and b_half) or a_half == b_half
    a_reduced, b_reduced = ([n / (math.gcd(*ratio.parts) or 1) for n in ratio.parts] for ratio in (a, b))
    return not (a_time and b_time) and 0 not in a.parts and a_reduced == b_reduced


def _words_and_plain(words: Value, plain: Value) -> bool:
    r"""Only to the letter: ``\text{(C)}`` is C."""
    return plain.parts.casefold() == words.parts or (words.parts == "infinity" and plain.parts == "\\infty")


def _expressions(a: Value, b: Value) -> bool:
    if len(a.parts) > 2 and a.parts.isalpha() and a.parts.casefold() == b.parts.casefold():
        return True
    from tasks.answers.algebra import as_fraction, rounding_error, same_expression

    first, second = as_fraction(a.parts), as_fraction(b.parts)
    if first is not None and second is not None:
        return abs(first - second) <= max(rounding_error(a.parts) or 0, rounding_error(b.parts) or 0)
    return same_expression(a.parts, b.parts)


_RULES = [
    ("many", "many", _manies),
    ("many", "row", _many_and_row),
    ("equation", "equation", _equations),
    ("equation", "many", lambda a, b: a.name is not None and len(a.parts) == 2 and same(_last(a), b)),
    ("many", "any", lambda a, b: len(a.parts) == 1 and same(a.parts[0], b)),
    ("equation", "any", _equation_and_value),
    ("quantity", "quantity", _quantities),
    ("quantity", "expression", _quantity_and_plain),
    ("row", "row", lambda a, b: a.note == b.note and _in_order(a.parts, b.parts)),
    ("ratio", "ratio", _ratios),
    ("words", "expression", _words_and_plain),
    ("expression", "expression", _expressions),
]
