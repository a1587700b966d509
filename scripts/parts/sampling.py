"""Sampling with vLLM, in an engine that is there for as long as it is needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import vllm

from actors.engine import SamplingEngine
from actors.responses import prompt_seed
from learners.options.config import Config
from scripts.parts.responses import Chunks, Response
from scripts.parts.scoring import free_memory, progress_bar
from tasks.prompts import Prompt


@dataclass(frozen=True)
class SamplingPlan:
    """What is sampled: every prompt ``n`` times at temperature 1, unfiltered."""

    prompts: list[Prompt]
    chunk_size: int
    """prompts in a chunk"""
    n: int
    max_tokens: int
    stop: tuple[str, ...]
    seed: int

    def chunk(self, index: int) -> list[Prompt]:
        return self.prompts[index * self.chunk_size : (index + 1) * self.chunk_size]


@contextmanager
def sampling_engine(config: Config, dtype: torch.dtype, max_num_seqs: int, enforce_eager: bool | None = None):
    """A vLLM engine for a while; its memory is given back afterwards."""
    engine = SamplingEngine(
        config.model_path,
        dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=max_num_seqs,
        seed=config.training.seed,
        gpu_memory_utilization=config.sampling.vllm_gpu_ratio,
        enforce_eager=config.sampling.enforce_eager if enforce_eager is None else enforce_eager,
        trust_remote_code=config.model.trust_remote_code,
    )
    try:
        assert engine.parameter_dtypes() == {dtype}, f"vLLM samples in {engine.parameter_dtypes()}, not {dtype}"
        yield engine
    finally:
        engine.close()
        del engine
        free_memory()


def sample(config: Config, dtype: torch.dtype, plan: SamplingPlan, chunks: Chunks, max_num_seqs: int) -> None:
    """Sample the chunks that are not there yet. Each is a function of (weights, dtype, seed, chunk), up to rounding."""
    missing = chunks.not_sampled()
    if not missing:
        return
    options = vllm.SamplingParams(
        n=plan.n,
        temperature=1.0,
        top_p=1.0,
        max_tokens=plan.max_tokens,
        logprobs=0,  # of the sampled token alone
        **({"stop": list(plan.stop), "include_stop_str_in_output": True} if plan.stop else {}),
    )
    with sampling_engine(config, dtype, max_num_seqs) as engine, progress_bar(chunks, "sampling", missing) as bar:
        for index in missing:
            prompts = plan.chunk(index)
            first = index * plan.chunk_size
            own = [options.clone() for _ in prompts]
            for i, params in enumerate(own):
                params.seed = prompt_seed(plan.seed, first + i)
            outputs = engine.generate([prompt.token_ids for prompt in prompts], own)
            chunks.write_sampled(index, [r for i, output in enumerate(outputs) for r in _responses(output, first + i)])
            bar.update()


def _responses(output: vllm.RequestOutput, prompt: int) -> Iterator[Response]:
    for sample_index, made in enumerate(output.outputs):
        ids = list(made.token_ids)
        yield Response(
            prompt=prompt,
            sample=sample_index,
            prompt_ids=list(output.prompt_token_ids),
            response_ids=ids,
            log_mu=[place[token].logprob for token, place in zip(ids, made.logprobs, strict=True)],
            finished=made.finish_reason != "length",
        )
