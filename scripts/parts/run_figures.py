"""Figures that compare runs: curves over steps and over wall time, and final values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from learners.objectives import REJECTIONS
from scripts.parts import style
from scripts.parts.runs import LAST, Band, Group, band_over_steps, band_over_time, dtype_order, final_values
from tasks.errors import require

COLOURS = len(style.PALETTE)  # labels that one panel can tell apart


@dataclass(frozen=True)
class Quantity:
    """A metric as it is drawn."""

    file: str
    """what its figure is called"""
    key: str
    label: str
    scale: str = "linear"
    """linear, log, or log2"""
    share: bool = False
    """between 0 and 1"""


QUANTITIES = (
    Quantity("reward", "train/reward", "training reward", share=True),
    Quantity("accuracy", "eval/accuracy", "held-out accuracy", share=True),
    Quantity("mismatch", "mismatch/abs_prob_diff_mean", "mean |$\\pi - \\mu$|", "log"),
    Quantity("mismatch-kl", "mismatch/kl_k3", "KL($\\mu$, $\\pi$) per token, k3", "log"),
    Quantity("loss-scale", "precision/loss_scale", "loss scale", "log2"),
    Quantity("grad-norm", "precision/grad_norm", "gradient norm", "log"),
    Quantity("length", "train/response_length", "response length (tokens)"),
    Quantity("clipped", "objective/clip_fraction", "share clipped", share=True),
    *(
        Quantity(
            f"rejected-{name}", f"objective/rejected_{name.replace('-', '_')}", f"share rejected by {name}", share=True
        )
        for name in REJECTIONS
    ),
)
AXES: dict[str, tuple[str, Callable[..., Band]]] = {
    "step": ("step", band_over_steps),
    "time": ("wall time (s)", band_over_time),
}


def draw_all(groups: Sequence[Group], chosen: Sequence[str] = (), by: Sequence[str] = tuple(AXES)) -> dict[str, object]:
    """Every figure that these runs call for, by file name: curves, and the final values if there are several groups.

    Up to five labels share the panels of one figure, told apart by colour and marker; with more, each quantity gets a
    figure of its own with a panel for each label. The dtype is the line's style in both.
    """
    labels = list(dict.fromkeys(group.label for group in groups))
    figures = {}
    if len(labels) <= COLOURS:
        figures["curves"] = draw_curves(groups, chosen, by)
    else:
        for quantity in quantities_of(groups, chosen):
            for axis in by:
                figures[f"{quantity.file}-by-{axis}"] = draw_panels(groups, quantity, axis)
    if len(groups) > 1:
        figures["final"] = draw_final(groups)
    return figures


def quantities_of(groups: Sequence[Group], chosen: Sequence[str] = ()) -> list[Quantity]:
    """Those of the chosen quantities, or of all, that the runs recorded; ``rejected_geo`` is ``rejected-geo``.

    Raises:
        UsageError: none is left.
    """
    found = [q for q in QUANTITIES if any(len(band_over_steps(group.runs, q.key).x) for group in groups)]
    chosen = {name.replace("_", "-") for name in chosen}
    left = [q for q in found if q.file in chosen or not chosen]
    require(bool(left), f"--quantities names nothing that these runs recorded: {', '.join(q.file for q in found)}.")
    return left


def draw_curves(groups: Sequence[Group], chosen: Sequence[str] = (), by: Sequence[str] = tuple(AXES)):
    """A row for each quantity, a column for each axis."""
    quantities = quantities_of(groups, chosen)
    labels = list(dict.fromkeys(group.label for group in groups))
    size = (8.2, 1.75 * len(quantities) + 0.9)
    made, axes = style.figure(len(quantities), len(by), size, sharex="col", sharey="row")
    for row, quantity in enumerate(quantities):
        for column, (label, band_of) in enumerate(AXES[axis] for axis in by):
            axis = axes[row, column]
            for group in groups:
                index = labels.index(group.label)
                _draw_band(axis, band_of(group.runs, quantity.key), group, index if len(labels) > 1 else None, quantity)
            _finish(axis, quantity)
            if row == len(quantities) - 1:
                axis.set_xlabel(label)
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[row, 0].set_ylabel(quantity.label)
    handles, names = axes[0, 0].get_legend_handles_labels()
    made.legend(handles, names, loc="outside upper center", ncols=min(len(labels), 4) if len(labels) > 1 else 4)
    return made


def draw_panels(groups: Sequence[Group], quantity: Quantity, axis_name: str):
    """One quantity, a panel for each label, a line for each dtype; all panels on the same scales."""
    labels = list(dict.fromkeys(group.label for group in groups))
    columns = 3
    rows = -(-len(labels) // columns)
    heading, band_of = AXES[axis_name]
    made, axes = style.figure(rows, columns, (8.2, 1.75 * rows + 0.8), sharex=True, sharey=True)
    for place, label in enumerate(labels):
        axis = axes.flat[place]
        for group in groups:
            if group.label == label:
                _draw_band(axis, band_of(group.runs, quantity.key), group, None, quantity)
        axis.set_title(label)
        _finish(axis, quantity)
    for axis in axes.flat[len(labels) :]:
        axis.set_visible(False)
    for place in range(len(labels)):
        if place + columns >= len(labels):
            axes.flat[place].set_xlabel(heading)
            axes.flat[place].tick_params(labelbottom=True)
    made.supylabel(quantity.label, fontsize=9)
    lines = {}
    for axis, label in zip(axes.flat, labels, strict=False):
        handles, names = axis.get_legend_handles_labels()
        lines |= {name.removeprefix(f"{label}, "): handle for handle, name in zip(handles, names, strict=True)}
    made.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=min(len(lines), 4))
    return made


def _draw_band(axis, band: Band, group: Group, index: int | None, quantity: Quantity) -> None:
    """``index`` gives colour and marker to a label; without one the dtype has its own colour."""
    if not len(band.x):
        return
    fp16 = group.dtype == "fp16"
    look = {"linestyle": line_of(group.dtype), "color": colour_of(group.dtype)}
    if index is not None:
        look |= {"color": style.PALETTE[index], "marker": style.MARKERS[index], "markersize": 3.5}
        look |= {"markevery": max(1, len(band.x) // 8), "markerfacecolor": look["color"] if fp16 else "white"}
    if len(band.x) == 1 or quantity.key.startswith("eval/"):
        look |= {"marker": look.get("marker", "o"), "markersize": 3.5, "markevery": max(1, len(band.x) // 15)}
    if quantity.scale == "log2":
        look["drawstyle"] = "steps-post"
    axis.plot(band.x, band.mean, label=group.name, **look)
    if band.deviation.any():
        low, high = band.mean - band.deviation, band.mean + band.deviation
        if quantity.scale != "linear":  # a band that reaches 0 has no place on a logarithmic scale
            low = np.maximum(low, band.mean / 10)
        if quantity.share:
            low, high = low.clip(0, 1), high.clip(0, 1)
        axis.fill_between(band.x, low, high, color=look["color"], alpha=0.18, linewidth=0)


def line_of(dtype: str) -> str:
    """FP16 solid, BF16 dashed, FP32 dotted; where the two sides differ, by the sampler's."""
    return style.LINES[dtype.removesuffix("-sample").split("-")[-1]]


def colour_of(dtype: str) -> str:
    """By the trainer's dtype."""
    return style.COLORS[dtype.split("-")[0]]


def _finish(axis, quantity: Quantity) -> None:
    if quantity.share:
        lowest = min((line.get_ydata().min() for line in axis.get_lines() if len(line.get_ydata())), default=0.0)
        axis.set_ylim(max(0.0, np.floor(10 * lowest) / 10), 1.02)
    elif quantity.scale == "log2":
        axis.set_yscale("log", base=2)
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, 0.7), max(high, 2.8))
    elif quantity.scale == "log":
        axis.set_yscale("log")
        style.tidy_logarithmic(axis.yaxis)
    axis.margins(x=0.02)


def draw_final(groups: Sequence[Group]):
    """Final reward and mismatch of every group, mean and standard deviation over its runs: a dot plot."""
    labels = list(dict.fromkeys(group.label for group in groups))[::-1]
    dtypes = sorted({group.dtype for group in groups}, key=dtype_order)
    made, axes = style.figure(1, 2, (8.2, 0.24 * len(labels) * min(len(dtypes), 3) + 1.5), sharey=True)
    markers = {dtype: "osD^vPX*<"[index] for index, dtype in enumerate(dtypes)}
    columns = {
        "reward": f"reward, mean of the last {LAST} steps",
        "last |pi - mu|": f"mean |$\\pi - \\mu$|, last {LAST} steps",
    }
    for axis, (name, heading) in zip(axes[0], columns.items(), strict=True):
        for group in groups:
            mean, spread = final_values(group)[name]
            colour = colour_of(group.dtype)
            offset = (0.5 - (dtypes.index(group.dtype) + 0.5) / len(dtypes)) * 0.6
            axis.errorbar(
                mean, labels.index(group.label) + offset, xerr=spread or None, fmt=markers[group.dtype], color=colour,
                markerfacecolor=colour if group.dtype == "fp16" else "white", markersize=5, capsize=2,
                label=group.dtype.upper(),
            )  # fmt: skip
        axis.set_xlabel(heading)
    axes[0, 0].set_yticks(range(len(labels)), [label or "all" for label in labels])
    axes[0, 0].set_ylim(-0.6, len(labels) - 0.4)
    axes[0, 1].set_xscale("log")
    style.tidy_logarithmic(axes[0, 1].xaxis)
    handles, names = axes[0, 0].get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    made.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=min(len(unique), 4))
    return made
