"""CONTRIBUTING.md's examples, each added to a copy of the file that it names."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
EXAMPLES = {title: text.split("```")[1].removeprefix("python\n") for title, text in SECTIONS if "```python" in text}

OBJECTIVE = """
import torch
from learners.command_line import parse
from learners.objectives import OBJECTIVES, PolicyBatch
from learners.options.config import Config

assert parse(["--objective=pg-geo-tis"]).objective.tis_cap == 2.0
logp = torch.tensor([[-1.0, -2.0, 9.0], [-0.5, -0.5, -0.5]], requires_grad=True)
mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
batch = PolicyBatch(logp, torch.tensor([[-1.2, -2.2, 0.0], [-2.5, -2.5, -2.5]]), torch.tensor([1.0, -1.0]), mask)
loss, statistics = OBJECTIVES["pg-geo-tis"](batch, tis_cap=2.0)
loss.sum().backward()
weight = torch.tensor(0.2).exp()  # the other's, e^2, is truncated
torch.testing.assert_close(logp.grad, torch.tensor([[-weight, -weight, 0], [2, 2, 2]]))
assert statistics["truncated_fraction"].mean() == 0.5
"""
TASK = """
from learners.command_line import parse
from tasks.registry import TASKS

task = TASKS["reverse"].build(parse([]))
question, answer = task.train[0].question, task.train[0].answer
assert answer in question[::-1]
assert task.grade([f"so \\\\boxed{{{answer}}}", "\\\\boxed{no}"], [answer] * 2) == [1.0, 0.0]
assert not {e.question for e in task.train} & {e.question for e in task.test}
assert parse(["--task=reverse"]).task.task == "reverse"
"""
PRESET = """
from learners.command_line import parse

config = parse(["--preset=tiny-dapo"])
assert (config.objective.advantage, config.sampling.max_sampling_rounds) == ("group-std", 10)
"""
REJECTION = """
import torch
from learners.command_line import parse
from learners.objectives import REJECTIONS, PolicyBatch

assert parse(["--reject", "unlikely", "geo"]).objective.veto_below == 1e-4
log_mu = torch.tensor([[-1.0, -20.0, -20.0]])
batch = PolicyBatch(log_mu, log_mu, torch.ones(1), torch.tensor([[True, True, True]]))
assert REJECTIONS["unlikely"](batch).tolist() == [[True, False, False]]
"""
WHAT_IT_DOES = {"An objective": OBJECTIVE, "A rejection": REJECTION, "A task": TASK, "A preset": PRESET}


def test_every_example_is_run():
    assert EXAMPLES.keys() == WHAT_IT_DOES.keys()
    assert PAGE.count("```python") == len(EXAMPLES)


@pytest.mark.parametrize("title", WHAT_IT_DOES)
def test_the_example_works(title, tmp_path):
    first_line, code = EXAMPLES[title].split("\n", 1)
    assert len(code.strip().splitlines()) < 40
    for top in ("learners", "actors", "tasks"):
        shutil.copytree(ROOT / top, tmp_path / top, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / first_line.removeprefix("# ")).open("a") as file:
        file.write(code)
    subprocess.run([sys.executable, "-c", WHAT_IT_DOES[title]], cwd=tmp_path, check=True, timeout=120)


def test_the_files_that_it_names_are_there():
    made = {EXAMPLES["A task"].split("\n")[0].removeprefix("# ")}
    named = set(re.findall(r"(?:scripts|tests|learners|actors|tasks|docs)/[\w./]*\w", PAGE)) - made
    assert [name for name in named if not (ROOT / name.split("/..")[0]).exists()] == []
