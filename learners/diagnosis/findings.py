"""What a diagnosis is made of."""

from dataclasses import asdict, dataclass, field

HEALTHY = "healthy"


@dataclass(frozen=True)
class Finding:
    """One cause."""

    name: str
    """stable, for programs"""
    title: str
    """a few words, for people"""
    confidence: float
    """from 0 to 1"""
    evidence: str
    """one sentence with the numbers"""
    advice: str
    """one sentence: what to do"""

    @property
    def sentence(self) -> str:
        sure = "" if self.confidence >= 0.9 else "probably " if self.confidence >= 0.6 else "perhaps "
        return f"{sure}{self.title}: {self.evidence}"


@dataclass
class Diagnosis:
    """What is wrong, most likely cause first; nothing, if ``findings`` is empty."""

    findings: list[Finding]
    level: str
    """what rounding the gap looks like: "FP32", "FP16", "BF16", "8-bit", or "" above all of them"""
    numbers: dict[str, float]
    """the statistics, by name"""
    notes: list[str] = field(default_factory=list)
    """what is worth knowing and no fault"""
    horizon: dict = field(default_factory=dict)
    """of `diagnose.reach`"""
    worst: dict = field(default_factory=dict)
    """the responses and tokens that make up most of the gap"""

    @property
    def is_healthy(self) -> bool:
        return not self.findings

    @property
    def name(self) -> str:
        """Of the first finding, or "healthy"."""
        return self.findings[0].name if self.findings else HEALTHY

    @property
    def sentence(self) -> str:
        """The diagnosis in one sentence."""
        if self.findings:
            return self.findings[0].sentence
        if not self.numbers.get("gap_largest", 1.0):
            return (
                "the same numbers on both sides: one engine computes for both, or one column was written for the other"
            )
        return f"healthy, at the level of {self.level} rounding"

    def to_dict(self) -> dict:
        """For JSON."""
        return {
            "diagnosis": self.name,
            "sentence": self.sentence,
            "level": self.level,
            "findings": [vars(finding) for finding in self.findings],
            "notes": self.notes,
            "horizon": self.horizon | {name: asdict(value) for name, value in self.horizon.items() if name == "half"},
            "worst": self.worst,
            "numbers": self.numbers,
        }
