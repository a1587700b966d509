"""Compare runs: `python scripts/plot_runs.py runs/objectives` or `python scripts/plot_runs.py RUN RUN ...`.

Draws reward, accuracy, mismatch, loss scale, gradient norm, response length and what was clipped or rejected, over
steps and wall time, as PNG and PDF, and prints the table of final values. Runs that differ in their seed alone are one
line: the mean, with a band of one standard deviation. FP16 is solid, BF16 dashed.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro

from scripts.parts.program import run_program
from tasks.errors import UsageError


@dataclass
class Arguments:
    """Draw what runs recorded, and print what they ended with."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """folders of runs, or folders that hold runs, such as a sweep's"""
    quantities: tuple[str, ...] = ()
    """which are drawn, such as reward, mismatch, clipped, rejected-geo (default: all that there are)"""
    by: tuple[Literal["step", "time"], ...] = ("step", "time")
    """what they are drawn over"""
    output_dir: Path | None = None
    """where the figures and table.md go (default: plots/ in the folder, or in the one right above several)"""


def common_folder(runs: tuple[Path, ...]) -> Path:
    """The folder itself, or the one that holds all of several; the first if there is none."""
    parents = {run.absolute().parent for run in runs}
    return parents.pop() if len(runs) > 1 and len(parents) == 1 else runs[0]


def main(arguments: Arguments) -> int:
    """Draw as told; returns the exit code."""
    from scripts.parts.runs import find_runs, group_runs, markdown, print_table, table_of

    if not arguments.runs:
        raise UsageError("Name at least one run, or a folder of runs.")
    groups = group_runs(find_runs(arguments.runs))
    folder = arguments.output_dir or common_folder(arguments.runs) / "plots"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output-dir {folder} cannot be written ({error.strerror}); name another.") from error
    rows = table_of(groups)
    (folder / "table.md").write_text(markdown(rows))
    print_table(rows)
    from scripts.parts import run_figures, style

    figures = run_figures.draw_all(groups, arguments.quantities, arguments.by)
    for name, figure in figures.items():
        style.save(figure, folder / name)
    print(f"written to {folder}/: table.md, and as .png and .pdf {', '.join(figures)}")
    return 0


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)))
