"""What scripts/check_gpu.py looks at, part by part; it starts `python -m scripts.parts.gpu_checks JSON`.

A part is what is done with one build of both engines, or with runs of train.py; it answers one check or several.
Engines are built and driven by the pieces that train.py is made of.
"""

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
ROW = "@@row "  # begins a line that holds one

# TFLOP/s of dense half-precision products, by the beginning of the GPU's name: NVIDIA's data sheets of each, whose
# figures "with sparsity" are twice these. None: not known here.
PEAK_TFLOPS = {"NVIDIA H100 PCIe": 756, "NVIDIA H100 NVL": 835, "NVIDIA H100": 989, "NVIDIA H200 NVL": None,
               "NVIDIA H200": 989, "NVIDIA A100": 312, "NVIDIA L40S": 362}  # fmt: skip
# Of random models: layers, width, heads, heads of keys and values, width of the MLP, vocabulary.
SHAPE_1_5B, SHAPE_SMALL = (28, 1536, 12, 2, 8960, 151936), (2, 64, 2, 1, 128, 1024)
SHAPE_NAMES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size",
               "vocab_size")  # fmt: skip


@dataclass
class Row:
    """What came of a check."""

    holds: bool | None
    """None: a measurement, which neither holds nor fails"""
    figure: str
    values: dict = field(default_factory=dict)
    """numbers that check_gpu.py holds against those of other parts"""
    check: str = ""
    part: str = ""
    seconds: float = 0.0


class Visit(NamedTuple):
    """What all parts of one call of check_gpu.py are told: checks by name, train.py's --model, a folder to litter."""

    wanted: list[str]
    small: bool
    model: str
    scratch: str


@contextmanager
def built_learner(visit: Visit, *options: str):
    """A learner with its actor, as train.py builds them, for steps of one update with any model: its rewards are for
    responses of odd length. Given options win."""
    import train
    from learners.command_line import parse

    prompts = 16 if visit.small else 64
    lengths = ["--prompt-max-length=64", "--generate-max-length=128", "--micro-batch-tokens=4096"]
    usual = [
        f"--model={visit.model}", *(lengths if visit.model != "embedded" else []), "--prompt-template=no",
        f"--rollout-batch-size={prompts}", f"--train-batch-size={8 * prompts}", "--vllm-gpu-ratio=0.2",
        "--learning-rate=1e-4", "--lr-scheduler=constant", "--lr-warmup-ratio=0", "--max-steps=100", "--eval-steps=0",
        "--wandb=disabled", "--vllm-sleep-level=0",
    ]  # fmt: skip
    config = parse([*usual, *options])
    task, prompts, eval_prompts = train.load_task(config)
    train.prepare(config)
    from learners.record.run_log import NoLog

    learner = train.build(config, task, prompts, eval_prompts, NoLog(Path(visit.scratch)))
    learner.actor.grade = lambda responses, references: [float(len(text) % 2) for text in responses]
    yield learner
    learner.close()
    task.close()


# ------------------------------------------------------------------------------------------------ with one learner


def dtypes(learner) -> Row:
    from learners.model.weights import master
    from learners.options.precision import NAMES

    trained = list(learner.causal_lm.parameters())
    found = {"learner": {p.dtype for p in trained}, "masters": {master(p).dtype for p in trained if p.requires_grad}}
    found |= {"sampler": learner.actor.engine.parameter_dtypes()}
    names = {who: "+".join(sorted(NAMES.get(dtype, str(dtype)) for dtype in kinds)) for who, kinds in found.items()}
    asked = learner.config.precision
    holds = names == {"learner": asked.train_dtype, "masters": "fp32", "sampler": asked.sample_dtype}
    return Row(holds, ", ".join(f"{who} {name}" for who, name in names.items()))


def mismatch(learner) -> Row:
    metrics = learner.learn(learner.collect(1))
    learner.sync_params_to_actors()
    values = {"pi-mu": metrics["mismatch/abs_prob_diff_mean"], "k3": metrics["mismatch/kl_k3"]}
    finite = all(map(math.isfinite, values.values()))
    return Row(None if finite else False, f"mean |pi - mu| {values['pi-mu']:.2e}, k3 {values['k3']:.2e}", values)


def same_step(learner) -> Row:
    import torch

    one, other = (learner.collect(2).batch for _ in range(2))
    if not torch.equal(one.input_ids, other.input_ids):
        return Row(False, "other tokens the second time")
    apart = (one.mu_logp - other.mu_logp).abs().max().item()
    return Row(True, f"{len(one)} responses, the same tokens; log mu {apart:.1g} apart")


def sync(learner) -> Row:
    from scripts.parts.sampler_weights import unequal_weights

    moved = []
    for update in (1, 2, 3):
        learner.learn(learner.collect(10 + update))
        moved.append(len(unequal_weights(learner)))
        if not moved[-1]:
            return Row(False, f"update {update} changed nothing, so that nothing is shown")
        learner.sync_params_to_actors()
        if left := unequal_weights(learner):
            return Row(False, f"after update {update}, {len(left)} tensors are not the learner's, such as {left[0]}")
    return Row(True, f"three updates changed {moved} tensors; the sampler got each, bitwise")


def overflow(learner) -> Row:
    """With a loss scale of 2^32 an update is skipped; the scale comes down until one is applied."""
    import torch

    from learners.checkpoints.training_state import own_tensors
    from learners.rollouts.step import Step

    def unchanged() -> bool:
        now = own_tensors(learner)
        return all(torch.equal(now[name], tensor) for name, tensor in before.items())

    step, before, skipped_before = learner.collect(20), own_tensors(learner), learner.skipped_updates
    learner.optimizer.loss_scaler.cur_scale = 2.0**32
    for number in range(20, 61):
        metrics = learner.learn(Step(number, step.batch, times={}))
        skips, power = learner.skipped_updates - skipped_before, math.log2(metrics["precision/loss_scale"])
        if "precision/grad_norm" in metrics:
            holds = number > 20 and skips == number - 20 and not unchanged()
            return Row(holds, f"{skips} updates skipped from 2^32 on, changing nothing; one applied at 2^{power:g}")
        if not unchanged():
            return Row(False, f"an update skipped below 2^{power:g} changed masters or moments")
    return Row(False, f"no update was applied, down to 2^{power:g}")


LOOKS = {"dtypes": dtypes, "mismatch": mismatch, "same-step": same_step, "sync": sync, "overflow": overflow}


def engines(visit: Visit, part: "Part") -> Iterator[Row]:
    with built_learner(visit, *part.options) as learner:
        for check in part.checks:
            if check in visit.wanted:
                try:
                    row = LOOKS[check](learner)
                except Exception:  # the next check goes on with the same engines
                    traceback.print_exc()
                    row = Row(False, reason(traceback.format_exc()))
                row.check = check
                yield row


def zero(visit: Visit, part: "Part") -> Iterator[Row]:
    """Three updates in FP32 on responses that all stages share; check_gpu.py holds the stages against each other."""
    import torch

    shared = Path(visit.scratch) / "zero.pt"
    with built_learner(visit, *part.options, "--dtype=fp32") as learner:
        from actors.processes import from_first
        from learners.rollouts.step import Step
        from scripts.parts.sampler_weights import unequal_weights

        kept = from_first(shared.exists())
        batches = torch.load(shared, weights_only=False) if kept else [learner.collect(n).batch for n in (1, 2, 3)]
        if not kept and learner.processes.rank == 0:
            torch.save(batches, shared)
        told = [learner.learn(Step(number, batch, times={})) for number, batch in enumerate(batches, 1)]
        learner.sync_params_to_actors()
        lacking = unequal_weights(learner)
        values = {key: [metrics[key] for metrics in told] for key in ("train/loss", "precision/grad_norm")}
        figure = f"{learner.processes.world_size} process(es), gradient norms "
        figure += ", ".join(f"{norm:.5g}" for norm in values["precision/grad_norm"])
        yield Row(not lacking, figure + (f"; the sampler lacks {lacking[0]}" if lacking else ""), values)


# ------------------------------------------------------------------------------------------------ whole runs


def start_run(folder: Path, *options: str, **environment: str) -> subprocess.Popen:
    options = ["--eval-steps=0", "--wandb=disabled", "--rollout-batch-size=16", "--vllm-gpu-ratio=0.2", *options]
    command = [sys.executable, str(ROOT / "train.py"), f"--output-dir={folder}", "--enforce-eager=True", *options]
    environment = os.environ | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def compiled(visit: Visit, part: "Part") -> Iterator[Row]:
    """A run that could compile DeepSpeed's extensions and one that could not: both train, and none is compiled."""
    bare = Path(visit.scratch) / "path"  # all of PATH but what DeepSpeed compiles with
    bare.mkdir()
    for folder in map(Path, os.environ["PATH"].split(os.pathsep)):
        for tool in folder.iterdir() if folder.is_dir() else ():
            if tool.name not in ("ninja", "nvcc") and not (bare / tool.name).is_symlink():
                (bare / tool.name).symlink_to(tool)
    with_ninja = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for where, path in (("with ninja", with_ninja), ("without ninja and nvcc", str(bare))):
        folder, extensions = Path(visit.scratch) / where, Path(visit.scratch) / f"{where}, extensions"
        extensions.mkdir()
        run = start_run(folder, "--max-steps=1", PATH=path, TORCH_EXTENSIONS_DIR=str(extensions))
        said, _ = run.communicate()
        found = ", ".join(sorted(path.name for path in extensions.rglob("*"))[:4])
        what = reason(said) if run.returncode else f"compiled {found}" if found else "trained, compiled nothing"
        yield Row(not (run.returncode or found), f"{where}: {what}")


def resume(visit: Visit, part: "Part") -> Iterator[Row]:
    """Killed as soon as the second step is saved, a run goes on from there."""
    folder, options = Path(visit.scratch) / "resumed", ["--max-steps=5", "--save-every=1"]
    run = start_run(folder, *options)
    while run.poll() is None and not (folder / "checkpoints" / "step-000002").exists():
        time.sleep(0.02)
    run.kill()
    said, _ = run.communicate()
    if (folder / "summary.json").exists() or not (folder / "metrics.jsonl").exists():
        yield Row(False, f"it ended before it could be killed: {reason(said)}")
        return
    run = start_run(folder, *options)
    said, _ = run.communicate()
    begun = next((line.split("/")[-1] for line in said.splitlines() if line.startswith("going on from")), "the start")
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figure = f"killed with -9, it went on from {begun}; steps {steps}" if run.returncode == 0 else reason(said)
    yield Row(run.returncode == 0 and steps == [1, 2, 3, 4, 5] and "step-" in begun, figure)


# ------------------------------------------------------------------------------------------------ speed


def random_model(folder: Path, shape: tuple[int, ...]) -> None:
    """A Qwen2 with random weights, with the embedded model's tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tasks.arithmetic.model import build_tokenizer

    sizes = dict(zip(SHAPE_NAMES, shape, strict=True))
    config = Qwen2Config(**sizes, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=None)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    torch.cuda.empty_cache()


def planned_gib(config) -> float | None:
    """Peak memory of a GPU as the plan of `--plan True` has it; None where there is no GPU."""
    from actors.devices import gpus
    from actors.launch import Launch
    from learners.memory.advice import plan_for

    if not gpus():
        return None
    return plan_for(config, Launch.from_environment())[0].peak / 2**30


@contextmanager
def peak_memory():
    """A dict whose "gib" is the most in use meanwhile, looked at 20 times a second: on the GPU, or by the process."""
    import psutil
    import torch

    peak, over = {"gib": 0.0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            on_gpu = torch.cuda.is_available()
            free, total = torch.cuda.mem_get_info(0) if on_gpu else (0, psutil.Process().memory_info().rss)
            peak["gib"] = max(peak["gib"], (total - free) / 2**30)

    threading.Thread(target=watch, daemon=True).start()
    yield peak
    over.set()


def timed(function: Callable, *arguments) -> float:
    """Seconds, with what the GPU has to do for it."""
    import torch

    torch.cuda.synchronize()
    started = time.perf_counter()
    function(*arguments)
    torch.cuda.synchronize()
    return time.perf_counter() - started


def speed(visit: Visit, part: "Part") -> Iterator[Row]:
    """The second of two steps of a random model: by then nothing is compiled, captured or tuned any more."""
    import torch

    folder = Path(visit.scratch) / "random-model"
    if not folder.exists():
        random_model(folder, SHAPE_SMALL if visit.small else SHAPE_1_5B)
    prompts, tokens, sleep_level = (4, 32, 0) if visit.small else (64, 512, 2)
    options = [
        f"--model={folder}", "--prompt-max-length=32", f"--generate-max-length={tokens}", "--vllm-gpu-ratio=0.3",
        f"--rollout-batch-size={prompts}", f"--train-batch-size={2 * prompts}", "--micro-batch-tokens=16384",
        "--gradient-checkpointing=True", f"--vllm-sleep-level={sleep_level}", "--train-on-all=True",
    ]  # fmt: skip
    with built_learner(visit, *options, *part.options) as learner, peak_memory() as peak:
        engine = learner.actor.engine
        for number in (1, 2):
            step = learner.collect(number)
            metrics = learner.learn(step)
            seconds = {"sample": metrics["time/sample"], "grade": metrics["time/grade"]}
            seconds["sync"] = timed(learner.sync_params_to_actors)
        # `learn` has put the sampler to sleep and woken its weights, and the synchronisation its cache: once more.
        asleep = {"sleep": 0.0, "wake": 0.0, "wake the cache": 0.0}
        if learner.config.sampling.vllm_sleep_level > 0:
            asleep = {"sleep": timed(engine.sleep), "wake": timed(engine.wake_up, ["weights"])}
            asleep["wake the cache"] = timed(engine.wake_up, ["kv_cache"])
        seconds["learn"] = metrics["time/learn"] - asleep["sleep"] - asleep["wake"]
        seconds["sync"] -= asleep["wake the cache"]
        seconds |= asleep
        rate, total = step.batch.lengths.sum().item() / seconds["learn"], sum(seconds.values())
        size = sum(p.numel() for p in learner.causal_lm.parameters())
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        top = next((top for start, top in PEAK_TFLOPS.items() if name.startswith(start)), None)
        used = f"{6 * size * rate / top / 1e12:.1%} of {top} TFLOP/s" if top else "unknown"
        sampled = f"{size:,} weights: {metrics['throughput/sample_tokens_per_s']:,.0f} tokens/s sampled"
        yield Row(None, f"{sampled}, {rate:,.0f} learned, MFU {used}")
        shares = ", ".join(f"{what} {spent:.2f} s ({spent / total:.0%})" for what, spent in seconds.items() if spent)
        yield Row(None, f"of {total:.2f} s a step: {shares}", seconds)
        plan, torchs = planned_gib(learner.config), torch.cuda.max_memory_allocated() / 2**30
        planned = "-" if plan is None else f"{plan:.1f}"
        yield Row(None, f"memory: {peak['gib']:.1f} GiB at most, torch counts {torchs:.1f}, planned {planned}", peak)


# ------------------------------------------------------------------------------------------------ the process


def reason(said: str) -> str:
    """Of what a program printed, the last line that names an error, or else the last line."""
    lines = [re.sub(r"^\[rank\d+\]:\s*", "", line.strip()) for line in said.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), (lines or [""])[-1])


class Part(NamedTuple):
    run: Callable[[Visit, "Part"], Iterator[Row]]
    options: tuple[str, ...]
    """of train.py"""
    checks: tuple[str, ...]
    """that it answers"""
    seconds: int
    """that it may take on a GPU"""


ALL, EAGER = ("dtypes", "mismatch", "same-step", "sync"), "--enforce-eager=True"
PARTS = {  # in the order they are run in
    "fp16": Part(engines, ("--dtype=fp16",), (*ALL, "overflow"), 180),
    "bf16": Part(engines, ("--dtype=bf16",), ALL, 180),
    "fp32": Part(engines, ("--dtype=fp32",), ALL, 180),
    "compiled": Part(compiled, (), ("compiled",), 150),
    "sleep-1": Part(engines, ("--vllm-sleep-level=1", EAGER), ("sync",), 120),
    "sleep-2": Part(engines, ("--vllm-sleep-level=2", EAGER), ("sync",), 120),
    "lora-merge": Part(engines, ("--lora-rank=4", "--lora-sync=merge", EAGER), ("sync",), 120),
    "lora-adapter": Part(engines, ("--lora-rank=4", "--lora-sync=adapter", EAGER), ("sync",), 120),
    "speed-fp16": Part(speed, ("--dtype=fp16",), ("speed",), 240),
    "speed-bf16": Part(speed, ("--dtype=bf16",), ("speed",), 240),
    "resume": Part(resume, (), ("resume",), 150),
    "zero-1": Part(zero, ("--zero-stage=1", EAGER), ("zero",), 150),
    "zero-2": Part(zero, ("--zero-stage=2", EAGER), ("zero",), 150),
    "zero-3": Part(zero, ("--zero-stage=3", EAGER), ("zero",), 150),
}


def main(visit: Visit, names: list[str]) -> None:
    for name in names:
        started = time.perf_counter()
        for row in PARTS[name].run(visit, PARTS[name]):
            row.check, row.part = row.check or PARTS[name].checks[0], name
            row.seconds, started = time.perf_counter() - started, time.perf_counter()
            if os.environ.get("RANK", "0") == "0":
                print(f"\n{ROW}{json.dumps(asdict(row))}", flush=True)


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    main(Visit(*told["visit"]), told["parts"])
