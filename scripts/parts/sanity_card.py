"""What describes a sanity set: the dataset card and the histogram."""

from pathlib import Path


def card(summary: dict, settings: dict) -> str:
    """README.md of the set, in the hub's format; its head makes `datasets` read problems.jsonl and nothing else.

    Args:
        summary: counts, from build_sanity_set.py.
        settings: what the responses were made with.
    """
    made_with = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    stopped = "was left alone as soon as its place was certain" if summary["early_stopping"] else "got all of them"
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: problems.jsonl
---

# Sanity set

The problems that the model solves neither almost always nor almost never: of {summary["samples"]} responses between
{summary["low"]:.0%} and {summary["high"]:.0%} are right. {summary["kept"]} of {summary["problems"]} problems were kept.
A response that was cut at max_tokens counts as wrong, as in training.

![share of right responses](histogram.png)

Each line of problems.jsonl is a problem: `problem`, `answer`, and of its first `drawn` responses `right` were right. A
problem {stopped}, so right / drawn is an estimate of its accuracy; that the accuracy over all
{summary["samples"]} lies in the band is certain. {summary["responses_sampled"]} responses were sampled, of
{summary["responses_of_all_samples"]} ({summary["saving"]:.1%} fewer); all are in responses.jsonl.

| made with | |
|---|---|
{made_with}

A response's seed is made of the seed above, its problem and its number.
"""


def draw_histogram(accuracies: list[float], low: float, high: float, file: Path) -> None:
    """Share of right responses over the problems, the band marked; legible in grey."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    axes.hist(accuracies, bins=20, range=(0, 1), color="0.45", edgecolor="white")
    axes.axvspan(low, high, color="0.88", zorder=0, label="kept")
    axes.set_xlabel("share of right responses, of those drawn")
    axes.set_ylabel("problems")
    axes.set_xlim(0, 1)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
