"""What the rules look at: the numbers, what the user believes, and how large rounding alone may be."""

from dataclasses import dataclass, field

from learners.diagnosis.findings import Finding
from learners.diagnosis.sample import Sample
from learners.diagnosis.totals import Totals

# Median and nine-tenths quantile of |gap| in log odds that two engines at the same weights differ by, at most: twice
# what the loudest model and temperature measured have (docs/doctor.md).
LIMITS = {"fp32": (3e-4, 3e-3), "fp16": (0.03, 0.12), "bf16": (0.24, 0.9), "8-bit": (0.5, 1.6)}
LEVELS = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16", "8-bit": "8-bit"}
# Differences of half-precision logits are multiples of 2^-k; nearly all are with k in these ranges, as the logits of
# language models with large vocabularies are of 4 to 64, those of models with few tokens of 1 to 16.
GRIDS = {True: {"bf16": range(0, 5), "fp16": range(5, 10)}, False: {"bf16": range(0, 8), "fp16": range(8, 12)}}
FEWEST_PAIRS = (6, 3, 8)  # that show BF16; FP16; a size in units of the grid
LARGE_VOCABULARY = 1000
UNITS = (2.5, 9.0)  # of that grid, what rounding moves the log odds by at most: median and nine-tenths quantile
DIRECTED = 5.0  # standard errors of a share of signs


@dataclass
class Case:
    """One dump as the rules see it."""

    numbers: dict[str, float]
    claims: dict
    totals: Totals
    sample: Sample
    problems: list[str]
    unequal: int
    """rows that were dropped since their columns have unequal lengths"""
    findings: list[Finding] = field(default_factory=list)
    """so far"""

    @property
    def found(self) -> set[str]:
        return {finding.name for finding in self.findings}

    def get(self, name: str, otherwise: float = 0.0) -> float:
        return self.numbers.get(name, otherwise)

    def has(self, *names: str) -> bool:
        return all(name in self.numbers for name in names)

    @property
    def levels(self) -> list[tuple[int, float]]:
        """The root mean square of the gap at each training step."""
        named = [(name.removeprefix("step_"), value) for name, value in self.numbers.items()]
        return sorted((int(step), value) for step, value in named if step.isdigit())

    def claimed(self, side: str) -> str | None:
        """The dtype that the user believes the "sample" or "train" side to be in."""
        value = str(self.claims.get(f"{side}_dtype") or "").lower()
        known = {"fp16": "fp16", "float16": "fp16", "half": "fp16", "bf16": "bf16", "bfloat16": "bf16",
                 "fp32": "fp32", "float32": "fp32"}  # fmt: skip
        return known.get(value.removeprefix("torch."))

    def seen(self, side: str) -> str | None:
        """The dtype that the logits of a side ("mu" or "pi") lie on the grid of; None where that cannot be seen."""
        grids = GRIDS[self.get("vocabulary") > LARGE_VOCABULARY]
        grid = self.get(f"grid_{side}", float("inf"))
        found = next((name for name, exponents in grids.items() if grid in exponents), None)
        # A few differences may lie on a coarser grid than theirs by chance, not on a finer one.
        return found if self.get("pairs") >= FEWEST_PAIRS[0 if found == "bf16" else 1] else None

    @property
    def expected(self) -> str:
        """The coarsest dtype of the two sides, by what was seen or else claimed; bf16 where nothing is known."""
        sides = [self.claimed("sample"), self.claimed("train")]
        order = ["fp32", "fp16", "bf16"]
        return max((side or "bf16" for side in sides), key=order.index)

    @property
    def level(self) -> str:
        """The finest dtype whose rounding explains the gap; "" if none does."""
        middle, most = self.get("d_50"), self.get("d_90")
        return next((name for name, (a, b) in LIMITS.items() if middle <= a and most <= b), "")

    @property
    def unit(self) -> float | None:
        """Of the coarser of the two sides' grids, where both are seen well."""
        if None in (self.seen("mu"), self.seen("pi")) or min(self.get("pairs"), self.get("open")) < FEWEST_PAIRS[2]:
            return None
        return 2.0 ** -min(self.get("grid_mu"), self.get("grid_pi"))

    @property
    def units(self) -> float | None:
        """The median gap in log odds, in units of the logits' grid."""
        return None if self.unit is None else self.get("d_50") / self.unit

    @property
    def middle_is_rounding(self) -> bool:
        """Whether rounding explains the gap of the median token."""
        return self.get("d_50") <= LIMITS[self.expected][0] and (self.units is None or self.units <= UNITS[0])

    @property
    def one_id_holds_the_gap(self) -> bool:
        """Whether nearly all of the gap is at tokens of one id, and the others are at rounding."""
        size = self.get("id_rms")
        alone = self.get("id_share") > 0.8 and self.get("id_others_rms") < 0.1 * size and self.get("id_count") >= 4
        return self.middle_is_rounding and alone and size > 0.3

    @property
    def is_beyond_rounding(self) -> bool:
        """Whether the gap is larger than rounding in the dtypes at hand makes it."""
        middle, most = LIMITS[self.expected]
        if self.get("d_50") > middle or self.get("d_90") > most:
            return True
        if self.unit is None:
            return False
        return self.get("d_50") > UNITS[0] * self.unit or self.get("d_90") > UNITS[1] * self.unit

    @property
    def is_directed(self) -> bool:
        """Whether pi is systematically sharper or flatter than mu, as training makes it and rounding does not."""
        likely, unlikely = self.get("likely_up_z"), self.get("unlikely_up_z")
        far = abs(self.get("likely_up", 0.5) - 0.5) > 0.07 and abs(self.get("unlikely_up", 0.5) - 0.5) > 0.08
        return abs(likely) > DIRECTED and abs(unlikely) > 2.5 and likely * unlikely < 0 and far
