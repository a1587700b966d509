"""What the rules look at: the numbers, what the user believes, and how large rounding alone may be."""

from dataclasses import dataclass, field

from learners.diagnosis.totals import Totals

# Median and nine-tenths quantile of |gap| in log odds that two engines at the same weights differ by, at most: three
# times what the loudest model measured has (docs/doctor.md).
LIMITS = {"fp32": (3e-4, 3e-3), "fp16": (0.04, 0.2), "bf16": (0.3, 1.5), "8-bit": (0.6, 3.0)}
LEVELS = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16", "8-bit": "8-bit"}
# 2^-k, the grid that differences of logits lie on: k of a language model's logits, of 4 to 64.
GRIDS = {"bf16": range(0, 6), "fp16": range(6, 11)}
OTHER_WEIGHTS = (2.0, 12.0)  # times a grid's unit: what rounding of logits on that grid leaves below


@dataclass
class Case:
    """One dump as the rules see it."""

    numbers: dict[str, float]
    claims: dict
    totals: Totals
    problems: list[str]
    lengths: object
    """(N,) tokens of each response, those that are not finite included"""
    found: set[str] = field(default_factory=set)
    """names of the findings so far"""

    def get(self, name: str, otherwise: float = 0.0) -> float:
        return self.numbers.get(name, otherwise)

    def has(self, *names: str) -> bool:
        return all(name in self.numbers for name in names)

    def claimed(self, side: str) -> str | None:
        """The dtype that the user believes the "sample" or "train" side to be in."""
        value = str(self.claims.get(f"{side}_dtype") or "").lower()
        known = {"fp16": "fp16", "float16": "fp16", "half": "fp16", "bf16": "bf16", "bfloat16": "bf16",
                 "fp32": "fp32", "float32": "fp32"}  # fmt: skip
        return known.get(value.removeprefix("torch."))

    def seen(self, side: str) -> str | None:
        """The dtype that the logits of a side ("mu" or "pi") lie on the grid of; None where that cannot be seen."""
        grid, pairs = self.get(f"grid_{side}", float("inf")), self.get("pairs")
        if pairs < 6:
            return None
        return next((name for name, exponents in GRIDS.items() if grid in exponents), None)

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
    def units(self) -> float | None:
        """The median gap in log odds, in units of the logits' grid where that is seen on both sides."""
        grids = [self.get(f"grid_{side}", float("inf")) for side in ("mu", "pi")]
        if None in (self.seen("mu"), self.seen("pi")):
            return None
        return self.get("d_50") * 2.0 ** min(grids)

    @property
    def is_beyond_rounding(self) -> bool:
        """Whether the gap is larger than rounding in the dtypes at hand makes it."""
        middle, most = LIMITS[self.expected]
        if self.get("d_50") > middle or self.get("d_90") > most:
            return True
        if self.units is None:
            return False
        grid = min(self.get("grid_mu"), self.get("grid_pi"))
        return self.units > OTHER_WEIGHTS[0] or self.get("d_90") * 2.0**grid > OTHER_WEIGHTS[1]
