"""Whether an answer is the reference: what a teacher would mark right.

Text becomes values (tasks/answers/values.py), values are compared kind by kind, and what is left, single expressions,
is computed (tasks/answers/algebra.py). In doubt two answers differ: the policy finds a wrong answer that is paid.
"""

import logging
import math
from operator import itemgetter

from tasks.answers.algebra import as_fraction, parse, rounding_error, same_equation, same_expression
from tasks.answers.text import squeeze, tidy
from tasks.answers.units import factor_between
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
    given, wanted = squeeze(tidy(answer)), squeeze(tidy(reference))
    if not given or not wanted:
        return False
    return given == wanted or any(same(a, r) for a in read(answer) for r in read(reference))


def same(a: Value, b: Value) -> bool:
    """Whether two values are equal. Symmetric."""
    for first, second, compare in _RULES if a != b else ():
        for x, y in ((a, b), (b, a)):
            if x.kind == first and second in (y.kind, "any"):
                return compare(x, y)
    return a == b


def _in_order(a: Value, b: Value) -> bool:
    return len(a.parts) == len(b.parts) and all(map(same, a.parts, b.parts))


def _in_any_order(a: Value, b: Value) -> bool:
    left = list(b.parts)
    for item in a.parts:
        found = next((i for i, other in enumerate(left) if same(item, other)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _by_name(named: Value) -> Value:
    return Value(
        "many", tuple(value for _, value in sorted(zip(named.note, named.parts, strict=True), key=itemgetter(0)))
    )


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
    plain, factors = b, ["1"]
    if b.kind == "quantity":
        factor = factor_between(a.note, b.note)
        plain, factors = b.parts, [] if factor is None else [str(factor)]
    elif ("percent", 1) in a.note.powers:
        factors.append("1/100")
    elif ("degree", 1) in a.note.powers and "\\pi" in b.parts:
        factors.append("\\frac{\\pi}{180}")
    scaled = [
        a.parts if factor == "1" else Value("expression", f"({a.parts.parts})\\cdot{factor}") for factor in factors
    ]
    return any(same(value, plain) for value in scaled)


def _ratios(a: Value, b: Value) -> bool:
    """3:8 is 6:16. A time is no ratio, nor is what has a 0 in it: 25:00 is not 05:00."""
    (a_time, a_half), (b_time, b_half) = a.note, b.note
    if a.parts == b.parts:
        return not (a_half and b_half) or a_half == b_half
    a_reduced, b_reduced = ([n / (math.gcd(*ratio.parts) or 1) for n in ratio.parts] for ratio in (a, b))
    return not (a_time and b_time) and 0 not in a.parts and a_reduced == b_reduced


def _expressions(a: Value, b: Value) -> bool:
    if len(a.parts) > 2 and a.parts.isalpha() and a.parts.casefold() == b.parts.casefold():
        return True
    first, second = as_fraction(a.parts), as_fraction(b.parts)
    if first is None or second is None:
        return same_expression(a.parts, b.parts)
    return abs(first - second) <= max(rounding_error(a.parts), rounding_error(b.parts))


# "1, 2" is no point, as "(1, 2)" may be an interval; longer tuples may lack their parentheses. Words: \text{(C)} is C.
_RULES = [
    ("many", "many", _in_any_order),
    ("many", "row", lambda a, b: b.note == "()" and len(a.parts) > 2 and _in_order(a, b)),
    ("named", "named", lambda a, b: sorted(a.note) == sorted(b.note) and _in_order(_by_name(a), _by_name(b))),
    ("named", "row", lambda a, b: b.note == "()" and _in_order(_by_name(a), b)),
    ("named", "many", _in_order),
    ("equation", "equation", _equations),
    ("equation", "any", _equation_and_value),
    ("many", "any", lambda a, b: len(a.parts) == 1 and same(a.parts[0], b)),
    ("quantity", "quantity", _quantities),
    ("quantity", "expression", _quantities),
    ("row", "row", lambda a, b: a.note == b.note and _in_order(a, b)),
    ("ratio", "ratio", _ratios),
    (
        "words",
        "expression",
        lambda a, b: b.parts.casefold() == a.parts or (a.parts, b.parts) == ("infinity", "\\infty"),
    ),
    ("expression", "expression", _expressions),
]
