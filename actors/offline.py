"""Sampling outside training: the options that evaluate.py and build_sanity_set.py share, their checks, the engine.

Importing this is cheap; `open_engine` brings vLLM in.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actors.startup import importing
from tasks.errors import require, require_number


@dataclass
class OfflineOptions:
    """How vLLM samples."""

    max_tokens: int | None = None
    """a response is cut here; tokens (embedded model: 24, else 8192)"""
    temperature: float = 1.0
    """of the sampled distribution; 0 is greedy"""
    top_p: float = 1.0
    """sample from the likeliest tokens that make up this share of the probability"""
    seed: int = 0
    """every response has its own seed, made of this one, its problem and its number"""
    batch_invariant: bool = True
    """a response does not depend on what is sampled beside it (docs/evaluation.md); False is faster"""
    max_num_seqs: int = 256
    """responses sampled at once"""
    vllm_gpu_ratio: float = 0.85
    """share of a GPU's memory that vLLM takes"""
    enforce_eager: bool = False
    """run vLLM without compilation and CUDA graphs (on a CPU it always does)"""
    cpu_half: Literal["auto", "stock", "fp32-accumulate"] = "auto"
    """half products on a CPU: stock torch's, fp32-accumulate ours, auto ours unless native (docs/cpu-half.md)"""


def check_sampling(options: OfflineOptions, prompt_max_length: int, model_config: dict) -> None:
    """Refuse resolved options that cannot work, with a model of this config.json.

    Raises:
        UsageError: with one sentence that says what to do.
    """
    for name in ("max_tokens", "max_num_seqs"):
        require_number(name, getattr(options, name))
    require_number("prompt_max_length", prompt_max_length)
    require_number("temperature", options.temperature, or_zero=True)
    require(0 < options.top_p <= 1, f"--top-p is {options.top_p:g}; it must lie above 0 and at most at 1.")
    require(0 <= options.seed < 2**32, f"--seed is {options.seed}; it must lie from 0 to below 2^32.")
    require(0 < options.vllm_gpu_ratio < 1, "--vllm-gpu-ratio is a share of the GPU's memory, between 0 and 1.")
    context = model_config.get("max_position_embeddings")
    require(
        context is None or prompt_max_length + options.max_tokens <= context,
        f"--prompt-max-length {prompt_max_length} and --max-tokens {options.max_tokens} together exceed the model's "
        f"context of {context} tokens; shorten one.",
    )


DO_NOT_MATTER = ("max_num_seqs", "vllm_gpu_ratio", "enforce_eager")  # to what a response is


def settings_of(options: OfflineOptions, model: str, model_path: str, template: str, prompt_max_length: int) -> dict:
    """What a response depends on besides its dtype, problem and number, as plain values for a manifest."""
    return {
        "model": model,
        "weights": fingerprint(Path(model_path)),
        "template": template,
        "prompt_max_length": prompt_max_length,
    } | {name: value for name, value in vars(options).items() if name not in DO_NOT_MATTER}


def fingerprint(folder: Path) -> str | None:
    """Of a local model's weights: sizes, and first and last MiB of each file. None for a hub id."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            digest.update(content.read(2**20))
            content.seek(max(0, size - 2**20))
            digest.update(content.read())
    return digest.hexdigest()[:16]


def open_engine(options: OfflineOptions, model_path: str, dtype, max_model_len: int, trust_remote_code: bool):
    """A `SamplingEngine` in this process, which then is for this dtype (torch's); takes some 20 s. ``max_model_len``:
    longest prompt and response together, tokens."""
    with importing():
        from actors import batch_invariant, runtime

        half = runtime.prepare({dtype}, options.cpu_half)
    if options.batch_invariant and not batch_invariant.enable(half):
        print("This GPU has no batch-invariant kernels: a response may depend on what is sampled beside it.")
    with importing():
        from actors.engine import SamplingEngine

    return SamplingEngine(
        model_path,
        dtype,
        max_model_len=max_model_len,
        max_num_seqs=options.max_num_seqs,
        seed=options.seed,
        gpu_memory_utilization=options.vllm_gpu_ratio,
        enforce_eager=options.enforce_eager,
        trust_remote_code=trust_remote_code,
    )


def sampling_params(options: OfflineOptions, stop: tuple[str, ...]):
    """vLLM's parameters of one response, but for its seed; ``stop``: strings that end a response and stay in it."""
    import vllm

    return vllm.SamplingParams(
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=options.max_tokens,
        stop=list(stop),
        include_stop_str_in_output=bool(stop),
    )
