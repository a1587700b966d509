"""Sampling many responses, each with a seed of its own, handed over as they come."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import vllm

from actors.engine import SamplingEngine


@dataclass(frozen=True)
class Request:
    """One response to be sampled."""

    key: Any
    """whatever the caller knows it by"""
    token_ids: list[int]
    """of the prompt"""
    reference: str
    """what the answer is graded against"""
    seed: int


@dataclass(frozen=True)
class Response:
    """A response to a request."""

    request: Request
    text: str
    tokens: int
    """its length, the end-of-sequence token included"""
    truncated: bool
    """cut at the limit of tokens"""


def response_seed(seed: int, problem: str, sample: int) -> int:
    """The seed of one response, from 0 to below 2^63: a function of the evaluation's seed, the problem's id and the
    response's number."""
    digest = hashlib.sha256(f"{seed}/{problem}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def prompt_seed(seed: int, place: int) -> int:
    """The seed of a prompt that is sampled several times, from 0 to below 2^62: a function of the step's seed and the
    prompt's place in the step. vLLM gives the i-th response this seed plus i, so that seeds must lie far apart, and
    stay below 2^63."""
    return int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0]) >> 2


def sample_stream(
    engine: SamplingEngine, requests: Iterable[Request | None], params: vllm.SamplingParams, in_flight: int
) -> Iterator[list[Response]]:
    """Sample the requests, keeping ``in_flight`` of them in the engine, and yield what each engine step finishes.

    Requests are drawn from the iterable only when the engine has room, so that it may decide late what comes next; None
    is a request that is not decided yet, and is asked for again after the next engine step, if one is under way.

    Args:
        params: of each response (n = 1); the seed is the request's.
        in_flight: at most so many requests in the engine at once.
    """
    llm, waiting = engine.llm.llm_engine, iter(requests)
    running: dict[str, Request] = {}
    started = 0
    try:
        while True:
            while len(running) < in_flight and (request := next(waiting, None)) is not None:
                own = params.clone()
                own.seed, own.output_kind = request.seed, vllm.sampling_params.RequestOutputKind.FINAL_ONLY
                name, started = str(started), started + 1
                running[name] = request
                llm.add_request(name, {"prompt_token_ids": request.token_ids}, own)
            if not running:
                return
            finished = [
                Response(running.pop(output.request_id), made.text, len(made.token_ids), made.finish_reason == "length")
                for output in engine.step()
                if output.finished
                for made in output.outputs
            ]
            if finished:
                yield finished
    finally:
        if running:
            llm.abort_request(list(running))


def grade_stream(
    stream: Iterable[list[Response]], grade: Callable[[list[Response]], list[float]]
) -> Iterator[list[tuple[Response, float]]]:
    """Grade the responses of `sample_stream`, and yield (response, reward) in the order in which they were finished;
    in one thread beside the sampling, so that a slow comparison does not hold up the engine."""
    with ThreadPoolExecutor(1) as grader:
        pending: deque = deque()
        for finished in stream:
            pending.append((finished, grader.submit(grade, finished)))
            while pending and pending[0][1].done():
                responses, rewards = pending.popleft()
                yield list(zip(responses, rewards.result(), strict=True))
        for responses, rewards in pending:
            yield list(zip(responses, rewards.result(), strict=True))
