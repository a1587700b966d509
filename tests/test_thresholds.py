"""Every number that an objective or a rejection comes with, and where it was read (docs/objectives.md says more)."""

import inspect
import re

import pytest
import torch

from learners.objectives import OBJECTIVES, RECIPES, REJECTIONS, PolicyBatch, defaults
from learners.objectives.advantages import group_std
from learners.objectives.batch import finite_exp
from learners.objectives.trust_regions import masked_surrogate
from learners.objectives.weights import importance_weight
from tests.conftest import ROOT

CLIP = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 0.0}  # arXiv 1707.06347; dual clip off (1912.09729)
WEIGHT = {"log_weight_clamp": 0.0}  # none in the authors' Oat code
VESPO = {"vespo_k_positive": 2.0, "vespo_lambda_positive": 3.0}  # TRL
VESPO |= {"vespo_k_negative": 3.0, "vespo_lambda_negative": 2.0}
GSPO = {"clip_low": 3e-4, "clip_high": 4e-4}  # arXiv 2507.18071
SOURCES = {
    "reinforce": {}, "pg-seq-is": WEIGHT, "pg-token-is": WEIGHT, "vespo": VESPO, "gspo": GSPO, "gspo-bypass": GSPO,
    # the authors' Oat code: min(w, 3) and w 1{w <= 3} of a response, min(w_t, 2) of a token, 10 for GRPO's MIS
    "pg-seq-tis": WEIGHT | {"tis_cap": 3.0}, "pg-seq-mis": WEIGHT | {"mis_cap": 3.0},
    "pg-token-tis": WEIGHT | {"tis_cap": 2.0}, "grpo": CLIP, "grpo-bypass": CLIP,
    "grpo-token-tis": CLIP | WEIGHT | {"tis_cap": 2.0}, "grpo-seq-tis": CLIP | WEIGHT | {"tis_cap": 2.0},
    "grpo-seq-mis": CLIP | WEIGHT | {"mis_cap": 10.0},
    "icepop": CLIP | WEIGHT | {"icepop_low": 0.5, "icepop_high": 5.0},  # Ling team, 2025
    "gmpo": {"clip_low": 0.4, "clip_high": 0.4},  # arXiv 2507.20673
    "sapo": {"sapo_tau_positive": 1.0, "sapo_tau_negative": 1.05},  # arXiv 2511.20347
    "cispo": {"clip_low": 1.0, "clip_high": 4.0},  # arXiv 2506.13585: none below; 2510.13786: 5 above
    "dppo-tv": {"dppo_delta": 0.15, "dppo_tau": 0.0}, "dppo-kl": {"dppo_delta": 0.05, "dppo_tau": 0.0},  # 2602.04879
}  # fmt: skip
REJECTING = {
    "geo": {"geo_low": 0.999, "geo_high": 1.001}, "k3": {"k3_cap": 0.01}, "max-token": {"token_k2_cap": 2.5},  # verl
    "outlier": {"outlier_low": 1e-4, "outlier_high": 100.0},  # SkyRL
    "veto": {"veto_below": 1e-4}, "opsm": {"opsm_delta": 0.5}, "kpop": {"kpop_cap": 2.0},  # slime; TRL; AReaL
    "icepop": {"icepop_low": 0.5, "icepop_high": 5.0}, "m2po": {"m2_cap": 0.04},  # Ling team; AReaL
}  # fmt: skip
NEEDS_PI_OLD = {"grpo", "grpo-token-tis", "grpo-seq-tis", "grpo-seq-mis", "icepop", "gspo", "gmpo", "sapo", "cispo"}
WEIGHS = {"pg-seq-is": "sequence", "pg-seq-tis": "sequence", "pg-seq-mis": "sequence", "pg-token-is": "token",
          "pg-token-tis": "token", "grpo-token-tis": "token", "grpo-seq-tis": "sequence", "grpo-seq-mis": "sequence",
          "icepop": "token"}  # fmt: skip
# What a recipe changes of the above, all of it: read in the sources that docs/objectives.md names with their versions.
CHANGED = {
    "oat": {"gspo.advantage": "group-std"},
    "verl": {"clip_high": 0.28, "tis_cap": 3.0, "mis_cap": 3.0, "log_weight_clamp": 20.0},
    "trl": {"tis_cap": 3.0, "mis_cap": 3.0, "icepop_high": 3.0, "sapo.aggregation": "token-mean-sequence"},
    "prime-rl": {"dppo-tv.dppo_delta": 0.2, "dppo_tau": 1e-3, "aggregation": "token-mean-batch"},
    "skyrl": {"pg-seq-tis.tis_cap": 5.0, "grpo-seq-tis.tis_cap": 5.0, "pg-token-tis.tis_cap": 2.0,
              "grpo-token-tis.tis_cap": 2.0, "log_weight_clamp": 20.0, "icepop_high": 2.0, "geo_low": 0.99,
              "geo_high": 1.01, "dppo-tv.dppo_delta": 0.2},
    "slime": {"aggregation": "token-mean-sequence", "tis_cap": 2.0, "icepop_high": 2.0, "opsm_delta": 1e-4,
              "geo_low": 0.9999, "geo_high": 1.0001},
    "nemo-rl": {"tis_cap": 2.0, "geo_high": 1.002}, "areal": {},
    "openrlhf": {"tis_cap": 5.0, "geo_low": 0.5, "geo_high": 5.0},
}  # fmt: skip
FOLLOW_GRPO = ("trl", "skyrl", "slime", "nemo-rl", "areal", "openrlhf")  # the spread, the mean of all tokens, 0.2
OWN_CLIPS, OF_RESPONSES = ("gspo", "gspo-bypass", "gmpo", "cispo"), ("gspo", "gspo-bypass", "gmpo")


def test_every_objective_and_rejection_comes_with_the_numbers_of_its_source():
    assert {name: made.thresholds for name, made in OBJECTIVES.items()} == SOURCES
    assert {name: made.thresholds for name, made in REJECTIONS.items()} == REJECTING


def test_what_each_needs_and_weighs():
    assert {name for name, made in OBJECTIVES.items() if made.needs_pi_old} == NEEDS_PI_OLD
    assert {name: made.weighs for name, made in OBJECTIVES.items() if made.weighs} == WEIGHS
    assert {name: made.penalties for name, made in OBJECTIVES.items() if made.penalties} == {
        name: ("dppo_tau",) for name in ("dppo-tv", "dppo-kl")
    }
    assert {name for name, made in REJECTIONS.items() if not made.stays_counted} == {"m2po"}
    assert {name for name, made in REJECTIONS.items() if made.needs_all} == {"m2po"}
    for register in (OBJECTIVES, REJECTIONS):
        assert {name: made.name for name, made in register.items()} == {name: name for name in register}


@pytest.mark.parametrize("recipe", CHANGED)
def test_a_recipe_changes_these_numbers_and_no_other(recipe):
    changed = dict(CHANGED[recipe])
    if recipe in FOLLOW_GRPO:
        changed = {
            "advantage": "group-std",
            "aggregation": "token-mean-batch",
            "clip_low": 0.2,
            "clip_high": 0.2,
        } | changed
    for name, own in SOURCES.items():
        expected = {"advantage": "group-mean", "aggregation": "token-sum-constant"} | own
        for option in REJECTING:
            expected |= REJECTING[option]
        general = {key: value for key, value in changed.items() if key in expected}
        if name in OWN_CLIPS:
            general = {key: value for key, value in general.items() if not key.startswith("clip_")}
        expected |= general
        if name in OF_RESPONSES:
            expected["aggregation"] = "token-mean-sequence"
        expected |= {key.partition(".")[2]: value for key, value in changed.items() if key.startswith(f"{name}.")}
        assert defaults(name, recipe, list(REJECTING)) == expected, name


def test_no_recipe_is_left_out():
    assert set(RECIPES) == set(CHANGED)


def test_the_docs_have_the_same_numbers():
    """Each objective's and rejection's own row names the numbers that it comes with (oat's, the first)."""
    text = (ROOT / "docs" / "objectives.md").read_text()
    rows = {cells[1].split()[0]: cells for line in text.splitlines() if len(cells := re.split(r"(?<!\\)\|", line)) > 4
            and cells[1].strip()}  # fmt: skip
    for name, thresholds in (SOURCES | {f"reject {n}": t for n, t in REJECTING.items()}).items():
        for threshold, value in thresholds.items():
            words = f"`--{threshold.replace('_', '-')}` "
            row = rows.get(name.removeprefix("reject "), [])
            told = re.search(re.escape(words) + r"([\d.e-]+)", "|".join(row))
            assert told is None or float(told[1]) == value, (name, threshold)


def test_functions_take_what_they_are_registered_with():
    for made in (*OBJECTIVES.values(), *REJECTIONS.values()):
        names = inspect.signature(made.function).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in names.values())
        assert takes_any or set(list(names)[1:]) == set(made.thresholds), made.name
        with pytest.raises(AssertionError):
            made(None, unknown=1.0)


def test_a_ratio_ends_at_e_to_the_88_with_that_slope():
    """FP32 ends at e^88.7; and below 88 it is exp, whose slope is itself."""
    logs = torch.tensor([-80.0, -1.0, 0.0, 87.5, 88.0, 88.5, 1000.0], requires_grad=True)
    ratio = finite_exp(logs)
    ratio.sum().backward()
    expected = torch.tensor([-80.0, -1.0, 0.0, 87.5, 88.0, 88.0, 88.0], dtype=torch.float64).exp()
    assert torch.isfinite(ratio).all()
    torch.testing.assert_close(ratio.detach().double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(logs.grad.double(), expected, rtol=1e-5, atol=0)


def test_a_spread_is_never_divided_by_0():
    """1e-8 beside the spread: nothing where rewards differ as rewards do, a bound where they hardly do."""
    small = torch.tensor([0.0, 1e-8, 0.0, 1.0], dtype=torch.float64)
    spread = 1e-8 / 2**0.5
    assert group_std(small, 2)[:2].tolist() == pytest.approx([-0.5e-8 / (spread + 1e-8), 0.5e-8 / (spread + 1e-8)])
    assert group_std(small, 2)[2:].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], rel=1e-7)


def test_a_weight_at_its_bound_is_within():
    at, above = torch.zeros(1, 1), torch.full((1, 1), 1e-3)
    for limit in ({"tis_cap": 1.0}, {"mis_cap": 1.0}, {"icepop_low": 1.0, "icepop_high": 1.0}):
        for log_weight, changed in ((at, 0.0), (above, 1.0)):
            weight, statistics = importance_weight("token", log_weight, log_weight_clamp=0.0, **limit)
            told = next(value for name, value in statistics.items() if name.endswith("fraction"))
            assert told.item() == changed
            assert weight.item() == (1.0 if not changed or "tis_cap" in limit else 0.0)


def test_a_token_at_the_radius_of_its_trust_region_is_within():
    batch = PolicyBatch(torch.full((1, 1), -0.5), torch.full((1, 1), -1.0), torch.ones(1), torch.ones(1, 1) > 0)
    for delta, dropped in ((0.25, 0.0), (0.24, 1.0)):
        loss, statistics = masked_surrogate(batch, torch.full((1, 1), 0.25), delta, tau=0.0)
        assert statistics["masked_fraction"].item() == dropped and (loss.item() == 0) == bool(dropped)
