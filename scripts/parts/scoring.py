"""Scoring: log pi of sampled responses, from the trainer's model on its own."""

import gc
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from actors import runtime
from learners.model.log_probs import TokenLogProbs
from learners.options.config import Config
from learners.options.precision import NAMES
from learners.rollouts.batch import RolloutBatch
from scripts.parts.responses import Chunks, Response
from tasks.errors import NonFiniteError


def load_trained_model(config: Config, dtype: torch.dtype, attention: str):
    """The model as the trainer computes it, on this process's device."""
    free_memory()  # of the engine that was there before
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
    with progress_bar(chunks, "scoring", missing) as bar:
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
    batch = RolloutBatch.from_transitions(responses).to(runtime.device())
    chosen = scorer(batch.input_ids, batch.lengths, batch.response_mask).cpu()
    for response, values in zip(responses, chosen.split([len(r.response_ids) for r in responses]), strict=True):
        response.log_pi = values.tolist()


def _require_finite(responses: Sequence[Response], dtype: torch.dtype) -> None:
    for response in responses:
        for engine, values in (("trainer", response.log_pi), ("sampler", response.log_mu)):
            if not np.isfinite(values).all():
                raise NonFiniteError(
                    f"A log-probability of the {engine} is not finite (--dtype {NAMES[dtype]}, prompt "
                    f"{response.prompt}): this model leaves the range of that dtype; leave that dtype out."
                )


def progress_bar(chunks: Chunks, what: str, missing: list[int]) -> tqdm:
    done = chunks.count - len(missing)
    return tqdm(total=chunks.count, initial=done, desc=f"{chunks.dtype}: {what}", unit="chunk")
