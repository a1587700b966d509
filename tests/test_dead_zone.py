"""How late a run is behind its FP32 twin: distances between numbers, delays of curves that are known, the command."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts import update_reach
from scripts.parts import dead_zone
from scripts.parts.runs import find_runs
from tasks.errors import UsageError
from tests.run_folders import write_run

UPDATES = np.arange(40) * 4.0


def learned(updates: np.ndarray) -> np.ndarray:
    """A reward that rises from 0.6 towards 0.95; before the start it is as at the start."""
    return 0.95 - 0.35 * np.exp(-np.maximum(updates, 0) / 60)


@given(st.floats(1e-4, 10), st.sampled_from(["fp16", "bf16"]))
def test_spacing_is_the_distance_to_the_next_number(weight, dtype):
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    number = torch.tensor(weight).to(kind)
    apart = torch.nextafter(number, torch.tensor(math.inf, dtype=kind)).double() - number.double()
    assert dead_zone.spacing(np.array([-number.double().item()]), dtype)[0] == apart.item()


def test_a_weight_of_two_hundredths_needs_61_updates_of_full_size_in_bf16_and_8_in_fp16():
    assert dead_zone.updates_to_move(0.02, 1e-6, "bf16") == pytest.approx(61.0, abs=0.1)  # 2^-13 / 2 / 1e-6
    assert dead_zone.updates_to_move(0.02, 1e-6, "fp16") == pytest.approx(7.6, abs=0.1)


@settings(max_examples=30, deadline=None)
@given(st.floats(-8, 80), st.integers(0, 999))
def test_the_delay_is_the_shift_whatever_the_prompts_luck(shift, seed):
    luck, noise = np.random.default_rng(seed).normal(0, [[0.03], [0.002]], (2, len(UPDATES)))
    exact = learned(UPDATES)
    late = np.where(UPDATES <= 100, learned(UPDATES - shift), exact)  # and then caught up
    found = dead_zone.delay(UPDATES, late + luck + noise, exact + luck, exact, until=100)
    assert found == pytest.approx(shift, abs=2.5)


def made_sweep(place, shifts: dict[tuple[str, str], float], seeds=(0, 1)) -> None:
    """Runs at 1e-6 that are so many updates late, with the FP32 twins' luck."""
    for seed in seeds:
        luck = np.random.default_rng(seed).normal(0, 0.02, len(UPDATES))
        for (train, sample), shift in shifts.items():
            options = (f"--train-dtype={train}", f"--sample-dtype={sample}", "--learning-rate=1e-6", f"--seed={seed}")
            run = write_run(
                place / f"{train}-{sample}-{seed}", *options, rewards=(learned(UPDATES - shift) + luck).tolist()
            )
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            lines = [line | {"train/updates": 4 * line["step"]} for line in lines]
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_command_finds_the_delays_of_a_sweep_and_draws_them(tmp_path, capsys):
    made_sweep(
        tmp_path / "sweep", {("fp32", "fp32"): 0, ("bf16", "bf16"): 24, ("bf16", "fp32"): 0, ("fp16", "fp16"): 3}
    )
    assert update_reach.main(update_reach.Arguments(dead_zone=tmp_path / "sweep")) == 0
    made = json.loads((tmp_path / "sweep" / "dead-zone.json").read_text())
    assert made["median_weight"] == pytest.approx(0.021, abs=0.001)
    delays = {(row["train_dtype"], row["sample_dtype"]): row["delay"] for row in made["rows"]}
    assert delays == pytest.approx(
        {("fp32", "fp32"): 0, ("bf16", "bf16"): 24, ("bf16", "fp32"): 0, ("fp16", "fp16"): 3}, abs=1.0
    )
    bf16, fp16 = (next(r for r in made["rows"] if r["coarsest"] == name) for name in ("bf16", "fp16"))
    assert bf16["rate_over_spacing"] == pytest.approx(1e-6 / 2**-13) == fp16["rate_over_spacing"] / 8
    ratios = [1e-6 / 2**-13, 1e-6 / 2**-16]  # least squares of 24 and 3 updates over their inverses
    assert made["delay_factor"] == pytest.approx(
        (24 / ratios[0] + 3 / ratios[1]) / sum(r**-2 for r in ratios), rel=0.05
    )
    assert (tmp_path / "sweep" / "dead-zone.png").stat().st_size > 10_000
    assert "| 1e-06 | bf16 | bf16 | 0.00819 | 24" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(tmp_path):
    made_sweep(tmp_path / "alone", {("bf16", "bf16"): 24})
    with pytest.raises(UsageError, match=r"no FP32 twin with seed \[0, 1\]"):
        dead_zone.late(find_runs([tmp_path / "alone"]), 0.02)
    made_sweep(tmp_path / "only", {("fp32", "fp32"): 0})
    with pytest.raises(UsageError, match="no finished run in FP16 or BF16"):
        update_reach.main(update_reach.Arguments(dead_zone=tmp_path / "only"))
    assert not (tmp_path / "only" / "dead-zone.json").exists()
