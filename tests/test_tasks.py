"""Tasks: problems, prompts, their order, mixtures, the registry."""

import random
import subprocess
import sys

import numpy as np
import pytest

from learners.command_line import parse
from tasks.arithmetic.model import CHECKPOINT, build_tokenizer
from tasks.arithmetic.problems import LEVELS, draw, generate, is_held_out
from tasks.errors import UsageError
from tasks.mixture import epoch_counts
from tasks.prompts import Prompt, PromptStream, build_prompts, load_tokenizer
from tasks.registry import TASKS
from tasks.task import Example
from tasks.templates import TEMPLATES
from tests.conftest import ROOT


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


def mixed_prompts(sizes, weights):
    return [
        Prompt(f"{source}/{i}", "", [0], source, weight)
        for source, (size, weight) in enumerate(zip(sizes, weights, strict=True))
        for i in range(size)
    ]


def test_an_epoch_of_a_mixture_has_each_prompt_at_most_once_and_the_shares_of_the_weights():
    stream = PromptStream(mixed_prompts([30, 100], [1.0, 2.0]), batch_size=9, seed=3)
    assert stream.steps_per_epoch == 10
    epochs = [[p for step in range(1, 11) for p in stream.batch(10 * e + step)] for e in range(4)]
    for epoch in epochs:
        assert len({p.question for p in epoch}) == 90
        assert sum(p.source == 0 for p in epoch) == 30
        assert {p.source for p in epoch[:20]} == {0, 1}, "the sources are shuffled together"
    assert {p.question for p in epochs[0]} != {p.question for p in epochs[1]}, "an epoch draws anew"
    seen = {p.question for step in range(1, 200) for p in stream.batch(step)}
    assert len(seen) == 130
    again = PromptStream(mixed_prompts([30, 100], [1.0, 2.0]), batch_size=9, seed=3)
    assert [again.batch(step) for step in (1, 17)] == [stream.batch(step) for step in (1, 17)]


def test_without_weights_a_mixture_is_all_of_its_prompts_in_the_order_of_one_dataset():
    alone = PromptStream(mixed_prompts([40], [None]), batch_size=8, seed=1)
    mixed = PromptStream(mixed_prompts([30, 10], [None, None]), batch_size=8, seed=1)
    indices = [[int(np.flatnonzero([p is q for q in s.prompts])[0]) for p in s.batch(2)] for s in (alone, mixed)]
    assert indices[0] == indices[1]


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        ([100, 1000], [1, 2], [100, 200]),
        ([100, 50], [1, 1], [50, 50]),
        ([10, 10], [0.3, 0.1], [10, 3]),
        ([7, 7, 7], [1, 1, 1], [7, 7, 7]),
    ],
)
def test_epoch_counts(sizes, weights, counts):
    assert epoch_counts(sizes, weights) == counts


@pytest.fixture
def jsonl(tmp_path):
    def write(name, *rows):
        import json

        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        return str(tmp_path / name)

    return write


def test_data_takes_one_or_several_sources_in_every_spelling():
    assert parse(["--task", "math", "--data", "a"]).task.data == ("a",)
    assert parse(["--task=math", "--data=a"]).task.data == ("a",)
    several = parse(["--task", "math", "--data", "a", "b", "--data-weights", "2", "1"])
    assert several.to_dict()["task"]["data"] == ("a", "b")
    assert several.task.data_weights == (2.0, 1.0)
    with pytest.raises(UsageError, match="give each a weight"):
        parse(["--task", "math", "--data", "a", "b", "--data-weights", "2"])
    with pytest.raises(UsageError, match="must all be greater than 0"):
        parse(["--task", "math", "--data", "a", "b", "--data-weights", "2", "0"])


def test_math_reads_mixes_and_grades(jsonl):
    first = jsonl("a.jsonl", {"problem": "1/2+1/2?", "answer": 1.0}, {"problem": "x?", "answer": ["2\n", "3"]})
    second = jsonl("b.jsonl", {"problem": "9?", "answer": "9"})
    options = ["--task", "math", "--data", first, second, "--data-weights", "1", "3", "--eval-data", second]
    task = TASKS["math"].build(parse(options))
    try:
        assert task.name == "math"
        assert [(e.question, e.source, e.weight) for e in task.train][1:] == [("x?", 0, 1.0), ("9?", 1, 3.0)]
        assert [e.question for e in task.test] == ["9?"]
        responses = [r"\boxed{\frac{2}{2}}", r"\boxed{3}", r"\boxed{8}"]
        assert task.grade(responses, [e.answer for e in task.train]) == [1.0, 1.0, 0.0]
        assert task.timeouts() == 0
    finally:
        task.close()


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "1+1?", "answer": "2", "accuracy": 0.5},
        {"question": "1+1?", "answer": "2"},
        {"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "2"}},
    ],
)
def test_sanity_reads_a_builders_folder_and_the_usual_columns(tmp_path, jsonl, row):
    jsonl("problems.jsonl", row)
    (tmp_path / "card.json").write_text('{"template": "qwen_math", "model": "m"}')
    config = parse(["--task", "sanity", "--data", str(tmp_path)])
    assert config.task.prompt_template == "qwen_math"
    task = TASKS["sanity"].build(config)
    task.close()
    assert task.name == "sanity"
    assert [(e.question, e.answer) for e in task.train] == [("1+1?", "2")]
    assert task.template is TEMPLATES["qwen_math"]


def test_sanity_reads_what_is_trained_on_and_asks_for_no_columns_but_the_usual(monkeypatch):
    read = []
    monkeypatch.setattr("tasks.datasets.read_questions", lambda *how, others: read.append((how, others)) or [])
    monkeypatch.setattr("tasks.mixture.mix", lambda sets, weights: [Example("1+1", "2")])
    TASKS["sanity"].build(parse(["--task", "sanity", "--data", "some/set"])).close()
    usual = [("problem", "answer"), ("question", "answer"), ("prompt", "reward_model.ground_truth")]
    assert read == [(("some/set", "problem", "answer", "train", "--data"), usual)]


def test_sanity_without_a_card_has_the_authors_template(jsonl):
    assert parse(["--task", "sanity", "--data", "some/set"]).task.prompt_template == "r1_distill_qwen"


def test_reasoning_gym_scores_with_the_generators_own_scorer():
    pytest.importorskip("reasoning_gym")
    import json

    options = ["--train-problems", "20", "--max-eval", "10", "--eval-steps", "5"]
    task = TASKS["reasoning-gym"].build(parse(["--task", "reasoning-gym", "--data", "simple_equations", *options]))
    try:
        assert task.name == "reasoning-gym"
        assert len(task.train) == 20 and not {e.question for e in task.train} & {e.question for e in task.test}
        reference = task.train[3].answer
        right = json.loads(reference)["answer"]
        responses = [f"<answer>{right}</answer>", f"<answer>{int(right) + 1}</answer>", f"{right}"]
        assert task.grade(responses, [reference] * 3) == [1.0, 0.0, 0.0]
    finally:
        task.close()
    for generator, sentence in (("no_such", "is no generator"), ("countdown", "as Python code")):
        with pytest.raises(UsageError, match=sentence):
            TASKS["reasoning-gym"].build(parse(["--task", "reasoning-gym", "--data", generator]))


def test_generators_that_run_answers_as_code_are_found():
    pytest.importorskip("reasoning_gym")
    from reasoning_gym.factory import DATASETS

    from tasks.reasoning_gym_task import evaluates_answers

    found = {name for name in DATASETS if evaluates_answers(name)}
    assert found >= {"countdown", "puzzle24", "n_queens", "polynomial_multiplication", "string_insertion"}
    assert "simple_equations" not in found and len(found) < 20


def test_the_registry_imports_nothing_heavy():
    code = (
        "import sys, tasks.registry\nheavy = {'torch', 'datasets', 'transformers', 'sympy', 'math_verify', 'pyarrow', "
        "'reasoning_gym'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
