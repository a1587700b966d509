"""Whose constants: what an objective's options default to under each recipe."""

from collections.abc import Sequence

from learners.objectives.batch import OBJECTIVES
from learners.objectives.rejections import REJECTIONS

# The authors' two frameworks differ in these; `oat` is what each objective was registered with above. Source: their
# code as of October 2025 (sail-sg/Precision-RL). What an objective has no use for is left out.
RECIPES: dict[str, dict[str, float | str]] = {
    "oat": {"gspo.advantage": "group-std"},
    "verl": {"clip_high": 0.28, "tis_cap": 3.0, "mis_cap": 3.0, "log_weight_clamp": 20.0},
}
CLIPS = ("clip_low", "clip_high")
OWN_CLIPS = ("gspo", "gspo-bypass", "gmpo", "cispo")  # their clipping is of another size
SEQUENCE_RATIOS = ("gspo", "gspo-bypass", "gmpo")  # whose loss is of a response, whatever its length

CATALOGUE = (*OBJECTIVES.values(), *REJECTIONS.values())
THRESHOLDS = sorted({threshold for made in CATALOGUE for threshold in made.thresholds})


def defaults(name: str, recipe: str, reject: Sequence[str] = ()) -> dict[str, float | str]:
    """What an objective's options default to under a recipe: its thresholds and those of the rejections beside it, the
    advantage and the aggregation. A recipe's value for one objective alone stands under "objective.threshold".
    """
    chosen = {}
    for made in (OBJECTIVES[name], *(REJECTIONS[rejection] for rejection in reject)):
        chosen |= made.thresholds
    constants = RECIPES[recipe]
    chosen |= {"advantage": "group-mean", "aggregation": "token-sum-constant"}
    chosen |= {key: constants[key] for key in chosen if key in constants and not (key in CLIPS and name in OWN_CLIPS)}
    if name in SEQUENCE_RATIOS:
        chosen["aggregation"] = "token-mean-sequence"
    return chosen | {key: constants[f"{name}.{key}"] for key in chosen if f"{name}.{key}" in constants}
