"""Tasks: problems, prompts, datasets, templates and rewards."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.arithmetic.model import CHECKPOINT, build_tokenizer
from tasks.arithmetic.problems import LEVELS, draw, generate, is_held_out
from tasks.boxed import last_boxed
from tasks.datasets import read_questions
from tasks.errors import UsageError
from tasks.math_reward import MathGrader, extract_answer
from tasks.prompts import PromptStream, build_prompts, load_tokenizer
from tasks.task import Example
from tasks.templates import TEMPLATES


def test_problems_are_additions_of_their_level():
    for problem in generate(300, seed=3):
        first, second = problem.question.rstrip("=").split("+")
        assert int(first) + int(second) == int(problem.answer)
        assert sorted(map(len, (first, second))) == sorted(LEVELS[problem.level])


def test_problems_are_a_function_of_the_seed_and_splits_never_meet():
    assert generate(50, seed=1) == generate(50, seed=1)
    assert generate(50, seed=1) != generate(50, seed=2)
    train = {p.question for seed in range(3) for p in generate(1000, seed)}
    test = {p.question for seed in range(3) for p in generate(200, seed, "test")}
    assert not train & test
    assert len({p.question for p in generate(2048, 0)}) == 2048


def test_generate_refuses_what_is_not_there():
    with pytest.raises(ValueError, match="no such level"):
        generate(1, 0, levels=(9,))
    with pytest.raises(ValueError, match="fewer than"):
        generate(5000, 0, "test", levels=(1,))
    with pytest.raises(ValueError, match="split"):
        generate(1, 0, split="dev")


def test_about_a_tenth_is_held_out():
    rng = random.Random(0)
    share = sum(is_held_out(draw(rng, 3).question) for _ in range(4000)) / 4000
    assert 0.08 < share < 0.12


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{7}", "7"),
        (r"first \boxed{1}, then \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} and an unclosed \boxed{2", "1"),
        (r"\boxed{}", ""),
        ("no box", None),
        (r"\boxed{", None),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


@given(st.text(alphabet="\\boxed{}12 ", max_size=60))
def test_last_boxed_is_always_balanced(text):
    found = last_boxed(text)
    assert found is None or found.count("{") == found.count("}")


def test_tokenizer_reads_characters_and_gives_them_back():
    tokenizer = load_tokenizer(str(CHECKPOINT))
    text = "47+385=\\boxed{432}\n~"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer("é")["input_ids"] == [tokenizer.unk_token_id]
    assert build_tokenizer()(text)["input_ids"] == ids


def test_long_prompts_are_dropped_and_counted():
    tokenizer = load_tokenizer(str(CHECKPOINT))
    examples = [Example("1+1=", "2"), Example("1" * 40, "x"), Example("2+2=", "4")]
    prompts, dropped = build_prompts(examples, TEMPLATES["no"], tokenizer, max_length=8)
    assert [p.question for p in prompts] == ["1+1=", "2+2="]
    assert dropped == 1
    with pytest.raises(UsageError, match="Every prompt exceeds"):
        build_prompts(examples[1:2], TEMPLATES["no"], tokenizer, max_length=8)
    with pytest.raises(UsageError, match="no chat template"):
        build_prompts(examples, TEMPLATES["chat"], tokenizer, max_length=8)


def test_each_epoch_uses_each_prompt_at_most_once_in_a_new_order():
    prompts, _ = build_prompts(
        [Example(f"{i}+1=", str(i + 1)) for i in range(10)], TEMPLATES["no"], build_tokenizer(), 32
    )
    stream = PromptStream(prompts, batch_size=4, seed=0)
    assert stream.steps_per_epoch == 2
    epochs = [[p.question for step in (2 * e + 1, 2 * e + 2) for p in stream.batch(step)] for e in range(3)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [p.question for p in PromptStream(prompts, 4, seed=0).batch(5)] == [p.question for p in stream.batch(5)]
    assert stream.batch(1) != PromptStream(prompts, 4, seed=1).batch(1)
    with pytest.raises(UsageError, match="fewer than --rollout-batch-size"):
        PromptStream(prompts, 11, seed=0)


ROWS = [{"problem": "1+1?", "answer": 2.0}, {"problem": "2+2?", "answer": ["4\n"]}, {"problem": "", "answer": "1"}]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_read_questions_from_files(tmp_path, suffix):
    file = tmp_path / f"data.{suffix}"
    if suffix == "jsonl":
        file.write_text("\n".join(map(json.dumps, ROWS)))
    elif suffix == "json":
        file.write_text(json.dumps(ROWS))
    elif suffix == "csv":
        file.write_text("problem,answer\n1+1?,2\n2+2?,4\n,1\n")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"problem": ["1+1?", "2+2?", ""], "answer": ["2", "4", "1"]}), file)
    read = read_questions(str(file), "problem", "answer", "train", "--data")
    assert read == [Example("1+1?", "2"), Example("2+2?", "4")]


def test_read_questions_from_a_saved_dataset(tmp_path):
    import datasets

    split = {"problem": ["1+1?"], "answer": ["2"]}
    datasets.DatasetDict(train=datasets.Dataset.from_dict(split)).save_to_disk(tmp_path / "saved")
    assert read_questions(str(tmp_path / "saved"), "problem", "answer", "train", "--data") == [Example("1+1?", "2")]
    assert read_questions(str(tmp_path / "saved"), "problem", "answer", "test", "--data", optional=True) == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds no problem"),
        ('{"question": "1+1?", "answer": "2"}', "has no column 'problem'"),
        ('{"problem": "1+1?", "solution": "2"}', "has no column 'answer'"),
        ('{"problem": "1+1?", "answer": ""}', "only empty questions or answers"),
        ("not json", "cannot be read"),
    ],
)
def test_datasets_that_will_not_do(tmp_path, content, sentence):
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    with pytest.raises(UsageError, match=sentence):
        read_questions(str(file), "problem", "answer", "train", "--data")


def test_where_an_answer_is_read():
    assert extract_answer(r"<think>..</think> <answer> 7 </answer>", "answer-tag") == "7"
    assert extract_answer(r"<answer>so \boxed{8}</answer>", "answer-tag") == "8"
    assert extract_answer("<answer> 7", "answer-tag") is None
    assert extract_answer(r"\boxed{9}", "boxed") == "9"


def test_math_grader_compares_values_in_order_and_survives_hostile_answers():
    grader = MathGrader(workers=2, time_limit=3)
    try:
        responses = [r"\boxed{\frac12}", r"\boxed{3}", "none", r"\boxed{9^{9^{9^{9}}}}", r"\boxed{0.5}", r"\boxed{x+1}"]
        references = ["0.5", "4", "1", "5", "1/2", "1+x"]
        assert grader.grade(responses, references) == [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
        assert grader.grade([r"\boxed{1}"], ["1"]) == [1.0]  # the pool still works
    finally:
        grader.close()
