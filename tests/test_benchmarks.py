"""Benchmarks by name and from files."""

import json
from pathlib import Path

import pytest

from tasks.benchmarks import EMBEDDED_PROBLEMS, HUB_BENCHMARKS, load_benchmark, problem_ids
from tasks.errors import UsageError
from tasks.task import Example
from tests.conftest import ROOT

COLUMNS = ("problem", "answer")


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i}+1", "answer": i + 1}) + "\n" for i in range(3)))
    return path


def test_a_file_is_a_benchmark_named_after_it_or_as_one_likes(file):
    assert load_benchmark(str(file), *COLUMNS).name == "mine"
    named = load_benchmark(f"aime24={file}", *COLUMNS)
    assert named.name == "aime24"
    assert named.examples == [Example("0+1", "1"), Example("1+1", "2"), Example("2+1", "3")]


def test_the_embedded_benchmark_is_the_held_out_split():
    from tasks.arithmetic.problems import is_held_out

    examples = load_benchmark("arithmetic", *COLUMNS).examples
    assert len(examples) == EMBEDDED_PROBLEMS
    assert all(is_held_out(example.question) for example in examples)


@pytest.mark.parametrize("asked_for", ["aime2024", "mine=", "arithmetic=x.jsonl", "", "missing.jsonl"])
def test_what_there_is_not_is_refused(asked_for):
    with pytest.raises(UsageError, match="--benchmark"):
        load_benchmark(asked_for, *COLUMNS)


ON_THE_HUB = {
    "aime24": ("HuggingFaceH4/aime_2024", "problem", "answer"),
    "amc23": ("math-ai/amc23", "question", "answer"),
    "math500": ("HuggingFaceH4/MATH-500", "problem", "answer"),
    "minerva": ("math-ai/minervamath", "question", "answer"),
    "olympiad_bench": ("math-ai/olympiadbench", "question", "final_answer"),
}


def test_a_name_is_a_set_with_columns_of_its_own_and_all_else_has_those_asked_for(file, monkeypatch):
    read = []
    monkeypatch.setattr("tasks.benchmarks.read_questions", lambda *how: read.append(how) or [])
    assert set(ON_THE_HUB) == set(HUB_BENCHMARKS)
    for name, where in ON_THE_HUB.items():
        assert load_benchmark(name, "q", "a").name == name
        assert read.pop() == (*where, "test", "--benchmark")
    for source in (str(file), "some/set"):
        load_benchmark(f"mine={source}", "q", "a")
        assert read.pop() == (source, "q", "a", "test", "--benchmark")


def test_a_hub_that_does_not_answer_is_said_with_the_way_out(monkeypatch):
    import huggingface_hub

    def no_answer(self, *args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", no_answer)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in HUB_BENCHMARKS:
        with pytest.raises(UsageError, match=rf"{name}=FILE\.jsonl"):
            load_benchmark(name, *COLUMNS)


def test_ids_are_of_the_problem_and_not_of_its_place():
    first, second = Example("1+1", "2"), Example("2+2", "4")
    ids = problem_ids([first, second, first])
    assert len(set(ids)) == 3
    assert ids[2] == f"{ids[0]}-2"
    assert problem_ids([second, first]) == ids[1::-1]
    assert problem_ids([Example("1+1", "3")]) != ids[:1]


@pytest.mark.parametrize("name", ["aime", "amc", "math", "minerva", "olympiad_bench"])
def test_the_authors_copies_of_the_benchmarks_are_read(name):
    path = next((p for p in (ROOT.parent / "shared", ROOT / "shared") if p.exists()), ROOT) / f"data/eval/{name}.jsonl"
    if not path.exists():
        pytest.skip("the authors' files are not here")  # nor in the repository: they are theirs
    rows = path.read_text().splitlines()
    assert len(load_benchmark(str(path), *COLUMNS).examples) == len(rows)
