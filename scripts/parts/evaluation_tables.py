"""The table of an evaluation, rows dtype and columns benchmark, as text, CSV and LaTeX. Pure functions."""

import csv
import io
from dataclasses import dataclass

from tasks.accuracy import Accuracy


@dataclass(frozen=True)
class Cell:
    """What one dtype did on one benchmark."""

    accuracy: Accuracy
    problems: int
    mean_length: float
    """of a response, tokens"""
    truncated: float
    """share of responses cut at the limit"""


Results = dict[str, dict[str, Cell]]
"""dtype -> benchmark -> cell; every dtype has the same benchmarks"""


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def as_text(results: Results, n: int) -> str:
    """Lines of at most some 100 characters for six benchmarks; accuracies and standard errors in percent."""
    benchmarks, k = columns_of(results)
    legend = {"": f"avg@{n} ± s.e., %", " ": f"pass@{k}, %", "  ": "tokens, mean"}
    rows = [["", "", *benchmarks]]
    for dtype, cells in results.items():
        lines = zip(*(_cell_lines(cells[benchmark]) for benchmark in benchmarks), strict=True)
        for number, (label, line) in enumerate(zip(legend.values(), lines, strict=True)):
            rows.append([dtype if number == 0 else "", label, *line])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _cell_lines(cell: Cell) -> tuple[str, str, str]:
    accuracy = cell.accuracy
    return (
        f"{percent(accuracy.mean)} ± {percent(accuracy.stderr)}",
        percent(accuracy.pass_at_k),
        f"{cell.mean_length:.0f}",
    )


def columns_of(results: Results) -> tuple[list[str], int]:
    """The benchmarks, in order, and the k of pass@k."""
    first = next(iter(results.values()))
    return list(first), next(iter(first.values())).accuracy.k


def as_csv(results: Results, n: int) -> str:
    """A row for each dtype; shares from 0 to 1, unrounded."""
    benchmarks, k = columns_of(results)
    names = ("problems", f"avg@{n}", "stderr", f"pass@{k}", "mean_length", "truncated")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["dtype", *(f"{benchmark} {name}" for benchmark in benchmarks for name in names)])
    for dtype, cells in results.items():
        row = [dtype]
        for benchmark in benchmarks:
            cell = cells[benchmark]
            accuracy = cell.accuracy
            row += [cell.problems, accuracy.mean, accuracy.stderr, accuracy.pass_at_k, cell.mean_length, cell.truncated]
        writer.writerow(row)
    return file.getvalue()


def as_latex(results: Results, n: int) -> str:
    """A tabular with booktabs' rules, three columns a benchmark."""
    benchmarks, k = columns_of(results)
    escape = lambda text: text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&").replace("#", r"\#")
    heads = [rf"\multicolumn{{3}}{{c}}{{{escape(benchmark)}}}" for benchmark in benchmarks]
    rules = [rf"\cmidrule(lr){{{2 + 3 * i}-{4 + 3 * i}}}" for i in range(len(benchmarks))]
    lines = [
        rf"\begin{{tabular}}{{l{'rrr' * len(benchmarks)}}}",
        r"\toprule",
        " & ".join(["", *heads]) + r" \\",
        " ".join(rules),
        " & ".join(["dtype", *[f"avg@{n}", f"pass@{k}", "tokens"] * len(benchmarks)]) + r" \\",
        r"\midrule",
    ]
    for dtype, cells in results.items():
        row = [dtype.upper()]
        for benchmark in benchmarks:
            first, passed, length = _cell_lines(cells[benchmark])
            row += [f"${first.replace('±', chr(92) + 'pm')}$", passed, length]
        lines.append(" & ".join(row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
