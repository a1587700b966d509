"""Numbers, exactly, and expressions: read by math-verify's grammar, compared where they can be computed.

The grammar (https://github.com/huggingface/latex2sympy2_extended) builds SymPy objects and evaluates nothing as code.
Its comparison, `math_verify.verify`, is not used: it pays for wrong answers. It takes 15 digits for equality (1e-20 x
is 2e-20 x), solves equations (so that the question is its own answer), and takes (1, 2) for {1, 2}.
"""

import math
import random
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, _Latex2Sympy, normalize_latex
from math_verify.grader import should_treat_as_complex
from sympy.core.function import AppliedUndef

SIGNIFICANT_DIGITS = 6  # a decimal with as many may stand for a number without a shorter one, 3.14159 for pi
LONGEST_NUMBER = 100  # characters of a number that is read without the grammar and its guards
LARGEST_BITS = 20_000  # of a number that is computed
LARGEST_ARGUMENT = 2_000  # of a factorial, a binomial
LARGEST_SIZE = 400  # nodes
DIGITS, POINTS = 50, 6
_NUMBER = re.compile(
    r"([-+]?)(?:(\d+(?:\.\d+)?)(?:\\cdot10\^\{([-+]?\d{1,4})\})?|(?:\\frac\{)?(-?\d+)(?:\}\{|/)(-?\d+)\}?)"
)
_NORMAL = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none")
_MEANT = {  # what the grammar reads otherwise, and what it is made to read
    r"\\gamma(?![a-zA-Z])": "g_{77}",  # a name, not Euler's constant
    r"([a-zA-Z])('+)": lambda m: f"{m[1]}_{{8{len(m[2])}}}",  # y' is not y
    r"\^\\circ(?![a-zA-Z])": r"\\cdot\\frac{\\pi}{180}",
    r"(?<=\\pi)\(": r"\\cdot(",  # pi is no function
    r"(?<![\d.])(\d+)\.(\d{1,60})(?![\d.])": lambda m: f"\\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}}",  # exactly
}
_UNBOUNDED = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)
_FACTORIALS = (sympy.factorial, sympy.binomial, sympy.gamma)


def as_fraction(latex: str) -> Fraction | None:
    """The number that a squeezed text is, or None: an integer, a decimal, a fraction or scientific notation."""
    found = _NUMBER.fullmatch(latex) if len(latex) <= LONGEST_NUMBER else None
    if found is None or int(found[5] or 1) == 0:
        return None
    size = Fraction(found[2] or found[4]) * Fraction(10) ** int(found[3] or 0) / int(found[5] or 1)
    return -size if found[1] == "-" else size


def rounding_error(latex: str) -> Fraction:
    """Half a unit of the last place of a decimal that has at least `SIGNIFICANT_DIGITS`; 0 of all else."""
    found = _NUMBER.fullmatch(latex)
    whole, _, decimals = ((found and found[2]) or "").partition(".")
    if not decimals or len((whole + decimals).lstrip("0")) < SIGNIFICANT_DIGITS:
        return Fraction(0)
    return Fraction(10) ** (int(found[3] or 0) - len(decimals)) / 2


class _Grammar(_Latex2Sympy):
    """The grammar with products for what stands side by side; its own takes 2(3) for 2 + 3, as a mixed number."""

    def convert_postfix_list(self, arr, i=0):
        if i < len(arr) - 1 and isinstance(first := self.convert_postfix(arr[i]), sympy.Integer):
            return self.mul_flat(first, self.convert_postfix_list(arr, i + 1))
        return super().convert_postfix_list(arr, i)


@lru_cache(4096)
def parse(latex: str, is_complex: bool = False) -> sympy.Expr | None:
    """A SymPy expression of what the text says, not evaluated; None if it cannot be read."""
    if re.search(r"\\text|\\infty|mod|\d_|\d \d", latex):  # of infinity the grammar makes numbers that are all equal
        return None
    if (number := as_fraction(latex)) is not None:
        return sympy.Rational(number.numerator, number.denominator)
    for pattern, meant in _MEANT.items():
        latex = re.sub(pattern, meant, latex)
    try:
        grammar = _Grammar(is_real=not is_complex, config=ConversionConfig(lowercase_symbols=False))
        expression = grammar.parse(normalize_latex(latex, _NORMAL))
    except Exception:  # the grammar does not know it
        return None
    if not isinstance(expression, sympy.Expr) or expression.has(sympy.zoo, sympy.nan, sympy.oo):  # 1/0 is not 2/0
        return None
    functions = {function: sympy.Symbol(str(function)) for function in expression.atoms(AppliedUndef)}
    return expression.xreplace(functions | ({sympy.Symbol("i", real=False): sympy.I} if is_complex else {}))


def is_tame(expression: sympy.Expr) -> bool:
    """Whether an expression can be computed in reasonable time and space: 9^9^9^9, 10^9! and sums cannot."""
    for count, node in enumerate(sympy.preorder_traversal(expression), start=1):
        if count > LARGEST_SIZE or isinstance(node, _UNBOUNDED):
            return False
        if isinstance(node, _FACTORIALS) and any(_bits(x) > math.log2(LARGEST_ARGUMENT) for x in node.args):
            return False
        if isinstance(node, (sympy.Pow, sympy.exp)) and _bits(node) > LARGEST_BITS:
            return False
    return True


def _bits(node) -> float:
    """An upper estimate of a number's size, log2 |x|, found without computing it; a variable is less than 4."""
    if isinstance(node, sympy.Rational):
        return float(max(abs(int(node.p)).bit_length(), int(node.q).bit_length()))
    if isinstance(node, sympy.Pow):
        size = min(abs(int(node.exp)), 10**9) if node.exp.is_Integer else 2.0 ** min(_bits(node.exp), 100.0)
        return max(1.0, _bits(node.base)) * size
    if isinstance(node, (*_FACTORIALS, sympy.exp)):
        return 16.0 * 2.0 ** min(_bits(node.args[0]), 100.0)
    if isinstance(node, sympy.Mul):
        return sum(map(_bits, node.args))
    return max(map(_bits, node.args), default=2.0) + len(node.args)


def same_expression(first: str, second: str) -> bool:
    """Whether two expressions in LaTeX are equal. A constant may be a decimal, rounded rightly, of enough digits."""
    is_complex = should_treat_as_complex(first) or should_treat_as_complex(second)
    a, b = (parse(text, is_complex) for text in (first, second))
    if a is None or b is None:
        return False
    if a == b or not (is_tame(a) and is_tame(b)):
        return sympy.srepr(a) == sympy.srepr(b)  # which orders terms and factors
    points = list(_values((a, b), is_complex))
    error = max(rounding_error(first), rounding_error(second))
    if error and not (a.free_symbols or b.free_symbols):
        return any(abs(x - y) <= sympy.Rational(error) for x, y in points)
    return bool(points) and all(_close(x, y) for x, y in points)


def same_equation(first: tuple[str, ...], second: tuple[str, ...], is_order: bool) -> bool:
    """Whether two equations say the same: left less right is the same up to a factor, positive for an order."""
    sides = [parse(text) for text in (*first, *second)]
    if any(side is None or not is_tame(side) for side in sides):
        return False
    one, other = sides[0] - sides[1], sides[2] - sides[3]
    factors = [a / b for a, b in _values((one, other), is_complex=False) if a != 0 and b != 0]
    is_same = len(factors) > 1 and all(_close(factor, factors[0]) for factor in factors)
    return is_same and bool(factors[0] > 0 or not is_order) and one.free_symbols == other.free_symbols


def _values(expressions: tuple, is_complex: bool) -> Iterator[tuple]:
    """The expressions' values at random points where all can be computed and, unless complex, are real."""
    names = sorted(set().union(*(expression.free_symbols for expression in expressions)), key=str)
    rng = random.Random(0)
    for point in range(POINTS if names else 1):
        sizes = [sympy.Rational(rng.randrange(50, 300), 101) for _ in names]
        at = {name: size if point < 2 else size * rng.choice((1, -1)) for name, size in zip(names, sizes, strict=True)}
        values = [expression.doit().evalf(DIGITS, subs=at) for expression in expressions]
        noise = {x: sympy.Integer(0) for value in values for x in value.atoms(sympy.Float) if x._prec == 1}  # no digit
        values = [value.xreplace(noise) for value in values]
        if all(x.is_number and x.is_finite and (is_complex or x.is_real or not names) for x in values):
            yield tuple(values)


def _close(a, b) -> bool:
    return bool(abs(a - b) <= (abs(a) + abs(b)) * sympy.Float(10, DIGITS) ** -30)
