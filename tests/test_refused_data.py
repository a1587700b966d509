"""What tasks, datasets, tokenizers and offline programs refuse, as far as no other file fires it."""

import json
import shutil
import sys

import pytest
import torch

import train
from actors import runtime
from actors.offline import OfflineOptions, check_sampling
from learners.command_line import parse
from learners.model.shape import shape_of
from learners.options.config import Config
from tasks.arithmetic.model import CHECKPOINT
from tasks.arithmetic.problems import generate, is_held_out
from tasks.benchmarks import load_benchmark
from tasks.datasets import read_questions
from tasks.errors import UsageError, first_line, require, require_number
from tasks.prompts import load_tokenizer
from tasks.registry import TASKS


def refusal(action, *arguments, **options) -> str:
    with pytest.raises(UsageError) as refused:
        action(*arguments, **options)
    sentence = str(refused.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def read(source) -> str:
    return refusal(read_questions, str(source), "problem", "answer", "train", "--data")


def test_sources_that_are_none(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("")
    assert "is no .jsonl, .json, .csv or .parquet file; convert it" in read(tmp_path / "a.txt")
    (tmp_path / "a.parquet").write_text("no parquet")
    assert "cannot be read" in read(tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text('{"problem": "1?"}')
    assert "does not hold one JSON object for each problem" in read(tmp_path / "a.json")
    (tmp_path / "folder").mkdir()
    assert "cannot be read as a dataset" in read(tmp_path / "folder")
    from huggingface_hub import HfApi, constants

    def answer(*_, **__):
        raise ConnectionError("no network.\nreally")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "dataset_info", answer)
    assert "nor a dataset that the hub gives (no network); check the name" in read("some/set")


def test_tokenizers_that_will_not_do(tmp_path):
    assert "has no tokenizer that loads (" in refusal(load_tokenizer, str(tmp_path))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, tmp_path / name)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    whole = load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    without = load_tokenizer(str(tmp_path))
    assert without.pad_token_id == without.eos_token_id == whole.eos_token_id
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    assert "has no end-of-sequence token" in refusal(load_tokenizer, str(tmp_path))


def config_of(**options) -> Config:
    config = Config()
    for name, value in options.items():
        setattr(*config.option(name), value)
    config.resolve()
    return config


def test_tasks_that_cannot_be_built(tmp_path, monkeypatch):
    (tmp_path / "card.json").write_text('{"task": "math", "prompt_template": "no"}')
    sanity = config_of(task="sanity", data=(str(tmp_path),), prompt_template="no")
    assert "has a card.json but no problems.jsonl; build the set again" in refusal(TASKS["sanity"].build, sanity)
    many = config_of(train_problems=10**9, arithmetic_levels=(0,))
    assert "--train-problems and --max-eval ask for more than there is" in refusal(TASKS["arithmetic"].build, many)
    gym = lambda **options: refusal(TASKS["reasoning-gym"].build, config_of(task="reasoning-gym", **options))
    assert "takes one generator" in gym(data=("a", "b"))
    assert "--eval-data is not used by --task reasoning-gym" in gym(data=("a",), eval_data="b")
    for name in [name for name in sys.modules if name.split(".")[0] == "reasoning_gym"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert "needs an optional package" in gym(data=("a",))


def test_more_sums_than_there_are_is_said_at_once():
    for levels in ((0,), (3,), (1, 2, 3)):
        with pytest.raises(ValueError, match="fewer than 1000000000 different train problems"):
            generate(10**9, 0, "train", levels)
    held_out = sum(is_held_out(f"{a}+{b}=") for a in range(1, 10) for b in range(1, 10))
    assert len(generate(81 - held_out, 0, "train", (0,))) == 81 - held_out, "all there are"
    assert len(generate(100_000, 0, "train", (2,))) == 100_000, "beyond 900 x 90: either operand may be the longer"
    with pytest.raises(ValueError, match="fewer than"):
        generate(81 - held_out + 1, 0, "train", (0,))


def test_benchmarks_that_are_none():
    assert "this name is the embedded one's; take another" in refusal(
        load_benchmark, "arithmetic=x.jsonl", "problem", "answer"
    )
    for name in ("aime99", "", "missing.jsonl", "mine=missing.csv"):
        assert "there is no file and no benchmark of that name; known are arithmetic, " in refusal(
            load_benchmark, name, "problem", "answer"
        )


OFFLINE = {
    "max_tokens": (0, "--max-tokens is 0; it must be greater"), "max_num_seqs": (0, "--max-num-seqs is 0"),
    "temperature": (-0.1, "--temperature is -0.1; it must not be"), "top_p": (0.0, "--top-p is 0; it must lie"),
    "seed": (2**32, "--seed is 4294967296; it must lie from 0"), "vllm_gpu_ratio": (1.0, "--vllm-gpu-ratio is a share"),
}  # fmt: skip


def sampling(**options) -> OfflineOptions:
    return OfflineOptions(**{"max_tokens": 10, "temperature": 1.0, "top_p": 1.0, "max_num_seqs": 4} | options)


def test_sampling_offline_is_checked_too():
    for name, (value, sentence) in OFFLINE.items():
        options = sampling(**{name: value})
        assert sentence in refusal(check_sampling, options, 32, {"max_position_embeddings": 10**6})
    options = sampling(max_tokens=480)
    check_sampling(options, 32, {"max_position_embeddings": 512})
    check_sampling(options, 10**9, {})
    assert "together exceed the model's context of 511" in refusal(
        check_sampling, options, 32, {"max_position_embeddings": 511}
    )
    assert "--prompt-max-length is 0" in refusal(check_sampling, options, 0, {})
    for seed, top_p, temperature, ratio in ((0, 1.0, 0.0, 0.001), (2**32 - 1, 0.001, 2.0, 0.999)):
        check_sampling(sampling(seed=seed, top_p=top_p, temperature=temperature, vllm_gpu_ratio=ratio), 1, {})


@pytest.mark.parametrize("words", [["--offload=optimizer"], ["--offload=parameters"], ["--vllm-sleep-level=1"]])
def test_what_moves_memory_needs_a_gpu(words, monkeypatch):
    joined = []
    monkeypatch.setattr(runtime, "prepare", lambda *_: None)
    monkeypatch.setattr(runtime, "init_process_group", lambda: joined.append(True))
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))
    assert f"{words[0].partition('=')[0]} moves memory between a GPU and its host" in refusal(
        train.prepare, parse(words)
    )
    assert not joined
    train.prepare(parse([]))
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cuda", 0))
    train.prepare(parse(words))
    assert len(joined) == 2


def test_a_model_that_cannot_be_built(tmp_path):
    content = json.loads((CHECKPOINT / "config.json").read_text()) | {"num_attention_heads": "many"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = config_of(model=str(tmp_path), plan=True)
    assert "cannot be built from its config.json" in refusal(shape_of, config)


def test_the_words_that_refuse():
    require(True, "never said.")
    with pytest.raises(UsageError, match="said"):
        require(False, "said.")
    for value, or_zero in ((1, False), (1e-9, False), (0, True), (3, True)):
        require_number("max_steps", value, or_zero=or_zero)
    assert refusal(require_number, "max_steps", 0) == "--max-steps is 0; it must be greater than 0."
    assert refusal(require_number, "max_steps", -2.5, or_zero=True) == "--max-steps is -2.5; it must not be negative."
    assert first_line(ValueError("a.\nb")) == "a" and first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("  \n")) == "ValueError" and issubclass(UsageError, ValueError)
