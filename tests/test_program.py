"""What a program says: how it ends, and how often it warns."""

import sys

import pytest

from learners.run_log import RunLog
from tasks.errors import NonFiniteError, UsageError, run_program


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
