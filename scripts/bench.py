"""Measure speed as ratios within one run on one machine: `python scripts/bench.py [--against trl]`.

What is compared runs in turns (ours, theirs, ours, theirs), each time in a process of its own, and is given as the
median of all its steps with their quartiles. Absolute seconds depend on the machine; the ratios are what to read. What
other programs took of the processor meanwhile is measured, and said where it was more than a twentieth of a core.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil
import tyro

from actors.startup import let_threads_sleep
from scripts.parts.bench_programs import Setting, describe, run

QUIET = 0.05
"""share of one core that other programs may take of a measurement"""

WHOLE_RUN = 60
"""steps of the default run"""


@dataclass
class Arguments:
    """Measure speed as ratios within one run on one machine."""

    against: Literal["none", "trl"] = "none"
    """trl adds a comparison with TRL's GRPO (install it with: bash scripts/install.sh trl)"""
    settings: tuple[Literal["embedded", "3.2M", "long"], ...] = ("embedded", "3.2M", "long")
    """the model of this repository; one of 3.2 M parameters and random weights; the same with long responses"""
    turns: int = 2
    """processes of each program"""
    steps: int = 5
    """steps timed in each process, after one that is not"""
    output: Path | None = None
    """write the results here too, as JSON"""
    worker: str | None = field(default=None, metadata={"help": "used by the script itself"})


class Measured:
    """What a program's processes said, all turns together."""

    def __init__(self):
        self.values: dict[str, list[float]] = {}

    def add(self, result: dict[str, list[float]]) -> None:
        for name, values in result.items():
            self.values.setdefault(name, []).extend(values)

    def __getitem__(self, name: str) -> float:
        return median(self.values[name])

    def spread(self, name: str) -> str:
        """Quartiles, as text."""
        values = self.values[name]
        if len(values) < 2:
            return ""
        low, _, high = quantiles(values, n=4, method="inclusive")
        return f"{low:.3g} to {high:.3g}"


class Bench:
    """Runs programs, and keeps what was measured and how quiet the machine was."""

    def __init__(self, arguments: Arguments):
        self.arguments, self.rows, self.others = arguments, [], []

    def in_turns(self, programs: dict[str, dict]) -> dict[str, Measured]:
        """Run each so many times, one after the other; one that does not run once is left out."""
        measured = {name: Measured() for name in programs}
        for turn in range(self.arguments.turns):
            for name, program in programs.items():
                print(f"  turn {turn + 1} of {self.arguments.turns}: {name}", file=sys.stderr, flush=True)
                result = self.once(program) if name in measured else None
                if result is None:
                    measured.pop(name, None)
                else:
                    measured[name].add(result)
        return measured

    def once(self, program: dict) -> dict | None:
        """One process; None (with the reason printed) if it does not run."""
        command = [sys.executable, __file__, "--worker", json.dumps(program | {"started": time.time()})]
        before, own = _busy_seconds(), _seconds_of_children()
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        wall = time.perf_counter() - begun
        self.others.append(max(0.0, (_busy_seconds() - before) - (_seconds_of_children() - own)) / wall)
        for line in reversed(done.stdout.splitlines()):
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        print(f"did not run: {command}\n{done.stderr.strip()[-1500:]}", file=sys.stderr)
        return None

    def say(self, name: str, value: float | None, spread: str = "") -> None:
        self.rows.append({"name": name, "value": value, "spread": spread})
        print(f"{name:<66} {'did not run' if value is None else f'{value:8.3g}'}   {spread}", flush=True)

    def show(self, measured: dict[str, Measured], name: str, key: str, label: str) -> None:
        if name in measured:
            self.say(f"{name}: {label}", measured[name][key], measured[name].spread(key))

    def ratio(self, label: str, measured: dict[str, Measured], top: str, bottom: str, key: str = "step") -> None:
        both = top in measured and bottom in measured
        self.say(label, measured[top][key] / measured[bottom][key] if both else None)


def _busy_seconds() -> float:
    """Processor seconds that this machine has worked, all programs together."""
    times = psutil.cpu_times()
    return times.user + times.system + times.nice + getattr(times, "steal", 0.0)  # steal: by other guests of the host


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def one_busy_program():
    """Meanwhile, a program keeps one core busy."""
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        spinning.kill()
        spinning.wait()


def make_models(folder: Path) -> tuple[str, str]:
    """The embedded model, and one of the same kind with 3.2 M parameters and random weights."""
    import torch

    from tasks.arithmetic.model import CHECKPOINT, build_model, build_tokenizer

    larger = folder / "qwen2-3.2m"
    build_model(hidden_size=256).to(torch.bfloat16).save_pretrained(larger)
    build_tokenizer().save_pretrained(larger)
    return str(CHECKPOINT), str(larger)


def compare(bench: Bench, setting: Setting, natural_rewards: bool) -> None:
    """Our steps in each dtype, and TRL's beside them."""
    steps = bench.arguments.steps
    ours = {f"{d} all": ("--dtype=" + d.lower(), "--train-on-all=True") for d in ("FP16", "BF16", "FP32")}
    programs = {name: describe("ours", setting, steps, options=options) for name, options in ours.items()}
    if natural_rewards:  # the longer a run, the more prompts have only right answers, which teach nothing: all of it
        for d in ("FP16", "FP32"):
            options = (f"--dtype={d.lower()}", "--learning-rate=5e-5", f"--max-steps={WHOLE_RUN}")
            ours[d] = options
            programs[d] = describe("ours", setting, WHOLE_RUN - 1, options=options)
        programs["vLLM alone, eager"] = describe("vllm", setting, steps)
        programs["vLLM alone, compiled"] = describe("vllm", setting, steps, compiled=True)
    if bench.arguments.against == "trl":
        programs["TRL, vLLM in its process"] = describe("trl", setting, steps, with_vllm=True)
        programs["TRL, Hugging Face generate"] = describe("trl", setting, steps, with_vllm=False)
    measured = bench.in_turns(programs)
    for name in measured:
        if not name.startswith("vLLM"):
            bench.show(measured, name, "step", "seconds a step")
            bench.show(measured, name, "peak_gb", "peak memory, GB")
    for name in ours:
        for part in ("actor", "learn"):
            bench.show(measured, name, part, f"seconds of it, {part}")
    for name in ours if bench.arguments.against == "trl" else ():
        for theirs in ("TRL, vLLM in its process", "TRL, Hugging Face generate"):
            bench.ratio(f"{name} / {theirs}, FP32", measured, name, theirs)
    bench.ratio("FP16 learner / FP32 learner, all trained", measured, "FP16 all", "FP32 all", "learn")
    if natural_rewards:
        for mode in ("eager", "compiled"):
            bench.ratio(
                f"tokens/s, actor.step / vLLM alone ({mode}), FP32", measured, "FP32", f"vLLM alone, {mode}", "sampled"
            )
        bench.show(measured, "FP16", "first_token", "seconds from the command to the first token")


def show_ourselves(bench: Bench, setting: Setting) -> None:
    """What has no other program beside it: a busy machine, stock torch, an objective without pi_old."""
    steps = bench.arguments.steps
    default = describe("ours", setting, steps, options=("--dtype=fp16",))
    quiet, busy = Measured(), Measured()
    for turn in range(bench.arguments.turns):
        print(f"  turn {turn + 1} of {bench.arguments.turns}: quiet and beside a busy program", file=sys.stderr)
        quiet.add(bench.once(default) or {})
        with one_busy_program():
            busy.add(bench.once(default) or {})
        bench.others.pop()  # that was us
    if not (quiet.values and busy.values):
        return
    bench.say("FP16: seconds a step, nothing beside it", quiet["step"], quiet.spread("step"))
    bench.say("FP16: seconds a step, one busy program beside it", busy["step"], busy.spread("step"))
    bench.ratio("busy / quiet", {"busy": busy, "quiet": quiet}, "busy", "quiet")
    everything = ("--dtype=fp16", "--train-on-all=True")
    programs = {
        "ours": describe("ours", setting, steps, options=everything, pairs=True),
        "stock": describe("ours", setting, 1, options=(*everything, "--cpu-half=stock")),
    }
    measured = bench.in_turns(programs)
    bench.ratio("stock torch's FP16 learner / ours", measured, "stock", "ours", "learn")
    bench.ratio("stock torch's FP16 sampling / ours", measured, "stock", "ours", "actor")
    bench.show(measured, "ours", "without_pi_old", "learner without pi_old / with it (grpo)")


def main(arguments: Arguments) -> None:
    bench = Bench(arguments)
    with tempfile.TemporaryDirectory() as folder:
        embedded, larger = make_models(Path(folder))
        settings = {
            "embedded": Setting(embedded),
            "3.2M": Setting(larger),
            "long": Setting(larger, prompts=16, max_tokens=256, micro_batch=16),
        }
        for name in arguments.settings:
            setting = settings[name]
            print(
                f"\n{name}: {setting.prompts} prompts x {setting.samples} responses of at most {setting.max_tokens} "
                f"tokens a step, 4 updates; medians, and quartiles beside them",
                flush=True,
            )
            compare(bench, setting, natural_rewards=name == "embedded")
            if name == "embedded":
                show_ourselves(bench, setting)
    others = max(bench.others)
    noisy = sum(share > QUIET for share in bench.others)
    bench.say("other programs: cores taken, at most", others)
    if noisy:
        print(f"The machine was NOT QUIET in {noisy} of {len(bench.others)} processes: measure again before believing.")
    if arguments.output:
        arguments.output.write_text(json.dumps(bench.rows, indent=2) + "\n")


if __name__ == "__main__":
    let_threads_sleep()
    arguments = tyro.cli(Arguments)
    if arguments.worker:
        made = run(json.loads(arguments.worker))
        made["peak_gb"] = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]
        print("\nRESULT " + json.dumps(made))
    else:
        main(arguments)
