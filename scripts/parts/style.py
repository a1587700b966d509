"""How every figure looks: FP16 solid and dark, BF16 dashed and lighter, FP32 dotted; told apart in grey too."""

import io
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

LINES = {"fp16": "-", "bf16": "--", "fp32": ":"}
COLORS = {"fp16": "#12355b", "bf16": "#e07a1f", "fp32": "#7a7a7a"}
# Dark to light, so that the order survives a grey printer.
PALETTE = ("#12355b", "#a23b72", "#e07a1f", "#5fa777", "#9aa5b1")
MARKERS = ("o", "s", "^", "D", "v")

pyplot.rcParams |= {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "figure.titlesize": 10.5,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # text stays text
}


def figure(rows: int, columns: int, size: tuple[float, float], **options):
    """A figure and its axes, always as a two-dimensional array.

    Args:
        size: inches.
    """
    return pyplot.subplots(rows, columns, figsize=size, squeeze=False, **options)


def save(made, file: Path) -> list[Path]:
    """Write a figure as PNG and PDF, ``file`` being the name without an ending, and close it."""
    files = [file.with_suffix(f".{ending}") for ending in ("png", "pdf")]
    for name in files:
        made.savefig(name, dpi=150)
    pyplot.close(made)
    return files


def tidy_logarithmic(axis) -> None:
    """Few labels on a logarithmic axis, and never less than a factor of five between its ends."""
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if high < 5 * low:
        middle = (low * high) ** 0.5
        low, high = middle / 5**0.5, middle * 5**0.5
        axis.axes.set(**{f"{axis.axis_name}lim": (low, high)})
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 50 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
    axis.set_minor_formatter(NullFormatter())


def png_bytes(made) -> bytes:
    """A figure as PNG, closed."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", dpi=110)
    pyplot.close(made)
    return buffer.getvalue()


def short(dtype: str) -> str:
    """FP16 for fp16."""
    return dtype.upper() if dtype in LINES else dtype
