"""Make a table or figure of the docs again, and compare: `python scripts/reproduce.py [NAME ...]`.

docs/numbers.json says what can be made on two cores, with which commands, in how long, and what came out when the docs
were written, with the tolerance within which it should come out again. Without a name this lists it all. The commands
write into runs/reproduce and go on where they were interrupted, so that the same command here does too.
"""

import csv
import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro

from scripts.parts.program import run_program
from tasks.errors import UsageError, require

NUMBERS = ROOT / "docs" / "numbers.json"


@dataclass
class Arguments:
    """Make tables and figures of the docs again, and compare their numbers with the committed ones."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """what to make (default: list what there is)"""
    output_dir: Path = Path("runs/reproduce")
    """folder of everything that is written"""


def value_at(content, path: str) -> float:
    """A number in what a program wrote.

    Args:
        content: of a JSON file, or the rows of a CSV file.
        path: keys, with dots between them; [key=value;...] after a key, or alone, keeps the rows of a list that have
            these, and what follows is averaged over them. Example: ``rows[dtype=bf16;length=64].cosine``.

    Returns:
        NaN where it is not there.
    """
    for i, part in enumerate(parts := re.findall(r"[^.\[\]]+|\[[^\]]*\]", path)):
        if part.startswith("["):
            wanted = [pair.partition("=") for pair in part[1:-1].split(";")]
            rows = [row for row in content if all(str(row.get(key)) == value for key, _, value in wanted)]
            values = [value_at(row, ".".join(parts[i + 1 :])) for row in rows]
            return sum(values) / len(values) if values else math.nan
        if not isinstance(content, dict) or part not in content:
            return math.nan
        content = content[part]
    try:
        return float(content)
    except (TypeError, ValueError):
        return math.nan


def read(file: Path):
    """A JSON file's content, or a CSV file's rows; {} if there is no such file."""
    if not file.is_file():
        return {}
    if file.suffix == ".csv":
        with file.open(newline="") as lines:
            return list(csv.DictReader(lines))
    return json.loads(file.read_text())


def compare(entry: dict, folder: Path) -> list[tuple[str, float, float, float, bool]]:
    """Each number of an entry: what it is, the committed one, its tolerance, today's, whether that is within it."""
    made = []
    for file, numbers in entry["numbers"].items():
        content = read(folder / file)
        for path, (value, tolerance) in numbers.items():
            now = value_at(content, path)
            made.append((f"{Path(file).name} {path}", value, tolerance, now, abs(now - value) <= tolerance))
    return made


def show(name: str, rows: list[tuple[str, float, float, float, bool]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("number", "committed", "tolerance", "now", "", title=name)
    for what, value, tolerance, now, within in rows:
        table.add_row(
            what.replace("[", r"\["), *(f"{x:.4g}" for x in (value, tolerance, now)), "" if within else "DIFFERS"
        )
    Console(width=max(Console().width, 120)).print(table)


def listing(entries: dict) -> str:
    """A line for each entry."""
    width = max(map(len, entries))
    return "\n".join(f"{name:{width}}  {e['minutes']:>4g} min  {e['from']}" for name, e in entries.items())


def main(arguments: Arguments) -> int:
    """Make and compare; returns 0 if every number is within its tolerance, 1 if one is not or a command failed."""
    entries = json.loads(NUMBERS.read_text())
    machine = entries.pop("machine")
    if not arguments.names:
        print(f"{listing(entries)}\ntimes and numbers: {machine}")
        return 0
    unknown = [name for name in arguments.names if name not in entries]
    require(not unknown, f"There is no {', '.join(unknown)} to make; there are {', '.join(entries)}.")
    folder = arguments.output_dir.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output-dir {folder} cannot be written ({error.strerror}); name another.") from error
    print(f"about {sum(entries[name]['minutes'] for name in arguments.names):g} minutes on this machine: {machine}")
    good = True
    for name in arguments.names:
        for command in entries[name]["commands"]:
            print(f"$ python {command}".replace("{folder}", str(folder)), flush=True)
            words = [word.replace("{folder}", str(folder)) for word in shlex.split(command)]
            code = subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode
            if code == 130:
                raise KeyboardInterrupt
            if code != 0:
                print(f"it ended with {code}; {name} is left out", file=sys.stderr)
                good = False
                break
        else:
            rows = compare(entries[name], folder)
            show(f"{name}: {entries[name]['from']}", rows)
            good &= all(within for *_, within in rows)
    print("every number is within its tolerance" if good else "not every number is within its tolerance")
    return 0 if good else 1


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)), goes_on=True)
