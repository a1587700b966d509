"""How far rounding turns the gradient away, by estimator and length: `python scripts/gradient_error.py`.

vLLM samples responses in each dtype and the trainer's model scores them, as in scripts/analyze_mismatch.py, whose
folder this writes and goes on with. Then every response's gradient is computed in the dtype and in FP32, and every
objective and rejection of the catalogue is put together from them: its relative error and its angle to the gradient
that FP32 without any mismatch gives of the same responses, split into the rounding of the forward pass, that of the
backward pass, and the weights. The policy has not moved: pi_old is pi. docs/results.md says what came out.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro

from scripts import analyze_mismatch as analysis
from scripts.parts.program import run_program
from tasks.errors import require

DRAWN = ("reinforce", "pg-token-is", "pg-seq-is", "gspo-bypass", "reject geo")  # unless others are asked for
BATCH = 128  # responses of the update whose loss scale and denominators the backward passes run under


@dataclass
class Arguments(analysis.Arguments):
    """Compare every correction's gradient with the one that FP32 without mismatch gives of the same responses."""

    n: int = 2
    """responses per prompt, at temperature 1 and unfiltered"""
    prompts: int = 32
    """how many of the questions, drawn with the seed; all of them if there are fewer"""
    output_dir: Path | None = None
    """folder of everything that is written (default: runs/gradient-error-<model>)"""
    objectives: tuple[str, ...] = ()
    """of the catalogue (default, without --reject: all)"""
    reject: tuple[str, ...] = ()
    """rejections, each before reinforce (default, without --objectives: all)"""
    lengths: tuple[int, ...] = ()
    """prefixes of the responses, tokens (embedded model: 3, 6, 12, else 64, 128, 256, 512; up to --max-tokens)"""
    advantages: Literal["auto", "rewards", "signs"] = "auto"
    """rewards less their group's mean; random signs; auto: rewards, where a quarter of the responses learn from them"""
    differentiate: int | None = None
    """take the gradients of so many responses at most, evenly from all (default: all)"""
    sketch: int = 16384
    """numbers that a gradient is projected to; a model of fewer parameters is compared exactly"""


def check(arguments: Arguments) -> None:
    """Refuse what cannot be meant.

    Raises:
        UsageError: with one sentence.
    """
    from learners.objectives import OBJECTIVES, REJECTIONS

    analysis.check(arguments)
    for option, known in (("objectives", OBJECTIVES), ("reject", REJECTIONS)):
        for name in getattr(arguments, option):
            require(name in known, f"--{option} {name} is none of {', '.join(known)}.")
    require(all(length >= 1 for length in arguments.lengths), "--lengths are numbers of tokens, from 1.")
    require(
        arguments.sketch >= 256, f"--sketch is {arguments.sketch}; fewer than 256 numbers tell little; leave it out."
    )
    require(not arguments.layers, "--layers belongs to scripts/analyze_mismatch.py; call that with the same options.")


def lengths_of(arguments: Arguments, longest: int) -> list[int]:
    usual = (3, 6, 12) if arguments.model == "embedded" else (64, 128, 256, 512)
    return sorted({min(length, longest) for length in arguments.lengths or usual})


def chosen_corrections(arguments: Arguments) -> list:
    """Those asked for, at every recipe's defaults."""
    from scripts.parts.corrections import catalogue

    everything = not (arguments.objectives or arguments.reject)
    return [c for c in catalogue() if everything or c.name in (arguments.reject if c.rejects else arguments.objectives)]


def advantages_of(arguments: Arguments, config, responses: list, prompts: list):
    """(N,) of the responses, and which they are: "rewards" or "signs"."""
    import numpy as np

    import train
    from tasks.prompts import load_tokenizer

    if arguments.advantages != "signs":
        task, _, _ = train.load_task(config)
        tokenizer = load_tokenizer(config.model_path, config.model.trust_remote_code)
        texts = tokenizer.batch_decode([r.response_ids for r in responses], skip_special_tokens=True)
        rewards = np.array(task.grade(texts, [prompts[r.prompt].reference for r in responses]))
        task.close()
        groups = np.array([r.prompt for r in responses])
        means = np.bincount(groups, rewards) / np.maximum(np.bincount(groups), 1)
        advantages = np.where(rewards == means[groups], 0.0, rewards - means[groups])
        if arguments.advantages == "rewards" or (advantages != 0).mean() >= 0.25:
            require(advantages.any(), "All rewards of a prompt are equal: take --advantages signs, or a larger --n.")
            return advantages, "rewards"
    signs = np.random.default_rng(arguments.seed).integers(0, 2, len(responses)) * 2.0 - 1
    return signs, "signs"


def measure(arguments: Arguments, config, name: str, responses: list, advantages, lengths: list[int], folder: Path):
    """The gradients that are missing of one dtype, then the rows of its table."""
    from tqdm import tqdm

    from learners.options.precision import TORCH_DTYPES
    from scripts.parts.gradient_table import rows_of, slopes_by_length
    from scripts.parts.gradients import EXACT, PLAIN, GradientModel, GradientStore

    store = GradientStore(folder / f"gradients-{arguments.sketch}", name)
    slopes = slopes_by_length(chosen_corrections(arguments), responses, advantages, lengths)
    missing = []
    for response, wanted in zip(responses, slopes.kappas, strict=True):
        for tokens, kappas in wanted.items():
            known = store.keys(response, tokens)
            left = {key: kappa for key, kappa in kappas.items() if key not in known}
            if left or not {EXACT, PLAIN} <= known:
                missing.append((response, tokens, left))
    if missing:
        dtype = TORCH_DTYPES[name]
        model = GradientModel(
            config, dtype, arguments.attn_implementation, size=arguments.sketch, seed=arguments.seed,
            loss_scale=65536.0 if name == "fp16" else 1.0, weight=1 / (BATCH * config.sampling.generate_max_length),
        )  # fmt: skip
        with tqdm(total=sum(tokens for _, tokens, _ in missing), desc=f"{name}: gradients", unit="token") as bar:
            for response, tokens, kappas in missing:
                store.add(response, tokens, model.gradients(response, tokens, kappas))
                bar.update(tokens)
        del model
    return rows_of(name, store, slopes, advantages, arguments.bootstrap, arguments.confidence, arguments.seed)


def main(arguments: Arguments) -> int:
    """Sample, score, differentiate, compare; returns the exit code."""
    started = time.perf_counter()
    check(arguments)
    config, prompts, stop = analysis.load_prompts(arguments)
    lengths = lengths_of(arguments, config.sampling.generate_max_length)
    folder = arguments.output_dir or ROOT / "runs" / f"gradient-error-{Path(arguments.model).name}"
    arguments.output_dir = folder
    analysis.open_folder(arguments, config, prompts)
    chunks = analysis.gather(arguments, config, prompts, stop, folder)
    from scripts.parts.gradient_table import crossings, draw, markdown, show

    rows, kinds = [], {}
    for name, chunk in chunks.items():
        responses = [r for part in chunk.scored() for r in part]
        advantages, kinds[name] = advantages_of(arguments, config, responses, prompts)
        step = -(-len(responses) // (arguments.differentiate or len(responses)))
        responses, advantages = responses[::step], advantages[::step]
        rows += measure(arguments, config, name, responses, advantages, lengths, folder)
    from scripts.parts import style

    made = {"rows": rows, "advantages": kinds, "crosses_sampling_noise_at": crossings(rows)}
    made |= analysis.describe(time.perf_counter() - started)
    (folder / "gradient_error.json").write_text(json.dumps(made, indent=1) + "\n")
    (folder / "gradient_error.md").write_text(markdown(rows))
    names = [*arguments.objectives, *(f"reject {name}" for name in arguments.reject)] or DRAWN
    style.save(draw(rows, names, analysis.model_name(config)), folder / "gradient_error")
    show([row for row in rows if row["length"] == lengths[-1]])
    written = ", ".join(sorted(path.name for path in folder.iterdir()))
    print(f"{time.perf_counter() - started:.0f} s; written to {folder}/: {written}")
    return 0


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)), goes_on=True)
