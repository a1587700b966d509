"""What each preset hands to Oat, DeepSpeed and vLLM is accepted by them, without a model or a GPU."""

import json

import pytest

from actors.launch import Launch
from learners.command_line import parse
from learners.model import config_file
from learners.options.presets import PRESETS
from tests.conftest import ROOT

pytestmark = pytest.mark.engines

MODELS = json.loads((ROOT / "tests" / "data" / "model_configs.json").read_text())
REAL = [name for name in PRESETS if name != "tiny"]


@pytest.mark.parametrize("name", REAL)
def test_the_engines_take_the_arguments(name, monkeypatch, tmp_path):
    import train

    monkeypatch.setattr(config_file, "read_model_config", lambda config: MODELS[config.model.model])
    needed = {"model": "smollm2-135m", "data": "x.jsonl"}
    processes = PRESETS[name].processes
    words = [f"--preset={name}", *(f"--{option}={needed[option]}" for option in PRESETS[name].needs)]
    config = parse(words, Launch(world_size=processes, local_world_size=min(processes, 8)))
    config.sampling.vllm_sleep_level = 0  # the one option that needs a GPU to be there
    train.prepare(config)
    from deepspeed.runtime.config import DeepSpeedConfig
    from vllm import EngineArgs

    from actors.engine import VLLM_DTYPES
    from learners.options.oat_args import to_oat_args
    from learners.options.precision import Precision
    from learners.update.strategy import PrecisionStrategy

    args, precision = to_oat_args(config), Precision.of(config.precision)
    assert args.generate_max_length == config.sampling.generate_max_length
    strategy = PrecisionStrategy(args, precision, offload=config.training.offload)
    strategy.world_size = 1
    described = DeepSpeedConfig(strategy.get_ds_train_config(is_wrapped=True))
    assert described.zero_optimization_stage == config.training.zero_stage
    (tmp_path / "config.json").write_text(json.dumps(MODELS[config.model.model]))
    model = EngineArgs(
        model=str(tmp_path), dtype=VLLM_DTYPES[precision.sample], max_model_len=config.max_model_len,
        skip_tokenizer_init=True,
    ).create_model_config()  # fmt: skip
    assert (model.dtype, model.max_model_len) == (precision.sample, config.max_model_len)
