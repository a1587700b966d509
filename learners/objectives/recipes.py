"""Whose constants: what an objective's options default to under each recipe."""

from collections.abc import Sequence

from learners.objectives.batch import OBJECTIVES
from learners.objectives.rejections import REJECTIONS

GROUP_STD = {"advantage": "group-std", "aggregation": "token-mean-batch"}
CLIP = {"clip_low": 0.2, "clip_high": 0.2}

# `oat` is what each objective and rejection was registered with. `oat` and `verl` are the two frameworks of the paper's
# authors, as of October 2025 (sail-sg/Precision-RL). The others were read in snapshots of the dates given, August 2026
# but for TRL; docs/objectives.md says what in them has no counterpart here. What a source does not have stays as
# registered.
RECIPES: dict[str, dict[str, float | str]] = {
    "oat": {"gspo.advantage": "group-std"},
    "verl": {"clip_high": 0.28, "tis_cap": 3.0, "mis_cap": 3.0, "log_weight_clamp": 20.0},
    # huggingface/trl, 2026-07-24: trl/trainer/grpo_config.py, grpo_trainer.py
    "trl": GROUP_STD
    | CLIP
    | {"tis_cap": 3.0, "mis_cap": 3.0, "icepop_high": 3.0, "sapo.aggregation": "token-mean-sequence"},
    # PrimeIntellect-ai/prime-rl, 08-21: packages/prime-rl-configs/.../trainer.py, src/prime_rl/trainer/rl/loss.py
    "prime-rl": {"dppo-tv.dppo_delta": 0.2, "dppo_tau": 1e-3, "aggregation": "token-mean-batch"},
    # NovaSky-AI/SkyRL, 08-21: skyrl/train/config/config.py, docs/content/docs/algorithms/off_policy_correction.mdx
    "skyrl": GROUP_STD
    | CLIP
    | {"pg-seq-tis.tis_cap": 5.0, "grpo-seq-tis.tis_cap": 5.0, "log_weight_clamp": 20.0, "icepop_high": 2.0}
    | {"pg-token-tis.tis_cap": 2.0, "grpo-token-tis.tis_cap": 2.0, "geo_low": 0.99, "geo_high": 1.01}
    | {"dppo-tv.dppo_delta": 0.2},
    # THUDM/slime, 08-21: slime/utils/arguments.py, examples/train_infer_mismatch_helper/mis.py, mis.yaml
    "slime": GROUP_STD
    | CLIP
    | {"aggregation": "token-mean-sequence", "tis_cap": 2.0, "icepop_high": 2.0, "opsm_delta": 1e-4}
    | {"geo_low": 0.9999, "geo_high": 1.0001},
    # NVIDIA-NeMo/RL, 08-22: examples/configs/grpo_math_1B.yaml, recipes, nemo_rl/algorithms/loss/loss_functions.py
    "nemo-rl": GROUP_STD | CLIP | {"tis_cap": 2.0, "geo_high": 1.002},
    # AReaL, 08-22: areal/api/cli_args.py, examples/math/gsm8k_*.yaml, areal/utils/functional/functional.py
    "areal": GROUP_STD | CLIP,
    # OpenRLHF/OpenRLHF, 08-13: openrlhf/cli/train_ppo_ray.py, openrlhf/models/loss.py
    "openrlhf": GROUP_STD | CLIP | {"tis_cap": 5.0, "geo_low": 0.5, "geo_high": 5.0},
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
