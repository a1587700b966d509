"""The experiment scripts: every run that they start is one that train.py understands, and a different one."""

import json
import os
import shlex
import subprocess

import pytest

from actors.launch import Launch
from learners.command_line import parse
from learners.model import config_file
from learners.options.presets import PRESETS
from tests.conftest import ROOT

FOLDER = ROOT / "scripts" / "experiments"
SCRIPTS = sorted({*FOLDER.glob("figure*.sh"), *FOLDER.glob("ablation*.sh")})
MODELS = json.loads((ROOT / "tests" / "data" / "model_configs.json").read_text())


def words_of(script, *more):
    environment = os.environ | {"DRY_RUN": "1"}
    shown = subprocess.run(["bash", str(script), *more], env=environment, capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in shown.stdout.splitlines()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_run_of_a_script_is_understood(script, monkeypatch, tmp_path):
    monkeypatch.setattr(config_file, "read_model_config", lambda config: MODELS[config.model.model])
    monkeypatch.chdir(tmp_path)  # of its runs, none is there yet
    runs = words_of(script, *(["--data", "some problems.jsonl"] if "give --data" in script.read_text() else []))
    name = runs[0][runs[0].index("--preset") + 1]
    processes = PRESETS[name].processes
    configs = [parse(words, Launch(world_size=processes, local_world_size=min(processes, 8))) for words in runs]
    assert len({config.output.output_dir for config in configs}) == len(runs) > 1
    described = {json.dumps(config.to_dict() | {"output": None}) for config in configs}
    assert len(described) == len(runs), "two runs are the same"
    dtypes = {config.precision.train_dtype for config in configs}
    assert dtypes <= {"bf16", "fp16"} and (len(dtypes) == 2 or script.stem == "figure4-algorithms")


def test_every_preset_of_the_paper_has_a_script():
    text = "".join(script.read_text() for script in SCRIPTS)
    assert {name for name in PRESETS if f"--preset {name} " in text} == set(PRESETS) - {
        "tiny", "smollm2-135m", "lora-r32-qwen2.5-math-1.5b",
    }  # fmt: skip
