"""The sum of what a process holds: its parts against real tensors, how it moves, and what the command line says."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import train
from actors import devices
from actors.launch import Launch
from learners.command_line import parse
from learners.memory import plan as memory_plan
from learners.memory.advice import STAGES, candidates, plan_for, setting_of
from learners.memory.plan import BACKWARD, BYTES, GIB, SAMPLING, STARTS, UPDATE, Setting, make_plan
from learners.model import config_file as model_files
from learners.model.shape import ModelShape, shape_of
from learners.options.presets import PRESETS
from tasks.errors import UsageError
from tests.conftest import ROOT
from tests.test_presets import MODELS, NEEDED

QWEN_7B = MODELS["Qwen/Qwen2.5-Math-1.5B"] | {
    "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
    "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
MATH = ["--task=math", "--data=x.jsonl", "--prompt-template=qwen_math", "--generate-max-length=3000"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has the presets' models, their config.json alone."""

    def fetch(model: str) -> str:
        file = tmp_path / f"{model.replace('/', '-')}.json"
        file.write_text(json.dumps(MODELS[model]))
        return str(file)

    monkeypatch.setattr(model_files, "_fetch_model_config", fetch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def seven_billion(tmp_path):
    folder = tmp_path / "seven"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN_7B))
    return f"--model={folder}"


def planned(*arguments: str, gpus: int = 8, memory: float = 80):
    config = parse([f"--plan-gpus={gpus}", f"--plan-memory={memory}", "--plan=True", *MATH, *arguments])
    return plan_for(config, config.planned_launch())[0]


# ---------------------------------------------------------------------------------------------- against real tensors


def kept_by_autograd(kind: str, dtype: torch.dtype, layers: int, checkpointing: bool, **options) -> tuple[int, object]:
    """Bytes that a decoder of so many layers keeps for the backward pass of 64 tokens, and its configuration."""
    sizes = dict(hidden_size=128, intermediate_size=320, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    sizes["max_position_embeddings"] = 8192
    described = AutoConfig.for_model(kind, **sizes, num_hidden_layers=layers, vocab_size=256, **options)
    model = AutoModelForCausalLM.from_config(described, dtype=dtype, attn_implementation="sdpa").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.get_decoder()(input_ids=torch.randint(0, 256, (1, 64)), use_cache=False)
    assert out.last_hidden_state.requires_grad
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own), described


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize(("kind", "options"), [
    ("qwen2", {}), ("llama", {}), ("qwen3", {}),
    ("qwen3_moe", {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}),
])  # fmt: skip
def test_a_layer_keeps_what_autograd_keeps(tmp_path, kind, options, dtype):
    """The difference that two layers more make, a layer and token."""
    torch_dtype = {"fp16": torch.float16, "fp32": torch.float32}[dtype]
    (two, _), (four, described) = (kept_by_autograd(kind, torch_dtype, n, False, **options) for n in (2, 4))
    described.architectures = ["ForCausalLM"]
    described.save_pretrained(tmp_path)
    config = parse([f"--model={tmp_path}", "--plan=True", "--plan-memory=80", f"--dtype={dtype}", *MATH])
    setting, shape = setting_of(config, Launch()), shape_of(config)
    assert (four - two) / 2 / 64 == pytest.approx(memory_plan.token_in_a_layer(setting, shape), rel=0.01)
    (two, _), (four, _) = (kept_by_autograd(kind, torch_dtype, n, True, **options) for n in (2, 4))
    assert (four - two) / 2 / 64 == BYTES[dtype] * 128, "with checkpointing, one hidden state"


def test_deepspeeds_defaults_are_those_that_are_planned_with():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    default = DeepSpeedZeroConfig()
    assert default.reduce_bucket_size == memory_plan.BUCKET
    assert default.max_live_parameters + default.prefetch_bucket_size == memory_plan.LIVE
    assert default.param_persistence_threshold == memory_plan.KEPT_WHOLE
    assert default.sub_group_size == memory_plan.SUB_GROUP


@pytest.mark.parametrize(("model", "billions"), [
    ("Qwen/Qwen2.5-Math-1.5B", 1.544), ("OctoThinker/OctoThinker-3B-Hybrid-Base", 3.213),
    ("Qwen/Qwen3-14B-Base", 14.768), ("Qwen/Qwen3-30B-A3B-Base", 30.532),
])  # fmt: skip
def test_sizes_from_config_json_alone(hub, model, billions):
    """As the models' cards say: 1.54, 3.21, 14.8 and 30.5 billion."""
    shape = shape_of(parse([f"--model={model}", "--plan=True", "--plan-memory=80", *MATH]))
    assert shape.whole / 1e9 == pytest.approx(billions, abs=0.001)
    assert sum(shape.trained) == shape.whole and not shape.frozen


@pytest.mark.parametrize(("kind", "options", "mlp", "expert", "kv_heads"), [
    ("qwen3_moe", {"num_experts": 6, "moe_intermediate_size": 96, "num_key_value_heads": 2}, 0, 96, 2),
    ("qwen3_moe", {"num_experts": 6, "moe_intermediate_size": 96, "mlp_only_layers": [1]}, 320, 96, 4),
    ("qwen3_moe", {"num_experts": 6, "moe_intermediate_size": 96, "decoder_sparse_step": 2}, 320, 96, 4),
    ("mixtral", {"num_local_experts": 6, "num_key_value_heads": 2}, 0, 320, 2),
    ("deepseek_v3", {"n_routed_experts": 6, "moe_intermediate_size": 96, "n_group": 1, "topk_group": 1}, 0, 96, 4),
    ("qwen2", {"num_key_value_heads": 2}, 320, 0, 2),
    ("gpt_neox", {"max_position_embeddings": 8192}, 320, 0, 4),
])  # fmt: skip
def test_what_is_read_of_a_mixture_by_any_of_its_names(tmp_path, kind, options, mlp, expert, kv_heads):
    sizes = dict(hidden_size=128, intermediate_size=320, num_attention_heads=4, num_hidden_layers=2, vocab_size=256)
    sizes |= {"num_key_value_heads": 4} if kind in ("qwen3_moe", "deepseek_v3") else {}
    experts = 6 if expert else 0
    chosen = {"num_experts_per_tok": 2} if experts else {}
    described = AutoConfig.for_model(kind, **sizes | chosen | options)
    described.architectures = ["ForCausalLM"]
    described.save_pretrained(tmp_path)
    shape = shape_of(parse([f"--model={tmp_path}", "--plan=True", "--plan-memory=80", *MATH]))
    assert (shape.mlp, shape.expert, shape.experts, shape.kv_heads) == (mlp, expert, experts, kv_heads)
    assert shape.chosen_experts == (2 if experts else 0) and (shape.layers, shape.hidden, shape.heads) == (2, 128, 4)


def test_adapters_are_all_that_is_trained(hub):
    shape = shape_of(
        parse(["--model=Qwen/Qwen2.5-Math-1.5B", "--plan=True", "--plan-memory=80", "--lora-rank=32", *MATH])
    )
    linear = 28 * (2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960))
    assert sum(shape.trained) == 32 * linear and not shape.trains_head
    assert sum(shape.frozen) == shape.whole == 1543714304


# ---------------------------------------------------------------------------------------------- how it moves

SHAPE = ModelShape(
    trained=(500_000_000, *[250_000_000] * 28), frozen=(), whole=7_500_000_000, layers=28, hidden=3584, heads=28,
    kv_heads=4, head_dim=128, vocabulary=152064, mlp=18944, experts=0, chosen_experts=0, expert=0, norms_queries=False,
    trains_head=True,
)  # fmt: skip
SETTING = Setting(
    gpu=80 * GIB, processes=8, stage=2, offload="none", train="fp16", sample="fp16", checkpointing=True, tokens=16384,
    length=4096, ratio=0.35, sleep_level=2, tensor_parallel=1,
)  # fmt: skip


@pytest.mark.parametrize(("more", "moment"), [
    ({"tokens": 20000}, BACKWARD), ({"checkpointing": False}, BACKWARD), ({"eager_attention": True}, BACKWARD),
    ({"head_fp32": True}, BACKWARD), ({"sleep_level": 0}, UPDATE), ({"ratio": 0.5}, STARTS),
    ({"reference": True}, SAMPLING), ({"processes": 4}, SAMPLING), ({"train": "fp32"}, SAMPLING),
    ({"stage": 1}, BACKWARD), ({"merges_adapters": True}, SAMPLING),
])  # fmt: skip
@pytest.mark.parametrize("stage", STAGES)
def test_more_needs_more(more, moment, stage):
    less, greater = replace(SETTING, stage=stage), replace(SETTING, **{"stage": stage} | more)
    assert make_plan(greater, SHAPE).total(moment) >= make_plan(less, SHAPE).total(moment) + (stage == SETTING.stage)
    if "stage" not in more:
        assert make_plan(greater, SHAPE).total(moment) > make_plan(less, SHAPE).total(moment)


@pytest.mark.parametrize("train_dtype", ["fp16", "bf16", "fp32"])
def test_a_higher_stage_holds_less(train_dtype):
    """Of weights, masters, moments and gradients together, when most of them are there."""
    held = []
    for stage in STAGES:
        moment = make_plan(replace(SETTING, stage=stage, train=train_dtype), SHAPE).moments[BACKWARD]
        held.append(sum(moment[line] for line in ("weights", "FP32 master weights", "AdamW's moments", "gradients")))
    assert held == sorted(held, reverse=True) and len(set(held)) == 3


def test_18_bytes_a_parameter_in_one_process():
    """2 weights, 4 masters, 8 moments, 4 gradients; at stage 1 BF16's own gradients wait beside them."""

    def bytes_each(**options):
        moment = make_plan(replace(SETTING, processes=1, **options), SHAPE).moments[BACKWARD]
        return sum(moment[line] for line in ("weights", "FP32 master weights", "AdamW's moments", "gradients")) / 7.5e9

    assert bytes_each() == bytes_each(stage=1) == bytes_each(train="bf16") == bytes_each(stage=3) == 18
    assert bytes_each(train="bf16", stage=1) == 20
    assert bytes_each(train="fp32") == 20
    assert bytes_each(offload="optimizer") == 6


def test_a_plan_with_offload_parameters_leaves_next_to_nothing():
    plan = make_plan(replace(SETTING, stage=3, offload="parameters"), SHAPE)
    held = plan.moments[SAMPLING]
    assert held["weights"] == held["FP32 master weights"] == held["AdamW's moments"] == held["gradients"] == 0


def test_vllm_must_hold_one_response():
    small = make_plan(replace(SETTING, ratio=0.2), SHAPE)
    assert small.peak < small.setting.gpu and not small.sampler_has_room and not small.fits
    assert make_plan(replace(SETTING, ratio=0.3), SHAPE).sampler_has_room
    assert make_plan(replace(SETTING, ratio=0.2, tensor_parallel=2), SHAPE).sampler_has_room


@pytest.mark.parametrize(("name", "change"), list(candidates(replace(SETTING, sleep_level=0, checkpointing=False), 8)))
def test_every_candidate_is_an_option(seven_billion, name, change):
    words = name.split()
    plan = planned(seven_billion, *words)
    assert all(getattr(plan.setting, field) == value for field, value in change.items()), words


# ---------------------------------------------------------------------------------------------- defaults


def test_the_goals_need_no_memory_option(hub, seven_billion):
    """1.5 billion parameters on one card of 80 GB, 7 billion on eight, with room to spare."""
    small, large = planned("--model=Qwen/Qwen2.5-Math-1.5B", gpus=1, memory=79), planned(seven_billion, memory=79)
    assert small.fits and small.setting.stage == 1
    assert large.fits and large.setting.stage == 2
    for plan in (small, large):
        assert plan.setting.checkpointing and plan.setting.sleep_level == 2 and plan.setting.tokens == 16384


@pytest.mark.parametrize("memory", [24, 40, 48, 80])
def test_the_stage_is_the_same_in_fp16_and_bf16(hub, seven_billion, memory):
    for model, gpus in (("--model=Qwen/Qwen2.5-Math-1.5B", 1), (seven_billion, 8)):
        stages = {
            planned(model, f"--dtype={dtype}", gpus=gpus, memory=memory).setting.stage for dtype in ("fp16", "bf16")
        }
        assert len(stages) == 1


def test_adapters_that_are_sent_let_vllm_keep_the_base(hub):
    plan = planned("--model=Qwen/Qwen2.5-Math-1.5B", "--lora-rank=8", "--lora-sync=adapter")
    assert plan.setting.sleep_level == 1


def test_without_a_gpu_nothing_is_planned(hub):
    config = parse(["--model=Qwen/Qwen2.5-Math-1.5B", "--plan=False", *MATH])
    assert (config.training.zero_stage, config.sampling.vllm_sleep_level, config.needs_memory_plan) == (1, 0, False)
    assert config.model.gradient_checkpointing and config.training.micro_batch_tokens == 16384
    longer = parse(["--model=Qwen/Qwen3-14B-Base", *MATH, "--generate-max-length=20000"])
    assert longer.training.micro_batch_tokens == 21024
    embedded = parse([])
    assert not embedded.model.gradient_checkpointing and embedded.training.micro_batch_size == 64
    assert (embedded.training.zero_stage, embedded.sampling.vllm_sleep_level) == (1, 0)


@pytest.fixture
def one_gpu(monkeypatch):
    """A machine with one GPU of 80 GB, as far as anything asks before an engine is imported."""
    import learners.memory.advice
    import learners.options.config

    found = (devices.Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, "580.65.06"),)
    monkeypatch.setattr(learners.options.config, "gpus", lambda: found)
    monkeypatch.setattr(learners.memory.advice, "gpus", lambda: found)


def test_a_run_that_cannot_fit_is_refused_before_anything_starts(one_gpu, seven_billion, tmp_path, monkeypatch, capsys):
    (tmp_path / "seven" / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(train, "load_task", lambda config: pytest.fail("it went on"))
    monkeypatch.chdir(tmp_path)
    assert train.main([seven_billion, *MATH]) == 2
    said = capsys.readouterr().err
    assert said.startswith("train.py: This run does not fit") and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fits_goes_on_with_the_stage_that_the_plan_chose(one_gpu, hub, monkeypatch):
    went_on = []
    monkeypatch.setattr(
        train, "load_task", lambda config: went_on.append(config) or (_ for _ in ()).throw(UsageError("so far"))
    )
    assert train.main(["--model=Qwen/Qwen2.5-Math-1.5B", *MATH]) == 2
    assert (went_on[0].training.zero_stage, went_on[0].sampling.vllm_sleep_level) == (1, 2)
    assert parse([]).sampling.vllm_sleep_level == 0, "the embedded model never sleeps"


# ---------------------------------------------------------------------------------------------- the command line


def test_the_sentence_names_what_mends_it(seven_billion, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = [seven_billion, *MATH, "--plan=True", "--plan-gpus=1", "--plan-memory=80"]
    assert train.main(command) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    options = re.search(r"use (--[^,\n]*?)(?:, 18 bytes.*)?\.$", shown.err.strip())[1].split()
    assert train.main([*command, *options]) == 0
    assert "fits: at most" in capsys.readouterr().out
    assert train.main([*command, "--plan-memory=16"]) == 2
    assert "use more or larger GPUs" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seven"], "something was written"


def test_a_plan_imports_no_engine(seven_billion):
    """Through the real command line, on a folder that holds a config.json and nothing else."""
    code = (
        "import sys, train\ncode = train.main(sys.argv[1:])\n"
        "heavy = {'vllm', 'deepspeed', 'oat'} & set(sys.modules)\nassert not heavy, heavy\nsys.exit(code)"
    )
    words = [seven_billion, *MATH, "--plan=True", "--plan-gpus=8", "--plan-memory=80"]
    run = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert re.search(r"^weights +14\.2", run.stdout, re.MULTILINE), run.stdout


def test_no_gpu_and_no_hub_get_one_sentence(seven_billion, monkeypatch, capsys):
    assert train.main([seven_billion, *MATH, "--plan=True"]) == 2
    assert "add --plan-memory 80" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert train.main(["--model=nobody/nothing", *MATH, "--plan=True", "--plan-memory=80"]) == 2
    said = capsys.readouterr().err
    assert "nobody/nothing does not exist" in said and said.count("\n") == 1


# ---------------------------------------------------------------------------------------------- documents


def gpu_commands() -> list[tuple[int, list[str]]]:
    """(GPUs, words) of the README's commands for one GPU and for eight."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    after = text[text.index("On one GPU") :]
    lines = [
        line.split()
        for line in after.splitlines()
        if re.match(r" +\.venv/bin/(python|torchrun) .*--(model|preset) ", line)
    ]
    found = [(int(line[line.index("--nproc-per-node") + 1]) if "torchrun" in line[0] else 1, line) for line in lines]
    return [(gpus, line[line.index("train.py") + 1 :]) for gpus, line in found]


def test_the_readmes_gpu_commands_fit_cards_of_80_gb(hub, capsys):
    commands = gpu_commands()
    assert {gpus for gpus, _ in commands} == {1, 8}
    for gpus, words in commands:
        assert train.main([*words, "--plan=True", f"--plan-gpus={gpus}", "--plan-memory=79"]) == 0, words


def row(name: str) -> str:
    """A preset's line in docs/gpu.md."""
    gpus = PRESETS[name].processes
    config = parse(
        [f"--preset={name}", *NEEDED.get(name, []), "--plan=True", f"--plan-gpus={gpus}", "--plan-memory=80"]
    )
    plan, _ = plan_for(config, config.planned_launch())
    learner = max(
        sum(size for line, size in moment.items() if line not in ("vLLM", "activations", "logits"))
        for moment in plan.moments.values()
    )
    learning = plan.moments[BACKWARD]
    cells = (learner, learning["activations"] + learning["logits"], plan.sampler.share, plan.peak)
    sizes = " | ".join(f"{size / GIB:.1f}" for size in cells)
    return f"| {name} | {gpus} | {plan.setting.stage} | {sizes} | {'yes' if plan.fits else 'no'} |"


def test_the_table_of_presets_is_what_the_plan_says(hub):
    written = (ROOT / "docs" / "gpu.md").read_text()
    rows = [row(name) for name, preset in PRESETS.items() if preset.processes > 1]
    assert all(line in written for line in rows), "docs/gpu.md should say:\n" + "\n".join(rows)
    assert all(line.endswith("| yes |") for line in rows), "a preset does not fit its hardware"
