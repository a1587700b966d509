"""Sampling with vLLM and scoring with the trainer's model, one after the other: never are both in memory."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import vllm
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from actors import runtime
from actors.engine import SamplingEngine
from learners.config import Config
from learners.log_probs import TokenLogProbs
from learners.precision import NAMES, NonFiniteError
from learners.rollout import RolloutBatch
from scripts.analysis.responses import Chunks, Response
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

    @property
    def chunk_count(self) -> int:
        return -(-len(self.prompts) // self.chunk_size)

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


def load_trained_model(config: Config, dtype: torch.dtype, attention: str):
    """The model as the trainer computes it, on this process's device."""
    model = AutoModelForCausalLM.from_pretrained(
        config.model_path,
        dtype=dtype,
        attn_implementation=attention,
        trust_remote_code=config.model.trust_remote_code,
    )
    model.config.use_cache = False
    return model.to(runtime.device()).eval().requires_grad_(False)


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def sample(config: Config, dtype: torch.dtype, plan: SamplingPlan, chunks: Chunks, max_num_seqs: int) -> None:
    """Sample the chunks that are not there yet. Each is a function of (weights, dtype, seed, chunk)."""
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
    with sampling_engine(config, dtype, max_num_seqs) as engine, _bar(chunks, "sampling", missing) as bar:
        for index in missing:
            prompts = plan.chunk(index)
            torch.manual_seed(int(np.random.SeedSequence([plan.seed, index]).generate_state(1)[0]))
            tokens = [{"prompt_token_ids": prompt.token_ids} for prompt in prompts]
            outputs = engine.llm.generate(tokens, sampling_params=options, use_tqdm=False)
            first = index * plan.chunk_size
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


def score(config: Config, dtype: torch.dtype, chunks: Chunks, attention: str, max_batch_tokens: int) -> None:
    """Give the sampled responses their log pi, in batches of at most so many tokens, padding included.

    Raises:
        NonFiniteError: a log-probability of either engine is not finite.
    """
    missing = chunks.not_scored()
    if not missing:
        return
    scorer = TokenLogProbs(load_trained_model(config, dtype, attention), 1.0, config.precision.lm_head_fp32)
    scorer.check()
    with _bar(chunks, "scoring", missing) as bar:
        for index in missing:
            responses = chunks.read_sampled(index)
            for batch in token_batches(responses, max_batch_tokens):
                score_batch(scorer, batch)
                _require_finite(batch, dtype)
            chunks.write_scored(index, responses)
            bar.update()
    del scorer
    free_memory()


def token_batches(responses: Sequence[Response], max_tokens: int) -> Iterator[list[Response]]:
    """The responses, longest first, in batches of at most ``max_tokens`` with padding; a longer one goes alone."""
    batch: list[Response] = []
    for response in sorted(responses, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > max_tokens:
            yield batch
            batch = []
        batch.append(response)
    if batch:
        yield batch


@torch.no_grad()
def score_batch(scorer: TokenLogProbs, responses: Sequence[Response]) -> None:
    """Set ``log_pi`` of the given responses."""
    batch = RolloutBatch.from_transitions(responses, runtime.device())
    positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device).expand_as(batch.input_ids)
    kept = scorer(batch.input_ids, batch.attention_mask, positions, batch.response_mask).cpu()
    for response, values in zip(responses, kept.split([len(r.response_ids) for r in responses]), strict=True):
        response.log_pi = values.tolist()


def _require_finite(responses: Sequence[Response], dtype: torch.dtype) -> None:
    for response in responses:
        for engine, values in (("trainer", response.log_pi), ("sampler", response.log_mu)):
            if not np.isfinite(values).all():
                raise NonFiniteError(
                    f"A log-probability of the {engine} is not finite (--dtype {NAMES[dtype]}, prompt "
                    f"{response.prompt}): this model leaves the range of that dtype; leave that dtype out."
                )


def _bar(chunks: Chunks, what: str, missing: list[int]) -> tqdm:
    done = chunks.count - len(missing)
    return tqdm(total=chunks.count, initial=done, desc=f"{chunks.dtype}: {what}", unit="chunk")
