"""Reading datasets: formats, the quirks of the real ones, and what is refused."""

import json
import socket
import subprocess
import sys
import threading

import pytest

from tasks.answers.equality import ALTERNATIVES
from tasks.datasets import question_text, read_questions, reference_text
from tasks.errors import UsageError
from tasks.task import Example
from tests.conftest import ROOT

ROWS = [{"problem": "1+1?", "answer": 2.0}, {"problem": "2+2?\u2028", "answer": ["4\n"]}]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_read_questions_from_files(tmp_path, suffix):
    file = tmp_path / f"data.{suffix}"
    if suffix == "jsonl":
        file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS))
    elif suffix == "json":
        file.write_text(json.dumps(ROWS))
    elif suffix == "csv":
        file.write_text("problem,answer\n1+1?,2\n2+2?,4\n")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"problem": ["1+1?", "2+2?"], "answer": ["2", "4"]}), file)
    read = read_questions(str(file), "problem", "answer", "train", "--data")
    assert read == [Example("1+1?", "2"), Example("2+2?", "4")]


def test_read_questions_from_folders(tmp_path):
    import datasets

    split = {"problem": ["1+1?"], "answer": ["2"]}
    datasets.DatasetDict(train=datasets.Dataset.from_dict(split)).save_to_disk(tmp_path / "saved")
    assert read_questions(str(tmp_path / "saved"), "problem", "answer", "train", "--data") == [Example("1+1?", "2")]
    assert read_questions(str(tmp_path / "saved"), "problem", "answer", "test", "--data", optional=True) == []


def test_columns_may_lie_within_columns(tmp_path):
    row = {"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "2", "style": "rule"}}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    read = read_questions(str(tmp_path / "a.jsonl"), "prompt", "reward_model.ground_truth", "train", "--data")
    assert read == [Example("1+1?", "2")]


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (142.0, "142"),
        (-4.0, "-4"),
        (2.5, "2.5"),
        (7, "7"),
        (["9.6\n"], "9.6"),
        (["0.01\n", "0.02\n"], f"0.01{ALTERNATIVES}0.02"),
        (["7.5 \\times 10^7", "7.5 \\times 10^7\n"], "7.5 \\times 10^7"),
        (["$\\frac{1}{2}$"], "$\\frac{1}{2}$"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}\n\n", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("He has 3 + 4 = <<3+4=7>>7.\n#### 7", "7"),
        ("We see that it is $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        (None, ""),
        ([], ""),
    ],
)
def test_references_as_the_real_sets_write_them(answer, reference):
    assert reference_text(answer) == reference


def test_the_question_of_a_chat_is_what_the_user_said():
    assert question_text([{"role": "system", "content": "s"}, {"role": "user", "content": " q "}]) == "q"
    assert question_text(None) == ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds no problem"),
        ('{"question": "1+1?", "answer": "2"}', "has no column 'problem'"),
        ('{"problem": "1+1?", "solution": "2"}', "has no column 'answer'"),
        (
            '{"problem": "1?", "answer": "2"}\n{"problem": "?", "answer": ""}',
            "1 of 2 problems have an empty 'answer'",
        ),
        ('{"problem": "1+1?", "answer": "2"}\n{"problem": "?"}', "the first is number 2"),
        ('{"problem": " ", "answer": "2"}', "have an empty 'problem'"),
        ("not json", "cannot be read"),
        ("[1, 2]", "does not hold one JSON object"),
    ],
)
def test_datasets_that_will_not_do(tmp_path, content, sentence):
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    with pytest.raises(UsageError, match=sentence) as refusal:
        read_questions(str(file), "problem", "answer", "train", "--data")
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")


def test_a_path_that_is_not_there_is_no_hub_name():
    for name in ("./x", "/a/b", "data.jsonl", "a/b/c"):
        with pytest.raises(UsageError, match="neither a file, a folder nor a hub name"):
            read_questions(name, "problem", "answer", "train", "--data")


def test_a_hub_that_does_not_answer_is_given_up_with_code_2(tmp_path):
    """The hub here is a socket that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []
        threading.Thread(target=lambda: connections.append(server.accept()), daemon=True).start()
        environment = {"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}", "HF_HUB_OFFLINE": "0"}
        arguments = ["--task", "math", "--data", "some/set", "--prompt-template", "no"]
        run = subprocess.run(
            [sys.executable, ROOT / "train.py", *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", **environment},
        )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and "use a local copy" in run.stderr
    assert connections, "it did ask"
    assert list(tmp_path.iterdir()) == []
