"""What is wrong with a set of log-probabilities: `python scripts/doctor.py DUMP ...`.

A dump holds sampled responses with the sampler's log mu and the trainer's log pi of every token, of any framework
(docs/dumps.md). The doctor names the most likely cause of the gap between the two, with its evidence and what to do,
says at what length importance weights stop working, and what each correction would drop. It needs neither a model nor
a GPU; with `--model` it scores the same tokens itself and says which side is off. docs/doctor.md explains the findings.

Exit codes: 0 healthy, 1 something is found, 2 the input is refused.
"""

import json
import math
import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import tyro

from scripts.parts.program import run_program
from tasks.errors import UsageError, require

Dtype = Literal["fp32", "fp16", "bf16"]
CORRECTED_TOKENS = 200_000  # of whole responses, that the corrections are tried on
SCORED = 48  # responses that --model scores
WIDTH = 110


@dataclass
class Arguments:
    """Name what is wrong between a sampler's and a trainer's log-probabilities."""

    dump: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """files or folders: JSON lines or parquet with a row a response, or what a framework wrote (docs/dumps.md)"""
    format: str | None = None
    """the dump's format (default: told by its content)"""
    sample_dtype: Dtype | None = None
    """what you believe the sampler to be in"""
    train_dtype: Dtype | None = None
    """what you believe the trainer to be in"""
    temperature: float | None = None
    """what you believe the responses to be sampled at"""
    top_p: float | None = None
    """the sampler's filter, as you believe"""
    top_k: int | None = None
    """the sampler's filter, as you believe"""
    min_p: float | None = None
    """the sampler's filter, as you believe"""
    lora: Annotated[bool | None, tyro.conf.FlagConversionOff] = None
    """whether adapters are trained"""
    rollout_quantization: str | None = None
    """of the sampler's weights, as you believe, such as fp8"""
    output_dir: Path | None = None
    """folder of diagnosis.json and report.html (default: nothing is written)"""
    tokenizer: str | None = None
    """folder or hub id of a tokenizer: the worst tokens are then shown as text"""
    model: str | None = None
    """score the same tokens with this model in the trainer's code here; "embedded" or a folder or hub id"""
    dtype: tuple[Dtype, ...] = ("fp32",)
    """of --model, one or more"""


def claims_of(arguments: Arguments) -> dict:
    from learners.diagnosis.dump import CLAIMS

    return {name: getattr(arguments, name) for name in CLAIMS if getattr(arguments, name) is not None}


def read(arguments: Arguments):
    """The dump.

    Raises:
        UsageError: there is none, or it is damaged or empty.
    """
    from scripts.parts.dump_reading import read

    more = {} if arguments.format is None else {"form": arguments.format}
    made = read(list(arguments.dump), claims_of(arguments), **more)
    require(len(made) > 0 and made.starts[-1] > 0, "the dump holds no token; nothing can be said of it.")
    return made


# ------------------------------------------------------------------------------------------------ corrections


def corrections(dump) -> list[dict]:
    """What each correction of the catalogue, at each recipe's defaults, drops of the first responses."""
    from scripts.correction_table import merged, padded
    from scripts.parts.corrections import STEP, PerResponse, catalogue, joined, what_is_left

    rows = _rows_to_correct(dump)
    if not rows:
        return []
    batches = [padded(rows[i : i + STEP], max(map(len, rows[i : i + STEP]))) for i in range(0, len(rows), STEP)]
    tokens = np.concatenate([batch.mask[: len(batch.mask) // 2].sum(1).numpy() for batch in batches])
    points = {}
    for correction in catalogue():
        made = [PerResponse.of(correction.effect(batch), batch.mask) for batch in batches]
        both = joined(joined([part], lambda c: c[0].reshape(2, -1).mean(0)) for part in made)
        points[correction.label] = {"dump": [{"length": 0} | what_is_left(both, tokens / tokens.sum(), is_sample=True)]}
    return [{"correction": row.label} | row.by_dtype["dump"][0] for row in merged(points)]


@dataclass
class Row:
    """A response in the shape that `correction_table.padded` reads."""

    log_mu: list[float]
    log_pi: list[float]

    def __len__(self) -> int:
        return len(self.log_mu)


def _rows_to_correct(dump) -> list[Row]:
    rows, tokens = [], 0
    for i in range(len(dump)):
        own = slice(int(dump.starts[i]), int(dump.starts[i + 1]))
        mu, pi = dump.log_mu[own], dump.log_pi[own]
        if len(mu) and np.isfinite(mu).all() and np.isfinite(pi).all():
            rows.append(Row(mu.tolist(), pi.tolist()))
            tokens += len(mu)
        if tokens >= CORRECTED_TOKENS:
            break
    return rows


# ------------------------------------------------------------------------------------------------ --model


def with_model(arguments: Arguments, dump) -> list[dict]:
    """The same tokens scored here: for every pair of scores the size of the gap, and which side a fault is on.

    Raises:
        UsageError: the dump has no prompts, or the model's vocabulary is smaller than its ids.
    """
    from scripts.parts.second_opinion import opinions

    require(
        dump.prompt_ids is not None, "--model scores responses after their prompts, and the dump has no prompt_ids."
    )
    return opinions(arguments.model, arguments.dtype, dump, SCORED)


# ------------------------------------------------------------------------------------------------ the page


def page(diagnosis, dump, table: list[dict], compared: list[dict], text) -> str:
    """What is printed."""
    from scripts.parts.report_page import is_busy, percent

    say = lambda words, indent="": textwrap.fill(words, WIDTH, initial_indent=indent, subsequent_indent=indent)
    name = diagnosis.sentence
    parts = [say(name[0].upper() + name[1:]), ""]
    for i, finding in enumerate(diagnosis.findings, 1):
        parts += [f"{i}. {finding.title} ({finding.confidence:.0%} sure)", say(finding.evidence, "   "),
                  say(f"-> {finding.advice}", "   "), ""]  # fmt: skip
    parts += [say(f"note: {note}") for note in diagnosis.notes]
    get = lambda key: diagnosis.numbers.get(key, math.nan)
    parts += [
        "",
        say(
            f"{get('responses'):,.0f} responses, {get('tokens'):,.0f} tokens. Gap of log pi - log mu: k1 "
            f"{get('k1'):.3g}, "
            f"k3 {get('k3'):.3g}, root mean square {get('g_rms'):.3g}; in log odds, median {get('d_50'):.3g}, "
            "90% below "
            f"{get('d_90'):.3g}" + (f"; like {diagnosis.level} rounding in size." if diagnosis.level else ".")
        ),
    ]
    parts += [say(line) for line in horizon_lines(diagnosis.horizon)] + [""]
    parts += compared_lines(compared) + worst_lines(diagnosis.worst, text)
    if table:
        parts += [
            "What corrections would do, A = 1 and A = -1 alike (responses dropped, tokens dropped, limited, left):"
        ]
        for row in table:
            if is_busy(row):
                shares = (1 - row["responses_kept"], 1 - row["kept"], row["limited"], row["left"])
                numbers = "  " + " ".join(f"{percent(share):>7}" for share in shares) + "  "
                parts.append(textwrap.fill(row["correction"], WIDTH, initial_indent=numbers,
                                           subsequent_indent=" " * len(numbers)))  # fmt: skip
        parts.append("  every other one drops nothing and leaves 98% at least")
    return "\n".join(parts)


def horizon_lines(horizon: dict) -> list[str]:
    if not horizon:
        return []
    from scripts.parts.horizon import half_text

    return [
        f"Weights of whole responses lose half of the sample {half_text(horizon['half'])}; of these responses "
        f"(mean {horizon['mean_length']:,.0f} tokens) they leave {horizon['sequence_left']:.1%}, geometric ones "
        f"{horizon['geometric_left']:.1%}."
    ]


def worst_lines(worst: dict, text) -> list[str]:
    lines = []
    if worst.get("responses"):
        listed = ", ".join(f"{r['response']} ({r['share']:.1%})" for r in worst["responses"][:5])
        lines.append(f"Most of the squared gap, by response (from 0): {listed}")
    for token in worst.get("tokens", [])[:5]:
        shown = f" {text(token['id'])!r}" if text else ""
        mu, pi = (f"{token[key]:.3g}" if token[key] is not None else "none" for key in ("log_mu", "log_pi"))
        lines.append(f"  response {token['response']}, place {token['place']}: token {token['id']}{shown}, log mu "
                     f"{mu}, log pi {pi}, {token['share']:.1%}")  # fmt: skip
    return [*lines, ""] if lines else []


def compared_lines(compared: list[dict]) -> list[str]:
    if not compared:
        return []
    lines = ["Scored here (median and 90% of |gap| in log odds, k3):"]
    lines += [f"  {row['what']:<58} {row['d_50']:9.2g} {row['d_90']:9.2g} {row['k3']:9.2g}  {row['diagnosis']}"
              for row in compared]  # fmt: skip
    return [*lines, ""]


def text_of(arguments: Arguments):
    """A function from a token's id to its text, where a tokenizer is given."""
    if arguments.tokenizer is None:
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    except (OSError, ValueError) as error:
        raise UsageError(f"--tokenizer {arguments.tokenizer} cannot be loaded ({str(error)[:100]}).") from error
    return lambda token: tokenizer.decode([token])


def write(folder: Path, diagnosis, dump, table: list[dict], compared: list[dict], text) -> None:
    """diagnosis.json, and report.html."""
    from scripts.parts import report_page

    folder.mkdir(parents=True, exist_ok=True)
    made = plain(diagnosis.to_dict() | {"claims": dump.claims, "corrections": table, "scored_here": compared})
    (folder / "diagnosis.json").write_text(json.dumps(made, indent=1, allow_nan=False) + "\n")
    report_page.write(diagnosis, dump, folder, table, compared, text)


def plain(value):
    """For JSON, which knows neither NaN nor inf."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@np.errstate(all="ignore")  # what is not finite, or too large, is found and not warned of
def main(arguments: Arguments) -> int:
    """Diagnose as told; returns the exit code."""
    from learners.diagnosis.diagnose import diagnose

    folder = arguments.output_dir
    require(
        folder is None or not folder.exists() or folder.is_dir(), f"--output-dir {folder} is a file; name a folder."
    )
    text = text_of(arguments)
    dump = read(arguments)
    diagnosis = diagnose(dump)
    table = corrections(dump)
    compared = with_model(arguments, dump) if arguments.model else []
    try:
        print(page(diagnosis, dump, table, compared, text), flush=True)
    except BrokenPipeError:  # `| head` had enough; the exit code still tells
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if folder is not None:
        try:
            write(folder, diagnosis, dump, table, compared, text)
        except OSError as error:
            raise UsageError(f"--output-dir {folder} cannot be written ({error.strerror}); name another.") from error
        print(f"written to {folder}/: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0 if diagnosis.is_healthy else 1


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)))
