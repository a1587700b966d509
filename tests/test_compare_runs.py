"""Reading, grouping, drawing and reporting runs, on folders with made-up numbers."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from scripts import plot_runs, report
from scripts.parts import run_figures, style
from scripts.parts.runs import (
    Run,
    band_over_steps,
    band_over_time,
    final_values,
    find_runs,
    group_runs,
    mean_and_deviation,
    table_of,
)
from tasks.errors import UsageError
from tests.run_folders import write_run


def seeds_of(place, dtype: str, *curves, **options) -> None:
    for seed, rewards in enumerate(curves):
        write_run(place / f"{dtype}-{seed}", f"--dtype={dtype}", f"--seed={seed}", rewards=list(rewards), **options)


@pytest.fixture
def sweep(tmp_path):
    """FP16 with two seeds, BF16 with two of which one ended early and has not written a summary."""
    place = tmp_path / "sweep"
    seeds_of(place, "fp16", [0.2, 0.4, 0.6], [0.4, 0.6, 0.8], accuracies={0: 0.1, 3: 0.7})
    write_run(place / "bf16-0", "--dtype=bf16", rewards=[0.1, None, 0.5], mismatch=5e-4, seconds=4.0)
    write_run(place / "bf16-1", "--dtype=bf16", "--seed=1", rewards=[0.3], mismatch=5e-4, status=None)
    return place


# ------------------------------------------------------------------------------------------------ reading


def test_a_series_keeps_its_steps_and_shows_what_was_not_finite(sweep):
    run = Run.read(sweep / "bf16-0")
    steps, values = run.series("train/reward")
    assert steps.tolist() == [1, 2, 3]
    assert values[0] == 0.1 and np.isnan(values[1]) and values[2] == 0.5
    assert run.series("no/such")[0].tolist() == []
    assert (run.dtype, run.objective, run.status) == ("bf16", "pg-seq-is", "finished")
    assert Run.read(sweep / "bf16-1").status == "unfinished"


def test_the_evaluation_before_training_comes_from_the_summary(sweep):
    steps, values = Run.read(sweep / "fp16-0").series("eval/accuracy")
    assert steps.tolist() == [0, 3]
    assert values.tolist() == [0.1, 0.7]


def test_a_line_that_is_being_written_is_passed_over_and_a_broken_one_is_not(sweep):
    file = sweep / "fp16-0" / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole + '{"step": 4, "train/rew')
    assert len(Run.read(sweep / "fp16-0").records) == 3
    file.write_text('{"step": 4, "train/rew\n' + whole)
    with pytest.raises(UsageError, match="cannot be read"):
        find_runs([sweep])


def test_runs_are_found_in_folders_once_and_what_a_sweep_set_aside_is_not(sweep, tmp_path):
    write_run(sweep / "fp16-0.set-aside-20260101-000000", rewards=[0.0])
    assert len(find_runs([sweep])) == 4
    assert len(find_runs([sweep, sweep / "fp16-0"])) == 4
    assert [run.folder.name for run in find_runs([sweep / "fp16-0"])] == ["fp16-0"]
    with pytest.raises(UsageError, match="no folder"):
        find_runs([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no run"):
        find_runs([tmp_path / "empty"])
    write_run(tmp_path / "only-begun", rewards=[], status=None)
    with pytest.raises(UsageError, match="nothing to show"):
        find_runs([tmp_path / "only-begun"])


# ------------------------------------------------------------------------------------------------ grouping


def test_runs_that_differ_in_their_seed_alone_are_one_group(sweep):
    groups = group_runs(find_runs([sweep]))
    assert [(g.dtype, g.label, len(g.runs)) for g in groups] == [("fp16", "", 2), ("bf16", "", 2)]


def test_labels_name_what_differs_and_not_what_an_objective_brings_with_it(tmp_path):
    for objective in ("grpo", "pg-seq-mis"):
        for dtype in ("bf16", "fp16"):
            write_run(tmp_path / f"{objective}-{dtype}", f"--objective={objective}", f"--dtype={dtype}", rewards=[0.5])
    groups = group_runs(find_runs([tmp_path]))
    assert [(g.label, g.dtype) for g in groups] == [
        ("pg-seq-mis", "fp16"), ("pg-seq-mis", "bf16"), ("grpo", "fp16"), ("grpo", "bf16"),
    ]  # fmt: skip
    write_run(tmp_path / "wide", "--objective=grpo", "--clip-high=0.28", rewards=[0.5])
    fp16 = [g.label for g in group_runs(find_runs([tmp_path])) if g.dtype == "fp16"]
    assert fp16 == ["pg-seq-mis", "grpo, clip_high 0.2", "grpo, clip_high 0.28"]


def test_labels_do_not_name_what_a_rejection_brings_with_it(tmp_path):
    write_run(tmp_path / "kept", rewards=[0.5])
    write_run(tmp_path / "band", "--reject=geo", rewards=[0.5])
    groups = group_runs(find_runs([tmp_path]))
    assert [g.label for g in groups] == ["reject geo", "reject nothing"]


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (["--lr-scheduler=constant", "--lr-warmup-ratio=0"], [""]),
        (["--lr-scheduler=constant", "--lr-warmup-ratio=0.1"], ["max_steps 20", "max_steps 40"]),
        (["--lr-scheduler=linear", "--lr-warmup-ratio=0"], ["max_steps 20", "max_steps 40"]),
    ],
)
def test_how_long_a_run_goes_on_is_named_where_its_steps_depend_on_it(tmp_path, options, labels):
    for steps in (20, 40):
        write_run(tmp_path / str(steps), *options, f"--max-steps={steps}", rewards=[0.5])
    assert [g.label for g in group_runs(find_runs([tmp_path]))] == labels


def test_sides_in_different_dtypes_are_a_dtype_of_their_own(tmp_path):
    run = Run.read(write_run(tmp_path / "mixed", "--train-dtype=bf16", "--sample-dtype=fp32", rewards=[0.5]))
    assert run.dtype == "bf16-train-fp32-sample"
    assert run_figures.line_of(run.dtype) == ":"
    assert run_figures.colour_of(run.dtype) == style.COLORS["bf16"]


def test_bands_are_means_and_deviations_over_the_runs_that_got_so_far(sweep):
    fp16, bf16 = group_runs(find_runs([sweep]))
    band = band_over_steps(fp16.runs, "train/reward")
    assert band.x.tolist() == [1, 2, 3]
    assert band.mean == pytest.approx([0.3, 0.5, 0.7])
    assert band.deviation == pytest.approx([np.sqrt(0.02)] * 3)
    band = band_over_steps(bf16.runs, "train/reward")
    assert band.x.tolist() == [1, 3], "step 2 has no finite value"
    assert band.mean == pytest.approx([0.2, 0.5])
    assert band.deviation == pytest.approx([np.sqrt(0.02), 0.0])


def test_wall_time_adds_up_steps_and_evaluations(sweep):
    fp16, bf16 = group_runs(find_runs([sweep]))
    assert band_over_time(fp16.runs, "train/reward").x.tolist() == [2, 4, 7]  # 2 s a step, and 1 s of evaluation
    assert band_over_time(fp16.runs, "eval/accuracy").x.tolist() == [0, 7]
    assert band_over_time(bf16.runs, "train/reward").x.tolist() == [3, 11]  # 2 and 4 s, then the slow run alone


def test_final_values_average_the_last_steps_of_each_run_and_then_the_runs(tmp_path):
    seeds_of(tmp_path, "fp16", [0, 0, 0.5, 0.5, 0.5, 0.5, 0.5], [0, 0, 0.7, 0.7, None, 0.7, 0.7])
    (group,) = group_runs(find_runs([tmp_path]))
    values = final_values(group)
    assert values["reward"] == pytest.approx((np.mean([0.5, 0.56]), np.std([0.5, 0.56], ddof=1)))
    assert np.isnan(values["accuracy"][0])
    header, row = table_of([group])
    cells = dict(zip(header, row, strict=True))
    assert cells["reward"] == "0.530 ± 0.042"
    assert cells["accuracy"] == "-"
    assert cells["loss scale"] == "65,536"
    assert (cells["dtype"], cells["runs"], cells["steps"]) == ("fp16", "2", "7")


@pytest.mark.parametrize(
    ("mean", "spread", "count", "text"),
    [
        (0.9734, 0.0042, 3, "0.973 ± 0.004"),
        (0.9734, 0.0, 1, "0.973"),
        (5.3e-5, 4e-6, 3, "(5.3 ± 0.4)e-5"),
        (5.3e-5, 0.0, 1, "5.3e-5"),
        (61.66, 11.04, 3, "61.7 ± 11.0"),
        (0.0, 0.0, 3, "0"),
        (65536.0, 0.0, 3, "65,536"),
        (-0.5, 0.25, 2, "-0.500 ± 0.250"),
    ],
)
def test_means_are_written_with_as_many_digits_as_say_something(mean, spread, count, text):
    assert mean_and_deviation(mean, spread, count) == text


# ------------------------------------------------------------------------------------------------ figures


def test_curves_hold_the_series_fp16_solid_and_bf16_dashed(sweep):
    groups = group_runs(find_runs([sweep]))
    figure = run_figures.draw_curves(groups)
    axes = np.array(figure.axes).reshape(-1, 2)
    labels = [axis.get_ylabel() for axis in axes[:, 0]]
    assert labels == [quantity.label for quantity in run_figures.QUANTITIES[:7]], "nothing was clipped or rejected"
    fp16, bf16 = axes[0, 0].get_lines()
    assert (fp16.get_linestyle(), bf16.get_linestyle()) == ("-", "--")
    assert fp16.get_ydata() == pytest.approx([0.3, 0.5, 0.7])
    assert bf16.get_ydata() == pytest.approx([0.2, 0.5])
    assert axes[0, 1].get_lines()[0].get_xdata().tolist() == [2, 4, 7]
    band = axes[0, 0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.3 - np.sqrt(0.02), 0.7 + np.sqrt(0.02)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["FP16", "BF16"]
    assert (axes[2, 0].get_yscale(), axes[4, 0].get_yscale()) == ("log", "log")


def test_quantities_that_no_run_has_are_left_out(tmp_path):
    write_run(tmp_path / "run", rewards=[0.5, 0.6])
    figure = run_figures.draw_curves(group_runs(find_runs([tmp_path])))
    assert "held-out accuracy" not in [axis.get_ylabel() for axis in figure.axes]
    assert list(run_figures.draw_all(group_runs(find_runs([tmp_path])))) == ["curves"], "one group has nothing to rank"


def test_chosen_quantities_over_steps_alone(tmp_path):
    recorded = {"objective/rejected_geo": 0.25, "objective/rejected_max_token": 0.5}  # as learners/update records them
    write_run(tmp_path / "run", "--reject", "geo", "max-token", rewards=[0.1, 0.2], also=recorded)
    groups = group_runs(find_runs([tmp_path]))
    for names in (("rejected-geo", "rejected-max-token"), ("rejected_geo", "rejected_max_token")):
        figure = run_figures.draw_curves(groups, (*names, "reward"), ("step",))
        rejected = ["share rejected by geo", "share rejected by max-token"]
        assert [axis.get_ylabel() for axis in figure.axes] == ["training reward", *rejected]
        assert [axis.get_lines()[0].get_ydata().tolist() for axis in figure.axes[1:]] == [[0.25] * 2, [0.5] * 2]
    with pytest.raises(
        UsageError, match=r"--quantities names nothing that these runs recorded: reward, .*rejected-geo"
    ):
        run_figures.draw_all(groups, ("rejected-k3",))


def test_many_labels_get_a_panel_each(tmp_path):
    objectives = ("reinforce", "pg-seq-is", "pg-seq-tis", "pg-seq-mis", "grpo", "gspo")
    for objective in objectives:
        for dtype in ("fp16", "bf16"):
            options = [f"--objective={objective}", f"--dtype={dtype}"]
            write_run(tmp_path / f"{objective}-{dtype}", *options, rewards=[0.5, 0.1 * len(objective)])
    groups = group_runs(find_runs([tmp_path]))
    figure = run_figures.draw_panels(groups, run_figures.QUANTITIES[0], "step")
    assert [axis.get_title() for axis in figure.axes] == list(objectives)
    for axis, objective in zip(figure.axes, objectives, strict=True):
        assert [line.get_ydata()[-1] for line in axis.get_lines()] == pytest.approx([0.1 * len(objective)] * 2)
    final = run_figures.draw_final(groups)
    assert [tick.get_text() for tick in final.axes[0].get_yticklabels()] == list(objectives)[::-1]
    points = {container.lines[0].get_xdata()[0] for container in final.axes[0].containers}
    assert sorted(points) == pytest.approx(sorted({(0.5 + 0.1 * len(name)) / 2 for name in objectives}))


def test_figures_of_several_runs_go_where_all_of_them_are(sweep, capsys):
    runs = tuple(sorted(path for path in sweep.iterdir() if path.is_dir())[:2])
    assert plot_runs.main(plot_runs.Arguments(runs)) == 0
    assert f"written to {sweep}/plots/" in capsys.readouterr().out
    assert not any((run / "plots").exists() for run in runs)


def test_folders_that_lie_apart_have_no_common_one(tmp_path):
    """Not the root of the disk, or somebody's home."""
    apart = (tmp_path / "a" / "run", tmp_path / "b" / "run")
    assert plot_runs.common_folder(apart) == apart[0]
    assert plot_runs.common_folder((tmp_path / "a", tmp_path / "b")) == tmp_path


def test_plot_runs_writes_figures_and_prints_the_table(sweep, capsys):
    assert plot_runs.main(plot_runs.Arguments((sweep,))) == 0
    written = {path.name for path in (sweep / "plots").iterdir()}
    assert written == {"curves.png", "curves.pdf", "final.png", "final.pdf", "table.md"}
    assert (sweep / "plots" / "curves.pdf").read_bytes().startswith(b"%PDF")
    printed = capsys.readouterr().out
    assert "0.500 ± 0.141" in printed and "0.500 ± 0.141" in (sweep / "plots" / "table.md").read_text()
    assert "2 (1 unfinished)" in printed


# ------------------------------------------------------------------------------------------------ the report


class Page(HTMLParser):
    """Collects what a page would load, and what it would run."""

    def __init__(self, html: str):
        super().__init__()
        self.resources, self.tags = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.resources += [value for name, value in attributes if name in ("src", "href", "data", "srcset")]


def test_report_is_one_page_that_loads_nothing_and_escapes_everything(sweep):
    hostile = '</td><script>alert("x")</script>'
    sample = {"step": 3, "prompt": hostile, "reference": "<b>", "responses": ["good", hostile], "rewards": [1.0, 0.0]}
    worse = sample | {"prompt": "the worst", "responses": ["bad", "bad too"], "rewards": [0.0, 0.0]}
    earlier = worse | {"step": 2, "prompt": "of an earlier step"}
    text = "".join(json.dumps(record) + "\n" for record in (earlier, sample, worse))
    (sweep / "fp16-0" / "samples.jsonl").write_text(text)
    (sweep / "fp16-1" / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    assert report.main(report.Arguments(sweep, title="<i>A & B</i>")) == 0
    html = (sweep / "report.html").read_text()
    page = Page(html)
    assert "script" not in page.tags and "i" not in page.tags
    assert "&lt;i&gt;A &amp; B&lt;/i&gt;" in html
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in html
    assert page.tags.count("img") == 2  # curves, final values
    assert all(resource.startswith("data:image/png;base64,") for resource in page.resources)
    assert base64.b64decode(page.resources[0].partition(",")[2]).startswith(b"\x89PNG")
    assert not re.search(r"url\(|@import|https?://", html)
    assert "the worst" in html and "of an earlier step" not in html
    assert "0.500 ± 0.141" in html
    assert page.tags.count("details") == 4


def test_worst_sample_is_of_the_last_step_and_of_the_prompt_with_the_least_reward(sweep):
    records = [
        {"step": 1, "prompt": "a", "reference": "1", "responses": ["x"], "rewards": [0.0]},
        {"step": 2, "prompt": "b", "reference": "2", "responses": ["y", "z"], "rewards": [1.0, 0.5]},
        {"step": 2, "prompt": "c", "reference": "3", "responses": ["u", "v"], "rewards": [0.0, 1.0]},
    ]
    file = sweep / "fp16-0" / "samples.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 3, "pro')
    worst = report.worst_sample(Run.read(sweep / "fp16-0"))
    assert (worst["step"], worst["prompt"], worst["response"], worst["mean"]) == (2, "c", "u", 0.5)
    assert report.worst_sample(Run.read(sweep / "fp16-1")) is None
