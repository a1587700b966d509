"""The paper's figure of the mismatch: token probabilities against each other, and sequences against their length."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from scripts.parts import style
from scripts.parts.responses import Response
from scripts.parts.statistics import slope_and_intercept

BINS = 80


@dataclass
class MismatchPicture:
    """What a dtype's column of the figure shows; fed response by response, so that tokens need not be kept.

    Token differences are counted on a symmetric logarithmic scale, as most are thousands of times smaller than the
    largest.
    """

    probabilities: np.ndarray = field(default_factory=lambda: np.zeros((BINS, BINS)))
    """(mu, pi): tokens in each cell"""
    differences: np.ndarray = field(default_factory=lambda: np.zeros((BINS, 2 * DECADES * CELLS_PER_DECADE)))
    """(mu, pi - mu): tokens in each cell; the second axis is `difference_edges`"""
    lengths: list[int] = field(default_factory=list)
    """of each response, tokens"""
    log_ratios: list[float] = field(default_factory=list)
    """log pi - log mu of each response"""

    @classmethod
    def of(cls, responses: Iterable[Response]) -> "MismatchPicture":
        picture = cls()
        for response in responses:
            picture.add(np.array(response.log_pi), np.array(response.log_mu))
        return picture

    def add(self, log_pi: np.ndarray, log_mu: np.ndarray) -> None:
        """Take in a response: (tokens,) each."""
        pi, mu = np.exp(log_pi), np.exp(log_mu)
        edges = np.linspace(0, 1, BINS + 1)
        self.probabilities += np.histogram2d(mu.clip(0, 1), pi.clip(0, 1), [edges, edges])[0]
        bounds = difference_edges()
        inside = (pi - mu).clip(bounds[0], bounds[-1])
        self.differences += np.histogram2d(mu.clip(0, 1), inside, [edges, bounds])[0]
        self.lengths.append(len(log_mu))
        self.log_ratios.append(float((log_pi - log_mu).sum()))


SMALLEST, DECADES, CELLS_PER_DECADE = 1e-6, 6, 10


def difference_edges() -> np.ndarray:
    """Cells of pi - mu: logarithmic from 1e-6 to 1 on either side; what is smaller falls into the two innermost."""
    positive = SMALLEST * 10 ** np.linspace(0, DECADES, DECADES * CELLS_PER_DECADE + 1)
    return np.concatenate([-positive[:0:-1], [0.0], positive[1:]])


def draw(pictures: dict[str, MismatchPicture], notes: dict[str, str], title: str):
    """The figure: a column for each dtype, the same scales in every column.

    Args:
        pictures: by dtype.
        notes: by dtype, a line with the mean KL of a response and its interval, for the lowest panel.
        title: of the whole.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    # One token is visible, many are black; in print as on a screen.
    density = LinearSegmentedColormap.from_list("density", ["#c4d3e3", "#4c7fb0", "#0b2239", "#000000"])
    columns = len(pictures)
    made, axes = style.figure(3, columns, (3.3 * columns + 0.7, 8.6))
    made.suptitle(title)
    widest = difference_limit(pictures.values())
    most = [max(max(p.probabilities.max(), 2) for p in pictures.values())]
    most.append(max(max(p.differences.max(), 2) for p in pictures.values()))
    for column, (dtype, picture) in enumerate(pictures.items()):
        top, middle, bottom = axes[:, column]
        norms = [LogNorm(1, value) for value in most]
        edges = np.linspace(0, 1, BINS + 1)
        images = [top.pcolormesh(edges, edges, _masked(picture.probabilities), norm=norms[0], cmap=density)]
        top.set(title=style.short(dtype), xlabel="$\\mu$ (sampler)", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        bounds = difference_edges()
        images.append(middle.pcolormesh(edges, bounds, _masked(picture.differences), norm=norms[1], cmap=density))
        middle.set_yscale("symlog", linthresh=SMALLEST, linscale=0.3)
        ticks = [sign * 10.0**power for sign in (-1, 1) for power in (-5, -3, -1)]
        middle.set_yticks(sorted([0.0, *ticks]), minor=False)
        middle.set_yticks([], minor=True)
        middle.set(xlabel="$\\mu$ (sampler)", xlim=(0, 1), ylim=(-widest, widest))
        _draw_sequences(bottom, dtype, picture, notes[dtype])
        if column == columns - 1:
            for axis, image in zip((top, middle), images, strict=True):
                made.colorbar(image, ax=axis, label="tokens", shrink=0.85)
    for row, label in enumerate(("$\\pi$ (trainer)", "$\\pi - \\mu$", "$\\log\\,\\pi/\\mu$ of a response")):
        axes[row, 0].set_ylabel(label)
    low, high = (f(f(p.log_ratios) for p in pictures.values()) for f in (min, max))
    room = max(high - low, 1e-9)
    for axis in axes[2]:
        axis.set_ylim(low - 0.08 * room, high + 0.35 * room)
        axis.set_xlim(left=0)
    return made


def difference_limit(pictures: Iterable[MismatchPicture]) -> float:
    """The power of ten that no token's |pi - mu| exceeds, at most 1."""
    edges = np.abs(difference_edges())
    largest = 0.0
    for picture in pictures:
        filled = np.flatnonzero(picture.differences.sum(0))
        largest = max(largest, *edges[filled], *edges[filled + 1])
    return float(10 ** np.ceil(np.log10(largest) - 1e-9))


def _masked(counts: np.ndarray) -> np.ndarray:
    return np.ma.masked_equal(counts.T, 0)


def _draw_sequences(axis, dtype: str, picture: MismatchPicture, note: str) -> None:
    lengths, log_ratios = np.array(picture.lengths, float), np.array(picture.log_ratios)
    axis.axhline(0, color="#9a9a9a", linewidth=0.8)
    axis.plot(lengths, log_ratios, ".", color=style.COLORS[dtype], markersize=4, alpha=0.6, markeredgewidth=0)
    slope, intercept = slope_and_intercept(lengths, log_ratios)
    if np.isfinite(slope):
        ends = np.array([lengths.min(), lengths.max()])
        axis.plot(ends, intercept + slope * ends, style.LINES[dtype], color="black", linewidth=1.3)
    text = f"slope {1000 * slope:+.3g} per 1K tokens\n{note}"
    axis.text(0.03, 0.98, text, transform=axis.transAxes, fontsize=7.5, verticalalignment="top", linespacing=1.4)
    axis.set_xlabel("length of the response (tokens)")
