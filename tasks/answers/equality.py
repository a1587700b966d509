"""Whether an answer is the reference: what a teacher would mark right.

Text becomes values (tasks/answers/values.py), values are compared kind by kind, and what is left, single expressions,
is computed (tasks/answers/algebra.py). In doubt two answers differ: the policy finds a wrong answer that is paid.
"""

import logging

from tasks.answers.algebra import parse, same_equation, same_expression
from tasks.answers.units import read_unit, same_unit
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
    given, wanted = read(answer), read(reference)
    return given.parts != "" and same(given, wanted)


def same(a: Value, b: Value) -> bool:
    """Whether two values are equal. Symmetric."""
    for x, y in ((a, b), (b, a)):
        rule = _RULES.get((x.kind, y.kind)) or _RULES.get((x.kind, "any"))
        if a == b or (rule is not None and rule(x, y)):
            return True
    return False


def _in_order(a: Value, b: Value) -> bool:
    return a.note == b.note and len(a.parts) == len(b.parts) and all(map(same, a.parts, b.parts))


def _lists(a: Value, b: Value) -> bool:
    """In any order; but in theirs where one side names its values: ``AB = 4, CD = 5`` and ``4, 5``."""
    if _is_named(a) != _is_named(b):
        return _in_order(a, b)
    left = list(b.parts)
    for item in a.parts:
        if (found := next((i for i, other in enumerate(left) if same(item, other)), None)) is None:
            return False
        del left[found]
    return not left


def _is_named(many: Value) -> bool:
    return all(value.kind == "equation" and value.name is not None for value in many.parts)


def _list_and_row(many: Value, row: Value) -> bool:
    """``x = 1, y = 2`` is (1, 2). ``1, 2`` is not: that may be an interval; longer rows may lack their parentheses."""
    parts = tuple(sorted(many.parts, key=lambda equation: equation.name) if _is_named(many) else many.parts)
    return many.note is None and (len(parts) > 2 or _is_named(many)) and _in_order(Value("row", parts, "()"), row)


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


def _quantity_and_number(quantity: Value, number: Value) -> bool:
    """A missing unit is taken as meant; but a percentage may be a hundredth, and degrees may be radians."""
    scaled = f"({quantity.parts.parts})\\cdot" + _SCALES.get(quantity.note, "1")
    return same(quantity.parts, number) or same_expression(scaled, number.parts)


_SCALES = {read_unit("\\%"): r"\frac{1}{100}", read_unit("degree"): r"\frac{\pi}{180}"}
_RULES = {
    ("many", "many"): _lists,
    ("many", "row"): _list_and_row,
    ("equation", "equation"): _equations,
    ("equation", "any"): _equation_and_value,
    ("quantity", "quantity"): lambda a, b: same_unit(a.note, b.note) and same(a.parts, b.parts),
    ("quantity", "expression"): _quantity_and_number,
    ("quantity", "ratio"): lambda a, b: same(a.parts, b),  # 8:34 p.m.
    ("row", "row"): _in_order,
    ("words", "expression"): lambda a, b: b.parts.casefold() == a.parts,  # \text{(C)} is C
    ("expression", "expression"): lambda a, b: same_expression(a.parts, b.parts),
}
