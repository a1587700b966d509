"""The doctor's page, report.html: one file that needs no network and no script. All that a dump says is escaped."""

import io
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from learners.diagnosis.dump import Dump
from learners.diagnosis.glossary import meaning
from scripts.parts.horizon import half_text

PICTURED = 300_000  # tokens, of whole responses, that the pictures are made of
FARTHEST = 1e4  # nats; what is farther, or not finite, is not pictured
BINS, FEWEST = 14, 20  # of a picture, and tokens in each
SHOWN = 90  # tokens of a response around its largest gap
LISTED = 4  # responses
INK, FIRST, SECOND = "#010203", "#010204", "#010205"  # become the page's colours, light or dark
Text = Callable[[int], str]


def write(
    diagnosis,
    dump: Dump,
    folder: Path,
    corrections: Sequence[dict] = (),
    compared: Sequence[dict] = (),
    text: Text | None = None,
) -> Path:
    """Write ``report.html`` into a folder that is there.

    Args:
        diagnosis: a `learners.diagnosis.findings.Diagnosis`.
        dump: what it is of.
        corrections: by rows with ``correction``, ``responses_kept``, ``kept``, ``limited`` and ``left``, shares.
        compared: of the doctor's ``--model``: rows with ``what``, ``d_50``, ``d_90``, ``k3``, ``diagnosis``.
        text: of a token's id, where a tokenizer is given.
    """
    file = folder / "report.html"
    file.write_text(page(diagnosis, dump, corrections, compared, text), encoding="utf-8", errors="replace")
    return file


def page(diagnosis, dump: Dump, corrections: Sequence[dict], compared: Sequence[dict], text: Text | None) -> str:
    import jinja2

    parts = Path(__file__).parent
    environment = jinja2.Environment(autoescape=True, loader=jinja2.FileSystemLoader(parts), trim_blocks=True)
    headline = diagnosis.sentence
    size = f"{len(dump):,} responses, {len(dump.log_mu):,} tokens"
    busy = [row for row in corrections if is_busy(row)]
    return environment.get_template("doctor.html.jinja").render(
        title=f"The doctor: {diagnosis.name}",
        headline=headline[:1].upper() + headline[1:],
        size=size,
        diagnosis=diagnosis,
        gap_table=gap_table(diagnosis),
        figures=pictures(dump),
        horizon_table=horizon_table(diagnosis.horizon),
        corrections_table=corrections_table(busy),
        idle=len(corrections) - len(busy),
        compared_table=compared_table(compared),
        excerpts=excerpts(diagnosis.worst, dump, text),
        tokens_table=tokens_table(diagnosis.worst, text),
        has_text=text is not None,
        claims=dump.claims,
        problems=dump.problems,
        numbers_table=[
            ["statistic", "what it is", "value"],
            *([name, meaning(name), short(value)] for name, value in sorted(diagnosis.numbers.items())),
        ],
    )


# -------------------------------------------------------------------------------------------------------------- tables


def short(value: float | None, digits: int = 3) -> str:
    if value is None or not math.isfinite(value):
        return "-" if value is None or math.isnan(value) else "never"
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:,.{digits}g}"


def percent(share: float) -> str:
    return f"{max(0.0, share):.1%}"  # rounding may leave a share a little below 0


def gap_table(diagnosis) -> list[list[str]]:
    get = lambda key: short(diagnosis.numbers.get(key, math.nan))
    rows = [["of log pi - log mu, a token", ""], ["KL, k1", get("k1")], ["KL, k3", get("k3")]]
    rows += [["root mean square", get("g_rms")], ["in log odds: median of its size", get("d_50")]]
    rows += [["in log odds: 90% are below", get("d_90")], ["like rounding in", diagnosis.level or "no dtype"]]
    return rows


def horizon_table(horizon: dict) -> list[list[str]]:
    if not horizon:
        return []
    return [
        ["weights", "half is gone", f"left here, mean {short(horizon['mean_length'])} tokens"],
        ["of whole responses", half_text(horizon["half"]), percent(horizon["sequence_left"])],
        ["geometric", "", percent(horizon["geometric_left"])],
    ]


def is_busy(row: dict) -> bool:
    """Whether a correction does anything here worth a row."""
    return max(1 - row["responses_kept"], 1 - row["kept"], row["limited"]) > 5e-4 or row["left"] < 0.98


def corrections_table(rows: Sequence[dict]) -> list[list[str]]:
    if not rows:
        return []
    header = ["correction", "responses dropped", "tokens dropped", "limited", "left"]
    shares = [(1 - row["responses_kept"], 1 - row["kept"], row["limited"], row["left"]) for row in rows]
    return [header, *([row["correction"], *map(percent, own)] for row, own in zip(rows, shares, strict=True))]


def compared_table(rows: Sequence[dict]) -> list[list[str]]:
    if not rows:
        return []
    header = ["pair", "median gap, log odds", "90% below", "k3", "looks like"]
    return [
        header,
        *([r["what"], short(r["d_50"], 2), short(r["d_90"], 2), short(r["k3"], 2), r["diagnosis"]] for r in rows),
    ]


def tokens_table(worst: dict, text: Text | None) -> list[list[str]]:
    rows = [["token", "of response", "place", "log mu", "log pi", "share of the squared gap"]]
    for token in worst.get("tokens", []):
        shown = repr(text(token["id"])) if text else str(token["id"])
        numbers = (short(token["log_mu"]), short(token["log_pi"]), percent(token["share"]))
        rows.append([shown, str(token["response"]), str(token["place"]), *numbers])
    return rows


def excerpts(worst: dict, dump: Dump, text: Text | None) -> list[dict]:
    """The worst responses around their largest gaps, token by token."""
    made = []
    for row in worst.get("responses", [])[:LISTED]:
        start, end = dump.starts[row["response"] : row["response"] + 2]
        gap = (dump.log_pi[start:end] - dump.log_mu[start:end]).astype(np.float64)
        size = np.nan_to_num(np.abs(gap), nan=np.inf)
        first = max(0, min(int(size.argmax()) - SHOWN // 2, len(size) - SHOWN))
        most = max(size[np.isfinite(size)].max(initial=0.0), 1e-12)
        shown = [
            {
                "text": text(int(dump.response_ids[start + i])) if text else int(dump.response_ids[start + i]),
                "depth": f"{0.8 * min(size[i] / most, 1.0):.2f}",
                "title": f"place {i}: log mu {dump.log_mu[start + i]:.4g}, log pi {dump.log_pi[start + i]:.4g}",
            }
            for i in range(first, min(first + SHOWN, len(size)))
        ]
        about = {"response": row["response"], "tokens": f"{row['tokens']:,}", "share": percent(row["share"])}
        made.append(about | {"log_ratio": short(row["log_ratio"]), "shown": shown})
    return made


# ------------------------------------------------------------------------------------------------------------ pictures


def pictures(dump: Dump) -> list[tuple[str, object]]:
    """(caption, inline SVG): the gap by the token's probability and by its place."""
    first, places = pictured_tokens(dump)
    mu, gap = dump.log_mu[first].astype(np.float64), (dump.log_pi[first] - dump.log_mu[first]).astype(np.float64)
    good = (np.abs(mu) < FARTHEST) & (np.abs(gap) < FARTHEST)
    mu, gap, places = mu[good], gap[good], places[good]
    if len(gap) < FEWEST:
        return []
    # Log odds spread out what is almost certain, where most tokens are.
    odds = mu - np.log(np.maximum(-np.expm1(np.minimum(mu, 0.0)), 1e-9))
    caption = "each point holds as many tokens; above, size; below, the mean with two standard errors"
    return [
        (
            f"By how likely the sampler held the token: {caption}.",
            drawn(odds, gap, "probability of the token", of_odds),
        ),
        (f"By place in the response: {caption}.", drawn(places + 1.0, gap, "place of the token", None)),
    ]


def pictured_tokens(dump: Dump) -> tuple[np.ndarray, np.ndarray]:
    """Indices of tokens, of whole responses spread over the dump, and their places in the response."""
    lengths = np.diff(dump.starts)
    every = max(1, math.ceil(lengths.sum() / PICTURED))
    rows = np.arange(0, len(lengths), every)
    own = lengths[rows]
    places = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
    return np.repeat(dump.starts[rows], own) + places, places


def of_odds(ticks) -> tuple[list[float], list[str]]:
    chances = (1e-6, 1e-4, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999, 0.999999)
    places = [math.log(chance / (1 - chance)) for chance in chances]
    inside = [(p, f"{c:g}") for p, c in zip(places, chances, strict=True) if ticks[0] <= p <= ticks[1]]
    return [p for p, _ in inside], [name for _, name in inside]


def drawn(x: np.ndarray, gap: np.ndarray, label: str, ticks):
    """An inline SVG of the gap against ``x`` in bins of equally many tokens."""
    from markupsafe import Markup
    from matplotlib import rc_context

    from scripts.parts import style

    order = np.argsort(x, kind="stable")
    edges = np.linspace(0, len(x), min(BINS, len(x) // FEWEST) + 1).astype(int)
    bins = [order[a:b] for a, b in pairwise(edges)]
    at = np.array([np.median(x[b]) for b in bins])
    size = np.array([np.quantile(np.abs(gap[b]), [0.5, 0.9]) for b in bins])
    mean = np.array([gap[b].mean() for b in bins])
    error = np.array([2 * gap[b].std() / math.sqrt(len(b)) for b in bins])
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "text.color": INK, "axes.edgecolor": INK,
                     "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "grid.color": INK,
                     "grid.alpha": 0.12, "font.size": 10, "axes.labelsize": 10, "xtick.labelsize": 9,
                     "ytick.labelsize": 9, "legend.fontsize": 9}):  # fmt: skip
        made, axes = style.figure(2, 1, (4.6, 4.4), sharex=True, height_ratios=(3, 2))
        (top,), (bottom,) = axes
        for i, (name, color, mark) in enumerate((("median", FIRST, "o-"), ("90%", SECOND, "s-"))):
            shown = size[:, i] > 0
            top.plot(at[shown], size[shown, i], mark, color=color, markersize=4, label=name)
        if (size > 0).any():
            top.set_yscale("log")
            style.tidy_logarithmic(top.yaxis)
        top.set_ylabel("|log π - log μ|")
        top.legend(loc="best")
        bottom.fill_between(at, mean - error, mean + error, color=FIRST, alpha=0.2, linewidth=0)
        bottom.plot(at, mean, "o-", color=FIRST, markersize=4)
        bottom.axhline(0, color=INK, linewidth=0.8, alpha=0.5)
        bottom.set(ylabel="log π - log μ", xlabel=label)
        bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        if ticks is None:
            bottom.set_xscale("log")
            style.tidy_logarithmic(bottom.xaxis)
        else:
            bottom.set_xticks(*ticks((at.min(), at.max())))
        buffer = io.StringIO()
        made.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        style.pyplot.close(made)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(FIRST, "var(--a)").replace(SECOND, "var(--b)")
    return Markup(re.sub(r'(<svg[^>]*?) width="[^"]*"|(<svg[^>]*?) height="[^"]*"', r"\1\2", svg))
