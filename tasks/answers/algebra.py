"""Expressions that are more than a number: math-verify's parser, and its comparison where they have variables."""

import math
import re
from functools import lru_cache

import sympy
from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex

from tasks.answers.numbers import as_fraction, decimal_places

LARGEST_BITS = 20_000  # of a number that is computed
LARGEST_ARGUMENT = 2_000  # of a factorial, a binomial
LARGEST_SIZE = 400  # nodes
LARGEST_SUM = 2_000  # terms of a power of a sum, were it written out
DIGITS = 50
_NORMAL = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
_UNBOUNDED = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)


@lru_cache(4096)
def parse(latex: str, is_complex: bool):
    """A SymPy object of what the text says, not evaluated; None if it cannot be read or is too large to compute."""
    if "\\text" in latex or "=" in latex:
        return None
    if (number := as_fraction(latex)) is not None:
        return sympy.Rational(number.numerator, number.denominator)
    latex = re.sub(r"\^\\circ(?![a-zA-Z])", r"\\cdot\\frac{\\pi}{180}", latex)
    latex = re.sub(r"(?<![\d.])(\d+)\.(\d+)(?![\d.])", _exact, latex)
    try:
        expression = latex2sympy(
            normalize_latex(latex, _NORMAL), is_real=not is_complex, convert_degrees=False, normalization_config=None
        )
    except Exception:  # the grammar does not know it
        return None
    if is_complex and hasattr(expression, "xreplace"):  # the grammar leaves i a name
        expression = expression.xreplace({sympy.Symbol("i", real=False): sympy.I})
    return expression if is_tame(expression) else None


def _exact(match: re.Match) -> str:
    """0.25 as 25/100: SymPy's own decimals are binary, and math-verify rounds them."""
    digits = len(match[2])
    return f"\\frac{{{int(match[1] + match[2])}}}{{{10**digits}}}" if digits <= 60 else match[0]


def is_tame(expression) -> bool:
    """Whether an expression can be computed in reasonable time and space: 9^9^9^9, 10^9! and sums cannot."""
    nodes = 0
    try:
        for node in sympy.preorder_traversal(expression):
            nodes += 1
            if nodes > LARGEST_SIZE or isinstance(node, _UNBOUNDED):
                return False
            if isinstance(node, (sympy.factorial, sympy.factorial2, sympy.binomial, sympy.subfactorial, sympy.gamma)):
                if any(argument.is_number and _bits(argument) > math.log2(LARGEST_ARGUMENT) for argument in node.args):
                    return False
            elif isinstance(node, sympy.Pow) and (_bits(node) > LARGEST_BITS or _terms(node) > LARGEST_SUM):
                return False
    except (OverflowError, RecursionError, ValueError, AttributeError, TypeError):
        return False
    return True


def _bits(node) -> float:
    """An upper estimate of a number's size, log2 |x|, found without computing it; variables count as nothing."""
    if isinstance(node, sympy.Integer):
        return float(abs(int(node)).bit_length())
    if isinstance(node, sympy.Rational):
        return float(max(abs(int(node.p)).bit_length(), int(node.q).bit_length()))
    if isinstance(node, sympy.Pow):
        base, exponent = max(1.0, _bits(node.base)), _bits(node.exp)
        return base * 2.0 ** min(exponent, 100.0)
    if isinstance(node, (sympy.factorial, sympy.gamma, sympy.exp)):
        return 64.0 * 2.0 ** min(_bits(node.args[0]), 100.0)
    if isinstance(node, sympy.Mul):
        return sum(_bits(argument) for argument in node.args)
    if not node.args:
        return 2.0
    return max(_bits(argument) for argument in node.args) + len(node.args)


def _terms(power: sympy.Pow) -> int:
    """Terms of (a + b + ...)^n written out; 1 for other powers."""
    if not isinstance(power.base, sympy.Add) or not isinstance(power.exp, sympy.Integer) or power.is_number:
        return 1
    return math.comb(min(abs(int(power.exp)), 10**6) + len(power.base.args) - 1, len(power.base.args) - 1)


def same_expression(first: str, second: str) -> bool:
    """Whether two expressions in LaTeX are equal: constants to 50 digits, others as math-verify finds."""
    is_complex = should_treat_as_complex(first) or should_treat_as_complex(second)
    a, b = (parse(text, is_complex) for text in tell_cases_apart(first, second))
    if a is None or b is None:
        return False
    if _is_constant(a) and _is_constant(b):
        return _same_constants(a, b, first, second)
    return bool(verify([b], [a], timeout_seconds=None))


def tell_cases_apart(*texts: str) -> tuple[str, ...]:
    """The texts with x and X as two names where both occur; the parser would make them one."""
    letters = set(re.sub(r"\\[a-zA-Z]+", " ", " ".join(texts)))
    both = "".join(letter for letter in letters if letter.isupper() and letter.lower() in letters)
    if not both:
        return texts
    return tuple(re.sub(rf"(\\[a-zA-Z]+)|([{both}])", lambda m: m[1] or f"{{{m[2]}_{{9}}}}", text) for text in texts)


def _is_constant(expression) -> bool:
    return isinstance(expression, sympy.Expr) and not expression.free_symbols


def _same_constants(a, b, first: str, second: str) -> bool:
    a, b = a.doit(), b.doit()
    if a.is_Rational and b.is_Rational:
        return a == b
    a, b = (value.evalf(DIGITS) for value in (a, b))
    if not (a.is_number and b.is_number) or a.has(sympy.nan, sympy.zoo) or b.has(sympy.nan, sympy.zoo):
        return False
    if a.has(sympy.oo, -sympy.oo) or b.has(sympy.oo, -sympy.oo):
        return bool(a == b)
    difference, size = abs(sympy.N(a - b, DIGITS)), abs(a) + abs(b)
    if difference <= sympy.Float(10, DIGITS) ** -30 * size or (
        size < 1 and difference < sympy.Float(10, DIGITS) ** -40
    ):
        return True
    for decimal, value in ((first, b), (second, a)):
        places = decimal_places(decimal)
        if places is not None and value.is_real:
            exact = as_fraction(decimal)
            if abs(value - sympy.Rational(exact.numerator, exact.denominator)) <= sympy.Rational(1, 2 * 10**places):
                return True
    return False


def same_equation(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Whether two equations say the same: left less right is the same up to a constant factor."""
    is_complex = any(map(should_treat_as_complex, (*first, *second)))
    sides = [parse(side, is_complex) for side in tell_cases_apart(*first, *second)]
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return False
    one, other = (sympy.expand(left.doit() - right.doit()) for left, right in (sides[:2], sides[2:]))
    if one == 0 or other == 0 or one.free_symbols != other.free_symbols:
        return False
    ratio = sympy.simplify(one / other)
    return bool(ratio.is_number and ratio.is_finite and ratio != 0)
