"""One page about a sweep or a run: `python scripts/report.py runs/objectives` writes runs/objectives/report.html.

Plots, tables, the worst samples and the options of every run, in one file that needs no network and no other file.
"""

import base64
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro

from scripts.parts.program import run_program
from tasks.errors import UsageError

LONGEST_TEXT = 2000  # characters of a prompt or response, its end being kept


@dataclass
class Arguments:
    """Write one self-contained HTML page about the runs of a folder."""

    folder: Annotated[Path, tyro.conf.Positional]
    """a run, or a folder of runs, such as a sweep's"""
    output: Path | None = None
    """file to write (default: report.html in the folder)"""
    title: str | None = None
    """of the page (default: the folder's name)"""


def worst_sample(run) -> dict | None:
    """The lowest-rewarded response to the prompt with the lowest mean reward, of the last step in samples.jsonl."""
    try:
        lines = (run.folder / "samples.jsonl").read_text().splitlines()
    except OSError:
        return None
    records = []
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # the run is just writing it
            continue
        if records and record["step"] != records[0]["step"]:
            break
        if record["rewards"]:
            records.append(record)
    if not records:
        return None
    worst = min(records, key=lambda record: sum(record["rewards"]) / len(record["rewards"]))
    index = worst["rewards"].index(min(worst["rewards"]))
    return {
        "run": run.folder.name,
        "step": worst["step"],
        "prompt": shortened(worst["prompt"]),
        "reference": worst["reference"],
        "response": shortened(worst["responses"][index]),
        "reward": worst["rewards"][index],
        "mean": sum(worst["rewards"]) / len(worst["rewards"]),
    }


def shortened(text: str) -> str:
    return (
        text if len(text) <= LONGEST_TEXT else f"[{len(text) - LONGEST_TEXT} characters before] {text[-LONGEST_TEXT:]}"
    )


def table_of_runs(runs: Sequence) -> list[list[str]]:
    """A row for each run: how it ended, and its final values."""
    from scripts.parts.runs import FINAL_VALUES, mean_and_deviation

    rows = [["run", "status", "steps", *FINAL_VALUES]]
    for run in runs:
        values = [mean_and_deviation(value_of(run), 0.0, 1) for value_of in FINAL_VALUES.values()]
        rows.append([run.folder.name, run.status, str(len(run.records)), *values])
    return rows


def table_of_differences(runs: Sequence) -> list[list[str]]:
    """The options that are not the same in all runs: an option a column, a run a row."""
    keys = {key for run in runs for key in run.options} - {"output_dir", "name"}
    differing = sorted(key for key in keys if len({str(run.options.get(key)) for run in runs}) > 1)
    if not differing:
        return []
    return [["run", *differing]] + [[r.folder.name, *(str(r.options.get(key)) for key in differing)] for r in runs]


def page(runs: Sequence, title: str) -> str:
    """The page, as HTML; everything that comes from a run is escaped."""
    import jinja2
    from markupsafe import Markup

    from scripts.parts import run_figures, style
    from scripts.parts.runs import LAST, group_runs, table_of

    groups = group_runs(runs)
    figures = {name: style.png_bytes(made) for name, made in run_figures.draw_all(groups).items()}
    environment = jinja2.Environment(autoescape=True, loader=jinja2.FileSystemLoader(ROOT / "scripts" / "parts"))
    rows = environment.from_string(
        '<div class="wide"><table>{% for row in rows %}{% set cell = "th" if loop.first else "td" %}<tr>'
        "{% for text in row %}<{{ cell }}>{{ text }}</{{ cell }}>{% endfor %}</tr>\n{% endfor %}</table></div>"
    )
    return environment.get_template("report.html.jinja").render(
        title=title,
        runs=runs,
        finished=sum(run.status == "finished" for run in runs),
        machine="; ".join(
            sorted({run.described.get("environment", {}).get("device", "unknown device") for run in runs})
        ),
        last=LAST,
        groups_table=table_of(groups),
        runs_table=table_of_runs(runs),
        differing=table_of_differences(runs),
        figures={name: base64.b64encode(data).decode() for name, data in figures.items()},
        samples=[sample for sample in map(worst_sample, runs) if sample],
        table=lambda cells: Markup(rows.render(rows=cells)),
    )


def main(arguments: Arguments) -> int:
    """Write the page; returns the exit code."""
    from scripts.parts.runs import find_runs

    runs = find_runs([arguments.folder])
    output = arguments.output or arguments.folder / "report.html"
    made = page(runs, arguments.title or arguments.folder.resolve().name)
    try:
        output.write_text(made)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be written ({error.strerror}); name another file.") from error
    print(f"written to {output} ({len(made) / 2**20:.1f} MB)")
    return 0


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)))
