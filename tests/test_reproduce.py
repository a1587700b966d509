"""Making the docs' tables again: what is listed, how numbers are found in what was written, how they are compared."""

import json
import math
import shlex

import pytest

from scripts import reproduce
from tasks.errors import UsageError
from tests.conftest import ROOT

ENTRIES = {name: e for name, e in json.loads(reproduce.NUMBERS.read_text()).items() if name != "machine"}
NAMED = {"matrix", "mismatch", "gradient", "horizon", "dead-zone", "objectives", "narrow-band"}


def test_numbers_are_found_by_keys_and_by_rows_that_match():
    rows = [{"dtype": "fp16", "n": 8, "x": 1.0}, {"dtype": "bf16", "n": 8, "x": 2.0}, {"dtype": "bf16", "n": 9, "x": 5}]
    rows += [{"dtype": "a b=1 (c, d)", "n": 7, "x": 9}]
    content = {"rows": rows, "a": {"b": {"x": "0.5"}}}
    assert reproduce.value_at(content, "a.b.x") == 0.5
    assert reproduce.value_at(content, "rows[dtype=bf16].x") == 3.5
    assert reproduce.value_at(content, "rows[dtype=bf16;n=9].x") == 5
    assert reproduce.value_at(rows, "[n=8].x") == 1.5
    assert reproduce.value_at(rows, "[dtype=a b=1 (c, d);n=7].x") == 9
    for absent in ("a.c.x", "rows[dtype=fp32].x", "a.b", "rows[none=1].x"):
        assert math.isnan(reproduce.value_at(content, absent))


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_runs_programs_that_are_there_and_is_compared_with_something(name):
    entry = ENTRIES[name]
    assert entry["minutes"] > 0
    place = entry["from"].split(",")[0]
    assert (ROOT / place).is_file()
    for command in entry["commands"]:
        assert (ROOT / shlex.split(command)[0]).is_file()
        assert "{folder}" in command
    values = [number for numbers in entry["numbers"].values() for number in numbers.values()]
    assert values and all(tolerance > 0 for _, tolerance in values)


def test_what_the_docs_rest_on_can_be_made_and_is_listed_with_its_time(capsys):
    assert set(ENTRIES) >= NAMED
    assert reproduce.main(reproduce.Arguments()) == 0
    said = capsys.readouterr().out
    for name, entry in ENTRIES.items():
        assert any(f" {entry['minutes']:g} min" in line for line in said.splitlines() if line.startswith(f"{name} "))


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    """One entry, whose program writes 1.5 in JSON and 2 and 4 in CSV, or ends with 3."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, pathlib\nfolder = pathlib.Path(sys.argv[1])\n"
        "(folder / 'made.json').write_text('{\"a\": 1.5}')\n(folder / 'made.csv').write_text('k,v\\nx,2\\nx,4\\n')\n"
        "sys.exit(len(sys.argv) - 2)\n"
    )
    entry = {
        "from": "docs/x.md",
        "minutes": 2,
        "commands": [f"{program} {{folder}}"],
        "numbers": {"made.json": {"a": [1.4, 0.2]}, "made.csv": {"[k=x].v": [3.0, 0.1]}},
    }
    file = tmp_path / "numbers.json"
    monkeypatch.setattr(reproduce, "NUMBERS", file)
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)

    def write(**changes):
        file.write_text(json.dumps({"machine": "a machine", "one": entry | changes}))

    return write


def test_a_number_within_its_tolerance_passes_and_another_does_not(numbers, tmp_path, capsys):
    one = reproduce.Arguments(("one",), tmp_path / "out")
    numbers()
    assert reproduce.main(one) == 0
    said = capsys.readouterr().out
    assert "about 2 minutes" in said and "DIFFERS" not in said and f"$ python {tmp_path}/program.py" in said
    for changed in ({"made.json": {"a": [1.2, 0.2]}}, {"made.json": {"b": [1.5, 0.2]}}, {"none.json": {"a": [1.5, 1]}}):
        numbers(numbers=changed)
        assert reproduce.main(one) == 1
        assert capsys.readouterr().out.count("DIFFERS") == 1


def test_a_command_that_fails_is_said_and_counts(numbers, tmp_path, capsys):
    numbers(commands=[f"{tmp_path}/program.py {{folder}} 1"])
    assert reproduce.main(reproduce.Arguments(("one",), tmp_path / "out")) == 1
    said = capsys.readouterr()
    assert "it ended with 1; one is left out" in said.err and "committed" not in said.out


def test_what_is_not_there_is_refused_before_anything_is_written(numbers, tmp_path):
    numbers()
    with pytest.raises(UsageError, match="There is no two to make; there are one"):
        reproduce.main(reproduce.Arguments(("one", "two"), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_interruption_of_a_program_ends_all(numbers, tmp_path):
    numbers(commands=[f"{tmp_path}/program.py {{folder}}" + " x" * 130])
    with pytest.raises(KeyboardInterrupt):
        reproduce.main(reproduce.Arguments(("one",), tmp_path / "out"))
