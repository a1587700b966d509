"""What a program says: how it ends, and how often it warns."""

import sys

import pytest

import train
from learners.command_line import parse
from learners.record.run_log import RunLog
from scripts.parts.program import run_program
from tasks.errors import NonFiniteError, UsageError


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UsageError("mend it."), 2, "program.py: mend it."),
        (NonFiniteError("not a number."), 1, "program.py: not a number."),
        (KeyboardInterrupt(), 130, "program.py: interrupted; the same command goes on from here"),
        (None, 7, ""),
    ],
)
def test_how_a_program_ends(monkeypatch, capsys, raised, code, said):
    monkeypatch.setattr(sys, "argv", ["scripts/program.py"])

    def main() -> int:
        if raised is not None:
            raise raised
        return 7

    with pytest.raises(SystemExit) as ended:
        run_program(main, goes_on=True)
    assert (ended.value.code, capsys.readouterr().err.strip()) == (code, said)


def test_a_warning_is_said_once_for_a_row_with_one_topic(capsys):
    log = RunLog.__new__(RunLog)
    log._warned_of, log._bar = "", None
    for topic in ("overflow", "overflow", "equal rewards", "", "equal rewards", "equal rewards"):
        log.warn_of(topic, f"of {topic}")
    assert capsys.readouterr().out.split("\n")[:-1] == [
        f"WARNING: of {t}" for t in ("overflow", *["equal rewards"] * 2)
    ]


@pytest.mark.parametrize(
    ("options", "eval_prompts", "engines", "expected"),
    [
        ([], 256, 1, 512),
        (["--rollout-batch-size=16"], 30, 2, 64),  # 16 x 8 responses on two engines
        (["--rollout-batch-size=16"], 43, 3, 43),  # 128 on three: none has to wait
        (["--rollout-batch-size=16", "--eval-n=32", "--eval-temperature=0.6"], 30, 4, 240),  # 30 x 32 are evaluated
        (["--rollout-batch-size=16", "--eval-n=32", "--eval-temperature=0.6", "--eval-steps=0"], 30, 4, 32),
        (["--rollout-batch-size=16", "--eval-n=32", "--eval-temperature=0.6"], 30, 1, 512),
    ],
)
def test_an_engine_is_made_for_its_part_of_a_step_or_of_an_evaluation(options, eval_prompts, engines, expected):
    assert train.sequences_at_once(parse(options), eval_prompts, engines) == expected
