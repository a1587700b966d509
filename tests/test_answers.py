"""Where an answer is found, and what counts as the same answer."""

import itertools
import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.answers.algebra import (
    LARGEST_SIZE,
    _close,
    as_fraction,
    is_tame,
    parse,
    rounding_error,
)
from tasks.answers.equality import ALTERNATIVES, grade_answer, is_equal
from tasks.answers.text import squeeze, tidy
from tasks.answers.values import read
from tasks.boxed import extract_answer, last_boxed
from tasks.datasets import reference_text
from tests.conftest import ROOT

DATA = Path(__file__).parent / "data"
SHARED = ROOT.parent / "shared" / "data"
PAIRS = [
    line.split("\t")
    for line in (DATA / "answer_pairs.tsv").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{7}", "7"),
        (r"first \boxed{1}, then \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} and an unclosed \boxed{2", "1"),
        (r"\boxed {3}", "3"),
        (r"\boxed{}", ""),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\begin{pmatrix}1\\{2}\end{pmatrix}}", r"\begin{pmatrix}1\\{2}\end{pmatrix}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"} } \boxed{4} {", "4"),
        ("no box", None),
        (r"\boxed{", None),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


def last_boxed_by_definition(text):
    """From each box, the last one first, walk to where it closes. Quadratic, and easy to believe."""
    for start in range(len(text) - 1, -1, -1):
        if text.startswith("\\boxed{", start) and not (start and text[start - 1] == "\\"):
            depth, i = 0, start + 6
            while i < len(text):
                if text[i] == "\\" and text[i : i + 2] in ("\\\\", "\\{", "\\}"):
                    i += 2
                    continue
                depth += (text[i] == "{") - (text[i] == "}")
                if depth == 0:
                    return text[start + 7 : i]
                i += 1
    return None


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "\\{", "\\}", "1", " ", "a"]), max_size=25).map("".join))
def test_last_boxed_agrees_with_its_definition(text):
    assert last_boxed(text) == last_boxed_by_definition(text)


@pytest.mark.parametrize(
    ("response", "place", "answer"),
    [
        (r"<think>..</think> <answer> 7 </answer>", "answer-tag", "7"),
        (r"..</think><answer>so \boxed{8}</answer>", "answer-tag", "8"),
        (r"..</think><answer>1</answer> <answer>2</answer>", "answer-tag", "2"),
        ("..</think><answer> 7", "answer-tag", None),
        ("..</think> 7</answer>", "answer-tag", None),
        ("<answer>7</answer>", "answer-tag", None),
        ("<answer>7</answer></think>", "answer-tag", None),
        (r"\boxed{7}", "answer-tag", None),
        (r"\boxed{9}", "boxed", "9"),
        (r"maybe \boxed{1}</think> it is \boxed{2}", "after-think", "2"),
        (r"maybe \boxed{1}</think> it is 2", "after-think", None),
        (r"\boxed{1}", "after-think", None),
        (r"a</think>b</think>\boxed{1}", "after-think", None),
    ],
)
def test_where_an_answer_is_read(response, place, answer):
    assert extract_answer(response, place) == answer


def test_a_box_is_where_an_answer_is_read_unless_told():
    assert extract_answer(r"\boxed{9}") == "9"


def test_there_is_no_other_place():
    with pytest.raises(ValueError, match="answer-tag, not in 'box'"):
        extract_answer("", "box")


def test_there_are_enough_pairs_of_each_kind():
    assert len(PAIRS) >= 500
    assert sum(pair[0] == "0" for pair in PAIRS) > 200


@pytest.mark.parametrize(("same", "answer", "reference"), PAIRS, ids=[" ~ ".join(p[1:]) for p in PAIRS])
def test_pairs_that_a_teacher_would_call_equal_or_not(same, answer, reference):
    assert is_equal(answer, reference) == (same == "1")
    assert is_equal(reference, answer) == (same == "1"), "either way round"


def test_any_alternative_of_a_reference_is_right():
    reference = ALTERNATIVES.join(["6630.65", "6630"])
    assert [grade_answer(a, reference) for a in ("6630", "6630.65", "6631")] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("text", [pair[i] for pair in PAIRS[::3] for i in (1, 2)])
def test_tidying_twice_changes_nothing_more(text):
    assert squeeze(tidy(tidy(text))) == squeeze(tidy(text))


def combined(parts):
    """LaTeX of an operation, and its value by Python's fractions; what has none, or a large one, is a sum instead."""
    sign, (left, a), (right, b) = parts
    if sign == "/" and b:
        return rf"\frac{{{left}}}{{{right}}}", a / b
    if sign == "*":
        return f"({left})({right})", a * b
    if sign == "-":
        return f"{left}-({right})", a - b
    if sign == "^" and b in (2, 3):
        return f"({left})^{{{b}}}", a**b
    return f"({left})+({right})", a + b


NUMBERS = st.recursive(
    st.integers(0, 12).map(lambda n: (str(n), Fraction(n))),
    lambda inner: st.tuples(st.sampled_from("+-*/^"), inner, inner).map(combined),
    max_leaves=6,
)


@settings(max_examples=60)
@given(NUMBERS)
def test_arithmetic_is_that_of_fractions(number):
    latex, value = number
    assert is_equal(latex, f"{value.numerator}/{value.denominator}")
    assert not is_equal(latex, f"{value.numerator + value.denominator}/{value.denominator}")
    assert not is_equal(f"({latex})x", f"({value + Fraction(1, 10**9)})x")


@pytest.mark.parametrize(
    ("latex", "number"),
    [
        ("1" * 400, int("1" * 400)),
        ("0.5", Fraction(1, 2)),
        (r"2\cdot10^{9999}", Fraction(2 * 10**9999)),
        (r"2\cdot10^{10000}", None),
        (r"+\frac{-3}{6}", Fraction(-1, 2)),
        (r"-7/2", Fraction(-7, 2)),
        (r"\frac{1}{0}", None),
        ("1/0", None),
        ("x", None),
    ],
)
def test_plain_numbers_are_exact_and_large_ones_left_alone(latex, number):
    assert as_fraction(latex) == number


@pytest.mark.parametrize(
    ("decimal", "error"),
    [
        ("3.141592654", Fraction(1, 2 * 10**9)),
        ("3.14159265", 0),
        ("0.03333333333", Fraction(1, 2 * 10**11)),
        ("0.0333333333", 0),
        (r"-2.314814814\cdot10^{-3}", Fraction(1, 2 * 10**12)),
        (r"2.314814814\cdot10^{3}", Fraction(1, 2 * 10**6)),
        ("3141592654", 0),
        ("x", 0),
    ],
)
def test_a_decimal_of_ten_digits_stands_for_what_rounds_to_it(decimal, error):
    assert rounding_error(decimal) == error


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        ("2^{8191}x", "3^{16384}x"),
        ("2047!", "2048!"),
        (r"\binom{2047}{n}", r"\binom{2048}{n}"),
        ("x^{x^{2}}", "x^{x^{x^{x}}}"),
        ("9^{9^{3}}", "9^{9^{9}}"),
        (r"e^{40}", r"e^{e^{e^{9}}}"),
        ("(x+1)^{4095}", "(x+1)^{16384}"),
        (
            "+".join(f"x_{{{n}}}" for n in range(1, LARGEST_SIZE)),
            "+".join(f"x_{{{n}}}" for n in range(1, LARGEST_SIZE + 1)),
        ),
        ("n^{2}", r"\sum_{k=1}^{n}k"),
        ("n", r"\int_0^1 x dx"),
        (r"\frac{1}{3^{8191}}", r"\frac{1}{3^{32768}}"),
    ],
)
def test_what_is_too_large_is_not_computed(within, beyond):
    assert [is_tame(parse(latex)) for latex in (within, beyond)] == [True, False]


def test_expressions_are_compared_to_thirty_digits():
    one = sympy.Float(1, 50)
    for size in (one, one * 10**40, one / 10**60):
        assert _close(size, size * (1 + one * 19 / 10**31))
        assert not _close(size, size * (1 + one * 21 / 10**31))
    assert is_equal(r"\sqrt{2}\sqrt{3}-\sqrt{6}", "0")
    assert is_equal(r"\sqrt{2}\sqrt{3}-\sqrt{6}+1", "1")


def test_at_most_three_signs_are_chosen():
    assert [len(read(r"\pm1" * signs).parts) for signs in (1, 2, 3)] == [2, 4, 8]
    assert read(r"\pm1" * 4).kind == "expression"


def test_names_that_the_grammar_makes_one_are_told_apart():
    pairs = [("x", "X"), ("x+X_1", "x+X_2"), ("e^X", "e^x"), (r"\delta", r"\Delta"), ("y", "y'"), ("y'", "y''")]
    for a, b in [*pairs, (r"\gamma", "0.5772156649015329")]:
        parsed = [parse(text) for text in (a, b)]
        assert None not in parsed and parsed[0] != parsed[1]


def references(file):
    return [json.loads(line)["answer"] for line in file.read_text().splitlines()]


def is_zero_matrix(text):
    return "matrix" in text and not re.search(r"[1-9]", text)


def excerpts():
    real = [SHARED / "sanity_r1d_1.5b.jsonl", *sorted((SHARED / "eval").glob("*.jsonl"))]
    return [DATA / "references.jsonl", *(real if SHARED.is_dir() else [])]


@pytest.mark.parametrize("file", excerpts(), ids=lambda file: file.stem)
def test_every_reference_is_its_own_answer_however_it_is_wrapped_and_never_its_negative(file):
    texts = [reference_text(answer) for answer in references(file)]
    for own, text in {(part.strip().strip("$"), whole) for whole in texts for part in whole.split(ALTERNATIVES)}:
        assert [grade_answer(form.format(own), text) for form in ("{}", "{{{}}}", "{{{{ {} }}}}", "${}$")] == [1.0] * 4
        if not re.match(r"0\b(?!\.0*[1-9])", own) and "=0" not in own.replace(" ", "") and not is_zero_matrix(own):
            assert not grade_answer(f"-{own}", text), own


def test_references_are_not_each_others_answers():
    texts = sorted({reference_text(answer) for answer in references(DATA / "references.jsonl")})
    equal = {(a, b) for a, b in itertools.combinations(texts, 2) if grade_answer(a, b)}
    assert equal <= {(r"\frac{27}{25}", "1.08")}


@pytest.mark.parametrize("file", excerpts(), ids=lambda file: file.stem)
def test_every_reference_is_its_own_answer_and_not_its_neighbours(file):
    texts = [reference_text(answer) for answer in references(file)]
    own = [text.split(ALTERNATIVES)[-1] for text in texts]
    wrong = [text for text, answer in zip(texts, own, strict=True) if not grade_answer(answer, text)]
    assert not wrong
    neighbours = zip(own, texts[1:] + texts[:1], strict=True)
    confused = [(a, b) for a, b in neighbours if a not in b.split(ALTERNATIVES) and grade_answer(a, b)]
    assert set(confused) <= EQUAL_NEIGHBOURS


EQUAL_NEIGHBOURS = {("60", r"60^\circ"), ("5", "x=5")}
"""different problems of the sets that stand next to each other and have the same answer, written differently"""
