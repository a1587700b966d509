"""Where an answer is found, and what counts as the same answer."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.answers.equality import ALTERNATIVES, grade_answer, is_equal
from tasks.answers.text import squeeze, tidy
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
        (r"<answer>so \boxed{8}</answer>", "answer-tag", "8"),
        (r"<answer>1</answer> <answer>2</answer>", "answer-tag", "2"),
        ("<answer> 7", "answer-tag", None),
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


def test_there_are_enough_pairs_of_each_kind():
    assert len(PAIRS) >= 150
    assert sum(pair[0] == "0" for pair in PAIRS) > 80


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


def references(file):
    return [json.loads(line)["answer"] for line in file.read_text().splitlines()]


def excerpts():
    real = [SHARED / "sanity_r1d_1.5b.jsonl", *sorted((SHARED / "eval").glob("*.jsonl"))]
    return [DATA / "references.jsonl", *(real if SHARED.is_dir() else [])]


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
