"""How long responses may be (learners/diagnosis/horizon.py), as text, a table and a figure."""

import math
from collections.abc import Iterable
from dataclasses import astuple

import numpy as np

from learners.diagnosis.bootstrap import Interval
from learners.diagnosis.horizon import Horizon
from scripts.parts.responses import Response


def ragged(responses: Iterable[Response]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log mu, log pi and starts of scored responses, as `horizon_of` takes them."""
    scored = list(responses)
    log_mu, log_pi = (np.concatenate([getattr(r, name) for r in scored]) for name in ("log_mu", "log_pi"))
    return log_mu, log_pi, np.cumsum([0, *(len(r.log_mu) for r in scored)])[:-1]


def tokens_text(value: Interval) -> str:
    """Example: ``203 [161, 265]``; a length that is not reached, or not resolved, is "never" or "?"."""

    def text(length: float) -> str:
        return "" if not math.isfinite(length) else f"{length:,.0f}" if length < 1e6 else f"{length:.1e}"

    return f"{text(value.estimate) or 'never'} [{text(value.low) or '?'}, {text(value.high) or '?'}]"


def half_text(half: Interval) -> str:
    """Example: ``above 203 [161, 265] tokens``."""
    return f"above {tokens_text(half)} tokens" if math.isfinite(half.estimate) else "at no length"


def markdown(horizons: dict[str, Horizon]) -> str:
    """A table of the shares at each length: measured on prefixes / log-normal, for each dtype."""

    def text(value: Interval | None) -> str:
        return "-" if value is None else f"{value.estimate:.4g} [{value.low:.4g}, {value.high:.4g}]"

    heads = [f"{dtype.upper()}, {how}" for dtype in horizons for how in ("measured", "log-normal")]
    lines = ["Share of the sample that weights of responses leave, on their first so many tokens:", ""]
    lines += ["| tokens | " + " | ".join(heads) + " |", "|" + "---|" * (1 + len(heads))]
    for i, length in enumerate(next(iter(horizons.values())).lengths):
        cells = [text(shares[i]) for h in horizons.values() for shares in (h.measured, h.extrapolated)]
        lines.append(f"| {length:,} | " + " | ".join(cells) + " |")
    halves = [cell for h in horizons.values() for cell in ("", tokens_text(h.half))]
    lines.append("| half is gone at | " + " | ".join(halves) + " |")
    dependence = [cell for h in horizons.values() for cell in ("", text(h.dependence))]
    lines.append("| variance of a sum / of independent tokens | " + " | ".join(dependence) + " |")
    return "\n".join(lines) + "\n"


def draw(horizons: dict[str, Horizon], title: str):
    """Share of the sample against the length of the responses: measured marks, extrapolated lines; by dtype."""
    from scripts.parts import style

    made, ((axis,),) = style.figure(1, 1, (7.4, 4.3))
    axis.axhline(0.5, color="#9a9a9a", linewidth=0.8)
    for dtype, horizon in horizons.items():
        look, columns = {"color": style.COLORS[dtype]}, lambda shares: np.array(list(map(astuple, shares))).T
        estimate, low, high = columns(horizon.extrapolated)
        axis.plot(horizon.lengths, estimate, style.LINES[dtype], **look,
                  label=f"{style.short(dtype)}: half is gone above {tokens_text(horizon.half)} tokens")  # fmt: skip
        axis.fill_between(horizon.lengths, low, high, **look, alpha=0.18, linewidth=0)
        seen = [(n, s) for n, s in zip(horizon.lengths, horizon.measured, strict=True) if s is not None]
        if seen:
            estimate, low, high = columns(s for _, s in seen)
            bars = np.maximum([estimate - low, high - estimate], 0)  # rounding may put an estimate just outside
            axis.errorbar([n for n, _ in seen], estimate, bars, fmt="o", **look, markersize=4, capsize=2)
    axis.errorbar([], [], [], fmt="o", color="#555555", markersize=4, label="measured on first tokens")
    axis.plot([], [], color="#555555", label="extrapolated, log-normal")
    axis.set(xscale="log", xlabel="length of the responses (tokens)", title=title, ylim=(0, 1.03),
             ylabel="share of the sample that is left")  # fmt: skip
    axis.set_xticks(ticks := horizon.lengths[::2], [f"{n:,}" for n in ticks])
    axis.minorticks_off()
    made.legend(loc="outside lower center", ncols=2)
    return made
