"""Whether an answer is the reference: what a teacher would mark right.

Text becomes values (tasks/answers/values.py), values are compared kind by kind, and what is left, single expressions,
is computed (tasks/answers/algebra.py). In doubt two answers differ: the policy finds a wrong answer that is paid.
"""

import logging
import math
import re

from tasks.answers.algebra import as_fraction, parse, rounding_error, same_equation, same_expression
from tasks.answers.text import squeeze, tidy
from tasks.answers.units import Unit, factor_between
from tasks.answers.values import Value, read, read_value

ALTERNATIVES = "\n---\n"
"""stands between the references any of which is right"""


def warm_up() -> None:
    """Build the parser, which is slow."""
    logging.disable(logging.WARNING)
    is_equal(r"\frac{x}{2}", "0.5x")


def grade_answer(answer: str, reference: str) -> float:
    """1 if the answer is one of the reference's alternatives, else 0. May take for ever: see tasks/grading_pool.py."""
    return float(any(is_equal(answer, alternative) for alternative in reference.split(ALTERNATIVES)))


def is_equal(answer: str, reference: str) -> bool:
    r"""Whether two answers say the same: ``\frac{1}{2}`` and 0.5, ``2, 1`` and ``\{1, 2\}``; not (2, 1) and (1, 2)."""
    given, wanted = (_decimal_comma(squeeze(tidy(text))) for text in (answer, reference))
    if not given or not wanted:
        return False
    return given == wanted or any(same(a, r) for a in read(answer) for r in read(reference))


def _decimal_comma(text: str) -> str:
    """``1,22`` as 1.22 is written elsewhere; 1,234 is a thousand and more."""
    return text.replace(",", ".") if re.fullmatch(r"-?(\d+,(\d{1,2}|\d{4,})|0,\d+)", text) else text


def same(a: Value, b: Value) -> bool:
    """Whether two values are equal. Symmetric."""
    for x, y in ((a, b), (b, a)) if a != b else ():
        for kinds in ((x.kind, y.kind), (x.kind, "any")) if x.kind != y.kind else ((x.kind, y.kind),):
            if kinds in _RULES and _RULES[kinds](x, y):
                return True
    return a == b


def _in_order(a: Value, b: Value) -> bool:
    return len(a.parts) == len(b.parts) and all(map(same, a.parts, b.parts))


def _lists(a: Value, b: Value) -> bool:
    """In any order; but in theirs where one side names its values: ``AB = 4, CD = 5`` and ``4, 5``."""
    if _is_named(a) != _is_named(b):
        return _in_order(a, b)
    left = list(b.parts)
    for item in a.parts:
        found = next((i for i, other in enumerate(left) if same(item, other)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _is_named(many: Value) -> bool:
    return all(value.kind == "equation" and value.name is not None for value in many.parts)


def _list_and_row(many: Value, row: Value) -> bool:
    """``x = 1, y = 2`` is (1, 2). ``1, 2`` is not: that may be an interval; longer rows may lack their parentheses."""
    if _is_named(many):
        many = Value("many", tuple(sorted(many.parts, key=lambda equation: equation.name)))
    return row.note == "()" and (len(row.parts) > 2 or _is_named(many)) and _in_order(many, row)


def _equations(a: Value, b: Value) -> bool:
    """``x + 2y = 4`` is ``2x + 4y = 8``; but ``2x = 4`` is not its solution, or the question would be the answer."""
    if a.name is not None and a.name == b.name:
        return same(read_value(a.parts[-1]), read_value(b.parts[-1]))
    solved = [right for x in (a, b) if x.name is not None and (right := parse(x.parts[-1])) is not None]
    if a.note != b.note or not len(a.parts) == len(b.parts) == 2 or any(not right.free_symbols for right in solved):
        return False
    return same_equation(a.parts, b.parts, is_order=a.note != "=")


def _equation_and_value(equation: Value, value: Value) -> bool:
    """``x = 5`` is 5; so is ``2 + 3 = 5``, each of whose sides is."""
    sides = equation.parts[1:] if equation.name is not None else equation.parts
    return equation.note == "=" and all(same(read_value(side), value) for side in sides)


def _quantities(a: Value, b: Value) -> bool:
    """A missing unit is taken as meant; then a percentage may be a hundredth of it, and degrees may be radians."""
    plain, unit = (b.parts, b.note) if b.kind == "quantity" else (b, Unit())
    factors = [factor_between(a.note, unit)]
    if b.kind != "quantity" and ("percent", 1) in a.note.powers:
        factors.append("1/100")
    elif b.kind != "quantity" and ("degree", 1) in a.note.powers and "\\pi" in b.parts:
        factors.append("\\frac{\\pi}{180}")
    scaled = [a.parts if f == 1 else Value("expression", f"({a.parts.parts})\\cdot{f}") for f in factors if f]
    return any(same(value, plain) for value in scaled)


def _ratios(a: Value, b: Value) -> bool:
    """3:8 is 6:16. A time is no ratio, nor is what has a 0 in it: 25:00 is not 05:00."""
    a_parts, b_parts = (list(map(int, ratio.parts)) for ratio in (a, b))
    if a_parts == b_parts:
        return not (a.note and b.note) or a.note == b.note
    a_reduced, b_reduced = ([n / (math.gcd(*parts) or 1) for n in parts] for parts in (a_parts, b_parts))
    are_times = all(len(part) == 2 for part in (*a.parts[1:], *b.parts[1:]))
    return not are_times and 0 not in a_parts and a_reduced == b_reduced


def _expressions(a: Value, b: Value) -> bool:
    if len(a.parts) > 2 and a.parts.isalpha() and a.parts.casefold() == b.parts.casefold():
        return True
    first, second = as_fraction(a.parts), as_fraction(b.parts)
    if first is None or second is None:
        return same_expression(a.parts, b.parts)
    return abs(first - second) <= max(rounding_error(a.parts), rounding_error(b.parts))


_RULES = {
    ("many", "many"): _lists,
    ("many", "row"): _list_and_row,
    ("many", "any"): lambda a, b: len(a.parts) == 1 and same(a.parts[0], b),
    ("equation", "equation"): _equations,
    ("equation", "any"): _equation_and_value,
    ("quantity", "quantity"): _quantities,
    ("quantity", "expression"): _quantities,
    ("row", "row"): lambda a, b: a.note == b.note and _in_order(a, b),
    ("ratio", "ratio"): _ratios,
    ("words", "expression"): lambda a, b: b.parts.casefold() == a.parts,  # \text{(C)} is C
    ("expression", "expression"): _expressions,
}
