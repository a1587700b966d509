"""Measure speed as ratios within one run on one machine: `python scripts/bench.py [--against trl]`.

Each configuration runs in a process of its own, one after the other; what is compared is the median of several steps.
Absolute seconds depend on the machine and its other tenants; the ratios are what to read.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro

from actors.startup import let_threads_sleep


@dataclass
class Arguments:
    """Measure speed as ratios within one run on one machine."""

    against: Literal["none", "trl"] = "none"
    """trl adds a comparison with TRL's GRPO (install it with: bash scripts/install.sh trl)"""
    steps: int = 5
    """steps timed in each configuration, after one that is not"""
    output: Path | None = None
    """write the results here too, as JSON"""
    worker: str | None = field(default=None, metadata={"help": "used by the script itself"})


# ------------------------------------------------------------------------------------------------- the workers


def training_flops(model, batch) -> float:
    """Floating-point operations of one forward and backward pass over a batch, attention's products included.

    6 x parameters x tokens for the layers, 6 x vocabulary x width for each response token (the head runs on those
    alone), and 12 x layers x width x length^2 / 2 for each sequence's causal attention.
    """
    config = model.config
    layers = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.dim() == 2)
    lengths = batch.lengths.double()
    head = 6 * config.vocab_size * config.hidden_size * float(batch.response_mask.sum())
    attention = 6 * config.num_hidden_layers * config.hidden_size * float((lengths**2).sum())
    return 6 * layers * float(lengths.sum()) + head + attention


def reference_gflops() -> float:
    """GFLOP/s of a large FP32 matrix product on this device."""
    import torch

    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    if torch.cuda.is_available():
        a, b = a.cuda(), b.cuda()
    times = []
    for _ in range(6):
        started = time.perf_counter()
        (a @ b).sum().item()
        times.append(time.perf_counter() - started)
    return 2 * 2048**3 / median(times[1:]) / 1e9


def run_ours(spec: dict) -> dict:
    """Time steps of this project: the whole of each, its parts, and raw vLLM on the same prompts."""

    import train
    from learners.command_line import parse

    config = parse(spec["arguments"])
    task, prompts, eval_prompts = train.load_task(config)
    train.prepare(config)
    from learners.record.run_log import NoLog

    learner = train.build(config, task, prompts, eval_prompts, NoLog(Path(tempfile.gettempdir())))
    rows = []
    for step in range(1, spec["steps"] + 2):
        started = time.perf_counter()
        sampled = learner.collect(step)
        times = dict(sampled.times)
        collected = time.perf_counter()
        if spec.get("raw"):  # what actor.step adds to it, on the same prompts and with the same seeds
            raw_started = time.perf_counter()
            learner.actor.generate(
                [p.token_ids for p in learner.rollouts.stream.batch(step)], learner.actor.sampling_params
            )
            times["raw"] = time.perf_counter() - raw_started
        learn_started = time.perf_counter()
        learner.learn(sampled)
        times |= {"learn": time.perf_counter() - learn_started, "actor": collected - started}
        times["sync"] = learner.sync_params_to_actors()
        times["step"] = times["actor"] + times["learn"] + times["sync"]
        batch = sampled.batch
        passes = 4 / 3 if learner.updater.objective.needs_pi_old else 1
        times["gflops"] = passes * training_flops(learner.causal_lm, batch) / times["learn"] / 1e9
        times["tokens"] = int(batch.lengths.sum())
        rows.append(times)
    result = {key: median(row[key] for row in rows[1:]) for key in rows[0]}
    if spec.get("pairs"):
        result["without_pi_old"] = median(share_without_pi_old(learner, sampled) for _ in range(spec["pairs"] + 1))
    learner.close()
    task.close()
    return result | {"reference_gflops": reference_gflops()}


def share_without_pi_old(learner, step) -> float:
    """The learner's time with an objective that does not need pi_old, over its time with one that does, on the same
    responses, one right after the other."""
    from dataclasses import replace

    from learners.objectives import OBJECTIVES
    from learners.rollouts.step import Step

    seconds = {}
    for name in ("pg-seq-is", "grpo"):
        learner.updater.objective, learner.updater.thresholds = OBJECTIVES[name], {}
        started = time.perf_counter()
        learner.learn(Step(step.number, replace(step.batch, old_logp=None), times={}))
        seconds[name] = time.perf_counter() - started
    return seconds["pg-seq-is"] / seconds["grpo"]


def run_trl(spec: dict) -> dict:
    """Time TRL's GRPO on the same model, prompts, group size, lengths and updates a step."""
    import os

    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29471",
    }
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from actors.engine import keep_linear_weights_in_place
    from tasks.arithmetic.problems import generate
    from tasks.boxed import last_boxed

    problems = generate(2048, 0)
    data = datasets.Dataset.from_dict(
        {"prompt": [p.question for p in problems], "answer": [p.answer for p in problems]}
    )

    def reward(completions, answer, **_):
        return [float((last_boxed(c) or "").strip() == a) for c, a in zip(completions, answer, strict=True)]

    ends = [time.perf_counter()]

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(time.perf_counter())

    if not torch.cuda.is_available():
        keep_linear_weights_in_place()  # without it TRL cannot load new weights into vLLM on a CPU with AVX-512
    updates = 4
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=not torch.cuda.is_available(), bf16=False, fp16=False, report_to="none",
        per_device_train_batch_size=64, gradient_accumulation_steps=2, steps_per_generation=8, num_generations=8,
        max_completion_length=24, max_steps=updates * (spec["steps"] + 1), learning_rate=1e-5, beta=0.0,
        loss_type="dr_grpo", temperature=1.0, use_vllm=spec["vllm"], vllm_mode="colocate", save_strategy="no",
        vllm_gpu_memory_utilization=0.3, logging_steps=1000, disable_tqdm=True, gradient_checkpointing=False,
        vllm_importance_sampling_correction=spec["vllm"], dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(spec["model"]),
        reward_funcs=reward, args=arguments, train_dataset=data, callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    steps = pairwise(ends[updates::updates])  # from the end of one step of 512 responses to the next
    return {"step": median(end - start for start, end in steps)}


# ------------------------------------------------------------------------------------------------- the comparison


def measure(kind: str, **spec) -> dict | None:
    """Run one configuration in a process of its own; None (with the reason printed) if it does not run."""
    label = f"{kind} {' '.join(f'{key}={value}' for key, value in spec.items())}"
    print(f"  running {label}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--worker", json.dumps({"kind": kind} | spec)]
    done = subprocess.run(command, capture_output=True, text=True)
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    print(f"did not run: {label}\n{done.stderr.strip()[-1500:]}", file=sys.stderr)
    return None


def make_models(folder: Path) -> dict[str, str]:
    """The embedded model, and one of the same kind with 3.2 M parameters and random weights."""
    import torch

    from tasks.arithmetic.model import CHECKPOINT, build_model, build_tokenizer

    larger = folder / "qwen2-3.2m"
    build_model(hidden_size=256).to(torch.bfloat16).save_pretrained(larger)
    build_tokenizer().save_pretrained(larger)
    return {"embedded 0.8 M": str(CHECKPOINT), "3.2 M": str(larger)}


def ours(model: str, steps: int, *extra: str, raw: bool = False, pairs: int = 0) -> dict | None:
    arguments = [
        f"--model={model}", "--prompt-template=no", "--prompt-max-length=32", "--generate-max-length=24",
        "--rollout-batch-size=64", "--micro-batch-size=64", "--learning-rate=1e-5", "--max-steps=100",
        "--wandb=disabled", *extra,
    ]  # fmt: skip
    return measure("ours", arguments=arguments, steps=steps, raw=raw, pairs=pairs)


def main(arguments: Arguments) -> None:
    results = []

    def report(name: str, value: float | None, target: str = "") -> None:
        results.append({"name": name, "value": value, "target": target})
        print(f"{name:<72} {'did not run' if value is None else f'{value:8.3g}'}   {target}", flush=True)

    def ratio(name, top, bottom, key, target):
        report(name, top[key] / bottom[key] if top and bottom else None, target)

    with tempfile.TemporaryDirectory() as folder:
        models = make_models(Path(folder))
        for name, model in models.items():
            print(f"\n{name}: 64 prompts x 8 responses of at most 24 tokens a step, 4 updates; medians of a step")
            fp16 = ours(model, arguments.steps, "--dtype=fp16", raw=True, pairs=arguments.steps)
            bf16 = ours(model, arguments.steps, "--dtype=bf16")
            fp32 = ours(model, arguments.steps, "--dtype=fp32")
            stock = ours(model, 1, "--dtype=fp16", "--cpu-half=stock")
            for label, run in (("FP16", fp16), ("BF16", bf16), ("FP32", fp32)):
                report(f"{label}: seconds a step", run and run["step"])
                for part in ("actor", "learn", "sync"):
                    report(f"{label}: share of {part} in a step", run and run[part] / run["step"])
            ratio("FP16 learner / FP32 learner", fp16, fp32, "learn", "<= 1.5")
            ratio("stock torch FP16 learner / ours", stock, fp16, "learn", ">= 10")
            ratio("stock torch FP16 sampling / ours", stock, fp16, "time/sample", ">= 2.5")
            report("raw vLLM generate / actor.step", fp16 and fp16["raw"] / fp16["actor"], ">= 0.9")
            report("learner without pi_old / with it (grpo)", fp16 and fp16["without_pi_old"], "near 0.75")
            report("FP16: sampled tokens/s", fp16 and fp16["throughput/sample_tokens_per_s"])
            report("FP16: learned tokens/s", fp16 and fp16["tokens"] / fp16["learn"])
            for label, run in (("FP16", fp16), ("FP32", fp32)):
                report(f"{label} learner: GFLOP/s", run and run["gflops"])
                report(
                    f"{label} learner: share of a large FP32 product's", run and run["gflops"] / run["reference_gflops"]
                )
            if arguments.against == "trl":
                with_vllm = measure("trl", model=model, steps=arguments.steps, vllm=True)
                with_hf = measure("trl", model=model, steps=arguments.steps, vllm=False)
                ratio("ours FP32 / TRL with vLLM in its process, FP32", fp32, with_vllm, "step", "<= 0.5")
                ratio("ours FP32 / TRL with HF generate, FP32", fp32, with_hf, "step", "<= 1.0")
                ratio("ours FP16 / TRL with vLLM in its process, FP32", fp16, with_vllm, "step", "<= 0.5")
                ratio("ours FP16 / TRL with HF generate, FP32", fp16, with_hf, "step", "<= 1.0")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    let_threads_sleep()
    arguments = tyro.cli(Arguments)
    if arguments.worker:
        spec = json.loads(arguments.worker)
        made = {"ours": run_ours, "trl": run_trl}[spec["kind"]](spec)
        print("\nRESULT " + json.dumps(made))
    else:
        main(arguments)
