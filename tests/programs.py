"""Command lines that run one after the other in one process: what they import is loaded once for all of them."""

import contextlib
import io
import json
import runpy
import subprocess
import sys
from dataclasses import dataclass

from tests.conftest import ROOT


@dataclass
class Ended:
    returncode: int
    stdout: str
    stderr: str


def run_programs(*commands: list) -> list[Ended]:
    """Each a program of this repository, such as scripts/doctor.py, and its words; in the repository's root."""
    told = json.dumps([list(map(str, command)) for command in commands])
    done = subprocess.run(
        [sys.executable, "-m", "tests.programs"], input=told, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [Ended(*ended) for ended in json.loads(done.stdout.splitlines()[-1])]


def main() -> None:
    made = []
    for words in json.load(sys.stdin):
        sys.argv = words
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(words[0], run_name="__main__")
            except SystemExit as ended:
                code = ended.code or 0
        made.append((code, out.getvalue(), err.getvalue()))
    print("\n" + json.dumps(made))


if __name__ == "__main__":
    main()
