"""The table of an analysis: every metric in every dtype, with intervals, and BF16 over FP16."""

from dataclasses import asdict, dataclass

import numpy as np

from learners.diagnosis.bootstrap import Interval, interval
from scripts.parts.statistics import AGREEMENT_IS_ONE, SEQUENCE_KL, ResponseTallies, departure, ratio

MEANINGS = {
    "abs_prob_diff_mean": "mean |pi - mu| of a token",
    "kl_k3": "KL(mu, pi) of a token, k3",
    "seq_kl_k1": "KL(mu, pi) of a response, k1: -mean(y)",
    "seq_kl_k3": "KL(mu, pi) of a response, k3 summed over its tokens",
    "seq_log_ratio_slope": "slope of y over the length, per 1K tokens",
}
NOT_BOOTSTRAPPED = ("abs_prob_diff_max", "prob_diff_min", "prob_diff_max", "abs_log_ratio_max")  # extremes


@dataclass
class MismatchTable:
    """Metrics by name, each with its interval by dtype."""

    intervals: dict[str, dict[str, Interval]]
    """metric -> dtype -> interval"""
    ratios: dict[str, Interval | None]
    """metric -> BF16's departure from agreement over FP16's; empty without both, None where FP16's is not resolved"""
    confidence: float

    @classmethod
    def of(cls, tallies: dict[str, ResponseTallies], replicates: int, confidence: float, seed: int) -> "MismatchTable":
        """Compute everything; each dtype's responses are drawn again on their own."""
        estimates = {dtype: tally.metrics() for dtype, tally in tallies.items()}
        drawn = {dtype: tally.replicates(replicates, seed + i) for i, (dtype, tally) in enumerate(tallies.items())}
        names = list(next(iter(estimates.values())))
        names = [*MEANINGS, *(name for name in names if name not in MEANINGS)]
        intervals = {
            name: {d: interval(estimates[d][name], drawn[d][name], confidence) for d in tallies} for name in names
        }
        for name in NOT_BOOTSTRAPPED:  # a sample's extreme says nothing about the spread of a population's
            intervals[name] = {d: Interval(v.estimate, np.nan, np.nan) for d, v in intervals[name].items()}
        ratios = {}
        if {"fp16", "bf16"} <= set(tallies):
            for name in names:
                over, under = intervals[name]["bf16"], intervals[name]["fp16"]
                ratios[name] = ratio(name, over, drawn["bf16"][name], under, drawn["fp16"][name], confidence)
        return cls(intervals, ratios, confidence)

    def header(self) -> list[str]:
        dtypes = next(iter(self.intervals.values()))
        return ["metric", *(dtype.upper() for dtype in dtypes), *(["BF16/FP16"] if self.ratios else [])]

    def rows(self) -> list[list[str]]:
        """As text: name, an estimate with its interval for each dtype, and the ratio."""
        made = []
        for name, by_dtype in self.intervals.items():
            label = f"{name} - 1" if name in AGREEMENT_IS_ONE else MEANINGS.get(name, name)
            row = [label, *(interval_text(departed(name, value)) for value in by_dtype.values())]
            if self.ratios:
                row.append("" if self.ratios[name] is None else interval_text(self.ratios[name], "{:.3g}"))
            made.append(row)
        return made

    def markdown(self, caption: str) -> str:
        lines = [f"{caption}. In brackets: {self.confidence:.0%} bootstrap intervals over responses.", ""]
        lines += ["| " + " | ".join(self.header()) + " |", "|" + "---|" * len(self.header())]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows()]
        return "\n".join(lines) + "\n"

    def print(self, caption: str) -> None:
        """To the terminal, the main metrics first."""
        from rich.console import Console
        from rich.table import Table

        table = Table(title=caption, caption=f"brackets: {self.confidence:.0%} bootstrap interval over responses")
        for index, heading in enumerate(self.header()):
            table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=index > 0)
        for index, row in enumerate(self.rows()):
            table.add_row(*row, end_section=index == len(MEANINGS) - 1)
        Console(width=120).print(table)

    def to_dict(self) -> dict:
        """For JSON: NaN becomes None."""
        plain = {
            name: {dtype: _plain(value) for dtype, value in by_dtype.items()}
            for name, by_dtype in self.intervals.items()
        }
        ratios = {name: None if value is None else _plain(value) for name, value in self.ratios.items()}
        return {"confidence": self.confidence, "metrics": plain, "bf16_over_fp16": ratios}

    def kl_notes(self) -> dict[str, str]:
        """By dtype, the KL divergence of a response in words."""
        k1, k3 = (self.intervals[name] for name in SEQUENCE_KL)
        return {d: f"KL of a response\n  {k1[d].estimate:.3g} (k1), {k3[d].estimate:.3g} (k3)" for d in k1}


def departed(name: str, value: Interval) -> Interval:
    return Interval(*(departure(name, bound) for bound in (value.estimate, value.low, value.high)))


def interval_text(value: Interval, spec: str = "{:.3g}") -> str:
    """Example: ``0.000546 [0.000461, 0.000636]``; without bounds, the estimate alone."""
    estimate, low, high = (spec.format(x) for x in (value.estimate, value.low, value.high))
    return estimate if np.isnan(value.low) else f"{estimate} [{low}, {high}]"


def _plain(value: Interval) -> dict:
    return {key: None if np.isnan(x) or np.isinf(x) else x for key, x in asdict(value).items()}
