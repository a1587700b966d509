"""Whether an answer is the reference: what a teacher would mark right.

Text becomes values (tasks/answers/values.py), values are compared kind by kind, and what is left, single expressions,
is compared as exact numbers or by math-verify (https://github.com/huggingface/Math-Verify). Nothing is evaluated as
code: the parser is a LaTeX grammar that builds SymPy objects. Numbers too large to compute are not computed.
"""

import logging
import math
import re
from fractions import Fraction
from functools import lru_cache

from tasks.answers.numbers import as_fraction, rounds_to
from tasks.answers.text import squeeze, tidy
from tasks.answers.units import factor_between
from tasks.answers.values import (
    Based,
    Bracketed,
    Equation,
    Expression,
    Matrix,
    Measurement,
    Ratio,
    Several,
    Union,
    Value,
    Words,
    read,
    read_value,
    with_bare_unit,
)

ALTERNATIVES = "\n---\n"
"""stands between the references any of which is right"""


def warm_up() -> None:
    """Import what is slow and build the parser."""
    logging.disable(logging.WARNING)  # math-verify warns that its own time limit is off: ours is the process's
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
    for kinds, compare in _RULES:
        if isinstance(a, kinds[0]) and isinstance(b, kinds[1]):
            return compare(a, b)
        if isinstance(b, kinds[0]) and isinstance(a, kinds[1]):
            return compare(b, a)
    return False


def _same_items(a: tuple[Value, ...], b: tuple[Value, ...]) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def _same_in_any_order(a: tuple[Value, ...], b: tuple[Value, ...]) -> bool:
    left = list(b)
    for item in a:
        found = next((i for i, other in enumerate(left) if same(item, other)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _named_equations(equation: Equation, other: Equation) -> bool:
    if equation.name is not None and equation.name == other.name:
        return same(read_value(equation.sides[-1]), read_value(other.sides[-1]))
    if len(equation.sides) == len(other.sides) == 2:
        from tasks.answers.algebra import same_equation

        return same_equation(equation.sides, other.sides)
    return False


def _equation_and_value(equation: Equation, value: Value) -> bool:
    """``x = 5`` is 5; so is ``2 + 3 = 5``, each of whose sides is."""
    sides = equation.sides[1:] if equation.name is not None else equation.sides
    return all(same(read_value(side), value) for side in sides)


def _measurements(a: Measurement, b: Measurement) -> bool:
    factor = factor_between(a.unit, b.unit)
    return factor is not None and _same_scaled(a.value, factor.numerator, factor.denominator, b.value)


def _measurement_and_plain(measured: Measurement, plain: Value) -> bool:
    """A missing unit is taken as meant; a percentage may be the number itself or a hundredth of it."""
    if same(measured.value, plain):
        return True
    if isinstance(plain, Expression) and (other := with_bare_unit(plain.latex)) is not None:
        return _measurements(measured, other)
    if measured.unit.is_a("percent"):
        return _same_scaled(measured.value, 1, 100, plain)
    if measured.unit.is_a("degree") and isinstance(plain, Expression) and "\\pi" in plain.latex:
        return same(Expression(f"({measured.value.latex})\\cdot\\frac{{\\pi}}{{180}}"), plain)
    return False


def _same_scaled(value: Expression, above: int, below: int, other: Value) -> bool:
    if above == below:
        return same(value, other)
    number = as_fraction(value.latex)
    if number is not None and isinstance(other, Expression) and (exact := as_fraction(other.latex)) is not None:
        return number * Fraction(above, below) == exact
    return same(Expression(f"({value.latex})\\cdot\\frac{{{above}}}{{{below}}}"), other)


def _several_and_bracketed(several: Several, bracketed: Bracketed) -> bool:
    """(x, y) may be given as "x = 1, y = 2", and a longer tuple without its parentheses; two numbers may not, as
    "(1, 2)" is an interval too."""
    if (bracketed.opener, bracketed.closer) != ("(", ")"):
        return False
    if names := _names_of(several):
        values = [read_value(item.sides[-1]) for item in sorted(several.items, key=lambda item: item.sides[0])]
        return names == sorted(set(names)) and _same_items(tuple(values), bracketed.items)
    return len(several.items) > 2 and _same_items(several.items, bracketed.items)


def _names_of(several: Several) -> list[str]:
    if all(isinstance(item, Equation) and item.name for item in several.items):
        return sorted(item.sides[0] for item in several.items)
    return []


def _several(a: Several, b: Several) -> bool:
    """In any order; but "x = 1, y = 2" and "1, 2" only in the same one."""
    names_a, names_b = _names_of(a), _names_of(b)
    if bool(names_a) != bool(names_b) and len(set(names_a or names_b)) > 1:
        return _same_items(a.items, b.items)
    if names_a and len(set(names_a)) == 1 and not names_b:
        return _same_in_any_order(tuple(read_value(item.sides[-1]) for item in a.items), b.items)
    return _same_in_any_order(a.items, b.items)


def _one_name(several: Several) -> Several:
    """ "x = 1, -2" means two values of x."""
    first, *rest = several.items
    if isinstance(first, Equation) and first.name and not any(isinstance(item, Equation) for item in rest):
        return Several((read_value(first.sides[-1]), *rest))
    return several


def _several_and_one(several: Several, value: Value) -> bool:
    if len(several.items) == 1:
        return same(several.items[0], value)
    return isinstance(value, Union) and _same_in_any_order(several.items, value.parts)


def _equation_and_several(equation: Equation, several: Several) -> bool:
    return equation.name is not None and len(equation.sides) == 2 and same(read_value(equation.sides[1]), several)


def _unions(a: Union, b: Union) -> bool:
    return _same_in_any_order(a.parts, b.parts)


def _brackets(a: Bracketed, b: Bracketed) -> bool:
    return (a.opener, a.closer) == (b.opener, b.closer) and _same_items(a.items, b.items)


def _matrices(a: Matrix, b: Matrix) -> bool:
    return (
        a.is_determinant == b.is_determinant
        and len(a.rows) == len(b.rows)
        and all(_same_items(first, second) for first, second in zip(a.rows, b.rows, strict=True))
    )


def _ratios(a: Ratio, b: Ratio) -> bool:
    if a.half_of_day and b.half_of_day and a.half_of_day != b.half_of_day:
        return False
    if a.numbers == b.numbers:
        return True
    if a.may_be_a_time and b.may_be_a_time:
        return False
    return [n // (math.gcd(*a.numbers) or 1) for n in a.numbers] == [
        n // (math.gcd(*b.numbers) or 1) for n in b.numbers
    ]


def _words_and_other(words: Words, other: Value) -> bool:
    """Only to the letter: ``\\text{(C)}`` is C."""
    if words.text == "all real numbers" and isinstance(other, Bracketed):
        return same(other, read_value("(-\\infty,\\infty)"))
    if words.text == "infinity":
        return other == Expression("\\infty")
    text = other.latex if isinstance(other, Expression) else None
    return text is not None and text.casefold().strip("() ") == words.text


def _expressions(a: Expression, b: Expression) -> bool:
    if len(a.latex) > 2 and a.latex.isalpha() and a.latex.casefold() == b.latex.casefold():
        return True
    first, second = as_fraction(a.latex), as_fraction(b.latex)
    if first is not None and second is not None:
        return first == second or rounds_to(second, a.latex) or rounds_to(first, b.latex)
    from tasks.answers.algebra import same_expression

    return same_expression(a.latex, b.latex)


_RULES = [
    ((Several, Several), lambda a, b: _several(_one_name(a), _one_name(b)) or _several(_one_name(b), _one_name(a))),
    ((Several, Bracketed), _several_and_bracketed),
    ((Equation, Equation), _named_equations),
    ((Equation, Several), _equation_and_several),
    ((Several, object), _several_and_one),
    ((Equation, object), _equation_and_value),
    ((Measurement, Measurement), _measurements),
    ((Measurement, Expression), _measurement_and_plain),
    ((Bracketed, Bracketed), _brackets),
    ((Union, Union), _unions),
    ((Matrix, Matrix), _matrices),
    ((Ratio, Ratio), _ratios),
    ((Words, Words), lambda a, b: re.sub(r"[ -]", "", a.text) == re.sub(r"[ -]", "", b.text)),
    ((Words, object), _words_and_other),
    ((Based, Based), lambda a, b: a == b),
    ((Expression, Expression), _expressions),
]
