"""The table as text, CSV and LaTeX."""

import csv
import io

from scripts.parts.evaluation_tables import Cell, as_csv, as_latex, as_text
from tasks.accuracy import Accuracy


def results() -> dict:
    made = {}
    for dtype, mean in (("bf16", 0.5038), ("fp16", 0.506)):
        made[dtype] = {
            "amc23": Cell(Accuracy(mean, 0.0521, 0.75, 8), 40, 3120.4, 0.1),
            "my_set": Cell(Accuracy(0.25, None, 0.5, 8), 1, 88.0, 0.0),
        }
    return made


def test_text_has_a_group_of_lines_for_each_dtype():
    lines = as_text(results(), 32).splitlines()
    assert lines[0].split() == ["amc23", "my_set"]
    assert lines[1].split() == "bf16 avg@32 ± s.e., % 50.38 ± 5.21 25.00 ± -".split()
    assert lines[2].split() == "pass@8, % 75.00 50.00".split()
    assert lines[3].split() == "tokens, mean 3120 88".split()
    assert lines[4].startswith("fp16") and len(lines) == 7
    assert len({len(line) for line in lines[::3]}) == 1, "columns are aligned"


def test_csv_has_a_row_for_each_dtype_and_loses_no_digit():
    rows = list(csv.DictReader(io.StringIO(as_csv(results(), 32))))
    assert [row["dtype"] for row in rows] == ["bf16", "fp16"]
    assert float(rows[0]["amc23 avg@32"]) == 0.5038
    assert float(rows[0]["amc23 stderr"]) == 0.0521
    assert rows[0]["my_set stderr"] == ""
    assert float(rows[1]["amc23 pass@8"]) == 0.75
    assert float(rows[1]["amc23 mean_length"]) == 3120.4
    assert rows[1]["my_set problems"] == "1"


def test_latex_has_as_many_cells_as_columns():
    lines = as_latex(results(), 32).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrrr}"
    bodies = [line for line in lines if line.startswith(("dtype", "BF16", "FP16"))]
    assert [line.count("&") for line in bodies] == [6, 6, 6]
    assert r"my\_set" in lines[2]
    assert r"$50.38 \pm 5.21$" in bodies[1]
