"""Numbers, exactly, and expressions: read by math-verify's grammar, compared where they can be computed.

The grammar (https://github.com/huggingface/latex2sympy2_extended) builds SymPy objects and evaluates nothing as code.
Its comparison, `math_verify.verify`, is not used: it pays for wrong answers. It takes 15 digits for equality (1e-20 x
is 2e-20 x), solves equations (so that the question is its own answer), and takes (1, 2) for {1, 2}.
"""

import math
import random
import re
from collections.abc import Iterator
from functools import lru_cache

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, _Latex2Sympy, normalize_latex
from math_verify.grader import should_treat_as_complex
from sympy.core.function import AppliedUndef

SIGNIFICANT_DIGITS = 10  # a decimal with as many stands for what rounds to it: 0.0833333333333 for 1/12
LARGEST_BITS = 2**15  # of a number that is computed
LARGEST_SIZE = 400  # nodes
DIGITS, POINTS = 50, 10
_NUMBER = re.compile(
    r"([-+]?)(?:(\d+(?:\.\d+)?)(?:\\cdot10\^\{([-+]?\d{1,4})\})?|(?:\\frac\{)?(-?\d+)(?:\}\{|/)(-?\d+)\}?)"
)
_NORMAL = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none")
_MEANT = {  # what the grammar reads otherwise, and what it is made to read
    r"\\gamma(?![a-zA-Z])": "g_{77}",  # a name, not Euler's constant
    r"(\\[a-zA-Z]+)|I(?!\()": lambda m: m[1] or "\\iota ",  # a name, not the root of -1
    r"(?<=\^)T|(?<=\^\{)T(?=\})": "{T_{77}}",  # e^T is no transpose
    r"([a-zA-Z])('+)": lambda m: f"{m[1]}_{{8{len(m[2])}}}",  # y' is not y
    r"\^\\circ(?![a-zA-Z])": r"\\cdot\\frac{\\pi}{180}",
    r"(?<=\\pi)\(": r"\\cdot(",  # pi is no function
    r"(?<![\d.])(\d+)\.(\d{1,60})(?![\d.])": lambda m: f"\\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}}",  # exactly
}
_UNREAD = re.compile(  # infinities, all equal there; x2, 1/2x, f(x+1) and 1'000, which are read in more than one way
    r"\\text|\\infty|mod|dots|\\[pm]{2}|\d_|\d \d|(?<![a-zA-Z\\])[a-zA-Z]\d|\d'|'\d"
    r"|/\d+(?:[a-zA-Z(]|\\(?!cdot|[pm]{2}|r))|(?<![a-zA-Z\\])[fgh]\((?!\w+\))"
)
_UNBOUNDED = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)


def as_fraction(latex: str) -> sympy.Rational | None:
    """The number that a squeezed text is, or None: an integer, a decimal, a fraction or scientific notation."""
    if (found := _NUMBER.fullmatch(latex)) is None or int(found[5] or 1) == 0:
        return None
    size = sympy.Rational(found[2] or found[4]) * sympy.Rational(10) ** int(found[3] or 0) / int(found[5] or 1)
    return -size if found[1] == "-" else size


def rounding_error(latex: str) -> sympy.Rational:
    """Half a unit of the last place of a decimal that has at least `SIGNIFICANT_DIGITS`; 0 of all else."""
    found = _NUMBER.fullmatch(latex)
    whole, _, decimals = ((found and found[2]) or "").partition(".")
    if not decimals or len((whole + decimals).lstrip("0")) < SIGNIFICANT_DIGITS:
        return sympy.Rational(0)
    return sympy.Rational(10) ** (int(found[3] or 0) - len(decimals)) / 2


class _Grammar(_Latex2Sympy):
    """The grammar with products for what stands side by side; its own takes 2(3) for 2 + 3, as a mixed number."""

    def convert_postfix_list(self, arr, i=0):
        if i < len(arr) - 1 and isinstance(first := self.convert_postfix(arr[i]), sympy.Integer):
            return self.mul_flat(first, self.convert_postfix_list(arr, i + 1))
        return super().convert_postfix_list(arr, i)


@lru_cache(4096)
def parse(latex: str, is_complex: bool = False) -> sympy.Expr | None:
    """A SymPy expression of what the text says, not evaluated; None if it cannot be read."""
    if _UNREAD.search(latex):
        return None
    if (number := as_fraction(latex)) is not None:
        return number
    for pattern, meant in _MEANT.items():
        latex = re.sub(pattern, meant, latex)
    try:
        grammar = _Grammar(is_real=not is_complex, config=ConversionConfig(lowercase_symbols=False))
        expression = grammar.parse(normalize_latex(latex, _NORMAL))
        if not isinstance(expression, sympy.Expr) or expression.has(sympy.zoo, sympy.nan, sympy.oo):  # 1/0 is not 2/0
            return None
        names = {function: sympy.Symbol(str(function)) for function in expression.atoms(AppliedUndef)}
        return expression.xreplace(names | ({sympy.Symbol("i", real=False): sympy.I} if is_complex else {}))
    except Exception:  # the grammar does not know it, or SymPy refuses it
        return None


def is_tame(expression: sympy.Expr) -> bool:
    """Whether an expression can be computed in reasonable time and space: 9^9^9^9, 10^9! and sums cannot."""
    return sum(1 for _ in sympy.preorder_traversal(expression)) <= LARGEST_SIZE and _bits(expression) <= LARGEST_BITS


def _bits(node) -> float:
    """About the bits of what is computed on the way to a number, found without computing it; a variable has 2."""
    if isinstance(node, _UNBOUNDED):
        return math.inf
    if isinstance(node, sympy.Rational):
        return float(max(int(node.p).bit_length(), int(node.q).bit_length()))
    sizes = [_bits(argument) for argument in node.args]
    if isinstance(node, sympy.Pow):
        return max(sizes[0], 1.0) * 2.0 ** (min(sizes[1], 99.0) - 1)
    if isinstance(node, (sympy.factorial, sympy.binomial, sympy.gamma, sympy.exp)):
        return 16.0 * 2.0 ** min(sizes[0], 99.0)
    return sum(sizes) if isinstance(node, sympy.Mul) else max(sizes, default=2.0) + len(sizes)


def same_expression(first: str, second: str) -> bool:
    """Whether two expressions in LaTeX are equal. A constant may be a decimal, rounded rightly, of enough digits."""
    is_complex = should_treat_as_complex(first) or should_treat_as_complex(second)
    a, b = (parse(text, is_complex) for text in (first, second))
    if a is None or b is None:
        return False
    error = max(rounding_error(first), rounding_error(second))
    if a.is_Rational and b.is_Rational:
        return bool(abs(a - b) <= error)
    if a == b or not (is_tame(a) and is_tame(b)):
        return sympy.srepr(a) == sympy.srepr(b)  # which orders terms and factors
    are_close = (bool(abs(x - y) <= error) or _close(x, y) for x, y in _values((a, b), is_complex))
    return next(are_close, False) and all(are_close)


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
    """The expressions' values at points, whole ones first, where all can be computed and, unless complex, are real."""
    names = sorted(set().union(*(expression.free_symbols for expression in expressions)), key=str)
    rng, computed = random.Random(0), [expression.doit() for expression in expressions]
    for point in range(POINTS if names else 1):
        sizes = [sympy.Rational(rng.randrange(50, 300), 101) if point > 3 else sympy.Integer(point + 1) for _ in names]
        at = {name: size * rng.choice((1, 1 - 2 * (point > 5))) for name, size in zip(names, sizes, strict=True)}
        values = [(value.subs(at) if point < 4 else value).evalf(DIGITS, subs=at) for value in computed]
        noise = {x: sympy.Integer(0) for value in values for x in value.atoms(sympy.Float) if x._prec == 1}  # no digit
        values = [value.xreplace(noise) for value in values]
        if all(x.is_number and x.is_finite and (is_complex or x.is_real or not names) for x in values):
            yield tuple(values)


def _close(a, b) -> bool:
    return bool(abs(a - b) <= (abs(a) + abs(b)) * sympy.Float(10, DIGITS) ** -30)
