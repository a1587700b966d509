"""Dumps with one fault each, made by the real engines: vLLM samples, the trainer's model scores, one of them wrongly.

`Laboratory` holds both engines with one model in one dtype. `faults` says what is done to which of them, and what
scripts/doctor.py should then find; scripts/doctor_table.py makes the table of docs/doctor.md from them.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from learners.diagnosis.dump import Dump
from learners.model.output_head import give_log_probs

Weights = dict[str, torch.Tensor]
BATCH = 16  # responses of a forward pass
DROPOUT = 0.1
UNUSED_END = 0  # a special token that ends no response of either model


@dataclass
class Sampled:
    """Responses as vLLM gave them."""

    prompts: list[list[int]]
    """of each response"""
    responses: list[list[int]]
    log_mu: list[list[float]]
    group: list[int]
    finished: list[bool]


@dataclass(frozen=True)
class Sampling:
    """How vLLM samples."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    raw: bool = False
    """report log-probabilities of the logits as they come from the model"""
    biased: bool = False
    """normalise with torch's log_softmax in FP32, whose sum is too small on a CPU"""
    weights: str = "base"


@dataclass(frozen=True)
class Scoring:
    """How the trainer scores."""

    temperature: float = 1.0
    weights: str = "base"
    dropout: float = 0.0
    shift: int = 0
    """each log-probability is that of the token so many places before"""
    prompt: Callable[[list[int]], list[int]] | None = None
    last_token: int | None = None
    """stands in the place of a finished response's last token"""
    last_left_out: bool = False
    """the last token is masked: its log-probability is 0"""
    places: str = "right"
    """"restart": positions begin again with the response; "stretched": they grow by 1.02 a token; "padded": tokens are
    padded on the left and the padding is seen"""
    batch: int = BATCH
    dtype: torch.dtype | None = None
    """of the trainer's model, if not the sampler's"""


USUAL = Scoring()


@dataclass(frozen=True)
class Fault:
    """One thing done wrongly, and what should be found."""

    causes: tuple[str, ...]
    """names of findings of which the first should be one"""
    sampling: str = "usual"
    """of `SAMPLINGS`"""
    scoring: Scoring = USUAL
    again: Scoring | None = None
    """a second pass"""
    claims: dict = field(default_factory=dict)


SAMPLINGS = {
    "usual": Sampling(), "biased": Sampling(biased=True), "temperature 0.9": Sampling(temperature=0.9),
    "temperature 1.1": Sampling(temperature=1.1), "temperature 0.6": Sampling(temperature=0.6),
    "top-p 0.95": Sampling(top_p=0.95), "top-p 0.8": Sampling(top_p=0.8), "top-k 20": Sampling(top_k=20),
    "top-k 3": Sampling(top_k=3), "min-p 0.05": Sampling(min_p=0.05), "raw 0.8": Sampling(temperature=0.8, raw=True),
    "raw top-p 0.9": Sampling(top_p=0.9, raw=True), "int8": Sampling(weights="int8"), "int4": Sampling(weights="int4"),
}  # fmt: skip


def faults(other_prompt: Callable, top_k: str) -> dict[str, Fault]:
    """All that are made, by name.

    Args:
        other_prompt: ids of a prompt -> ids of another one that asks the same.
        top_k: of `SAMPLINGS`; 20 tokens are no filter for a vocabulary of 99.
    """
    scaled = lambda t: Scoring(temperature=t)
    halves = {"sample_dtype": "fp16", "train_dtype": "fp16"}
    return {
        "healthy": Fault(("healthy",), again=Scoring(batch=1)),
        "healthy, both at temperature 0.6": Fault(("healthy",), "temperature 0.6", scaled(0.6)),
        "sampler at temperature 0.9": Fault(("temperature",), "temperature 0.9"),
        "sampler at temperature 1.1": Fault(("temperature",), "temperature 1.1"),
        "sampler at temperature 0.6": Fault(("temperature",), "temperature 0.6"),
        "trainer at temperature 0.9": Fault(("temperature",), scoring=scaled(0.9)),
        "trainer at temperature 1.1": Fault(("temperature",), scoring=scaled(1.1)),
        "top-p 0.95": Fault(("filtered",), "top-p 0.95"),
        "top-p 0.8": Fault(("filtered",), "top-p 0.8"),
        "top-k": Fault(("filtered",), top_k),
        "min-p 0.05": Fault(("filtered",), "min-p 0.05"),
        "raw log-probabilities at temperature 0.8": Fault(
            ("raw-log-probs",), "raw 0.8", scaled(0.8), claims={"temperature": 0.8}),
        "raw log-probabilities at top-p 0.9": Fault(("raw-log-probs",), "raw top-p 0.9", claims={"top_p": 0.9}),
        "one step stale": Fault(("stale",), scoring=Scoring(weights="step 1")),
        "four steps stale": Fault(("stale",), scoring=Scoring(weights="step 4")),
        "rank-4 adapter left out": Fault(("adapters",), scoring=Scoring(weights="adapter"), claims={"lora": True}),
        "int8 weights in the sampler": Fault(("quantised",), "int8"),
        "int4 weights in the sampler": Fault(("quantised",), "int4"),
        "dropout 0.1": Fault(("not-deterministic",), scoring=Scoring(dropout=DROPOUT)),
        "dropout 0.1, two passes": Fault(
            ("not-deterministic",), scoring=Scoring(dropout=DROPOUT), again=Scoring(dropout=DROPOUT)),
        "shifted by one token": Fault(("shifted",), scoring=Scoring(shift=1)),
        "another end-of-sequence token": Fault(("special-token",), scoring=Scoring(last_token=UNUSED_END)),
        "last token masked": Fault(("special-token",), scoring=Scoring(last_left_out=True)),
        "another prompt": Fault(("prompts-differ",), scoring=Scoring(prompt=other_prompt)),
        "a token more in front of the prompt": Fault(
            ("prompts-differ",), scoring=Scoring(prompt=lambda ids: [ids[0], *ids])),
        "BF16 under the name of FP16": Fault(("precision",), scoring=Scoring(dtype=torch.bfloat16), claims=halves),
        "positions begin again": Fault(("positions",), scoring=Scoring(places="restart")),
        "positions stretched": Fault(("positions",), scoring=Scoring(places="stretched")),
        "padding seen": Fault(("positions",), scoring=Scoring(places="padded")),
        "biased normaliser": Fault(("biased-normaliser",), "biased"),
    }  # fmt: skip


class Laboratory:
    """A sampling engine and the trainer's model, of one model in one dtype, in this process.

    Args:
        path: folder of the model.
        dtype: of both; `runtime.prepare` has been called with it.
        max_model_len: of prompt and response together, tokens.
        max_num_seqs: responses sampled at once.
        weights: by name, whole sets of weights under their Hugging Face names; "base" are the folder's.
        attention: of the trainer's model.
    """

    def __init__(self, path: str, dtype: torch.dtype, max_model_len: int, max_num_seqs: int = 64,
                 weights: dict[str, Weights] | None = None, attention: str = "eager"):  # fmt: skip
        from transformers import AutoModelForCausalLM

        from actors.engine import SamplingEngine

        self.engine = SamplingEngine(path, dtype, max_model_len=max_model_len, max_num_seqs=max_num_seqs)
        # Loaded in each dtype, not cast: .to() would round the rotary frequencies, which no trainer does.
        load = lambda dtype: AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention)
        self._load, self.dtype = functools.cache(lambda dtype: load(dtype).eval().requires_grad_(False)), dtype
        base = {name: tensor.detach().clone() for name, tensor in load(torch.float32).named_parameters()}
        self.weights = {"base": base, "int8": quantised(base, 127), "int4": quantised(base, 7)} | (weights or {})
        self._sampling_weights, self._scoring_weights = "base", {}

    def sample(self, prompts: Sequence[list[int]], n: int, max_tokens: int, how: Sampling = SAMPLINGS["usual"],
               seed: int = 0, stop: Sequence[str] = ()) -> Sampled:  # fmt: skip
        """``n`` responses to each prompt."""
        import vllm

        from actors.responses import prompt_seed

        if how.weights != self._sampling_weights:
            self.engine.load_weights(self.weights[how.weights].items())
            self._sampling_weights = how.weights
        params = [
            vllm.SamplingParams(
                n=n, temperature=how.temperature, top_p=how.top_p, top_k=how.top_k, min_p=how.min_p, logprobs=0,
                max_tokens=max_tokens, seed=prompt_seed(seed, i),
                **({"stop": list(stop), "include_stop_str_in_output": True} if stop else {}),
            )
            for i in range(len(prompts))
        ]  # fmt: skip
        with self._reporting(how):
            outputs = self.engine.generate(list(prompts), params)
        made = Sampled([], [], [], [], [])
        for i, output in enumerate(outputs):
            for one in output.outputs:
                ids = list(one.token_ids)
                made.prompts.append(list(output.prompt_token_ids))
                made.responses.append(ids)
                made.log_mu.append([place[t].logprob for t, place in zip(ids, one.logprobs, strict=True)])
                made.group.append(i)
                made.finished.append(one.finish_reason != "length")
        return made

    @contextmanager
    def _reporting(self, how: Sampling) -> Iterator[None]:
        sampler = self.engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner.sampler
        draws, usual = sampler.topk_topp_sampler, sampler.logprobs_mode
        drawn = type(draws).forward_cpu

        def normalised(self, logits, generators, k, p):
            self.logprobs_mode = "processed_logits"
            tokens, reported = drawn(self, logits, generators, k, p)
            self.logprobs_mode = usual
            return tokens, reported.float() - reported.float().logsumexp(-1, keepdim=True)

        if how.raw:
            sampler.logprobs_mode = draws.logprobs_mode = "raw_logprobs"
        elif not how.biased:
            type(draws).forward_cpu = normalised
            draws.forward = draws.forward_cpu
        try:
            yield
        finally:
            sampler.logprobs_mode = draws.logprobs_mode = usual
            type(draws).forward_cpu = drawn
            draws.forward = draws.forward_cpu

    @torch.no_grad()
    def score(self, sampled: Sampled, how: Scoring = USUAL) -> list[np.ndarray]:
        """log pi of every response's tokens, FP32."""
        dtype = how.dtype or self.dtype
        model = self._load(dtype)
        if how.weights != self._scoring_weights.get(dtype, "base"):
            model.load_state_dict(self.weights[how.weights], strict=False)
        self._scoring_weights[dtype] = how.weights
        give_log_probs(model.get_output_embeddings(), how.temperature)
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = how.dropout
        model.train(how.dropout > 0)
        order = sorted(range(len(sampled.responses)), key=lambda i: len(sampled.prompts[i]) + len(sampled.responses[i]))
        made: list[np.ndarray] = [np.zeros(0, np.float32)] * len(order)
        for start in range(0, len(order), how.batch):
            rows = order[start : start + how.batch]
            for i, values in zip(rows, _score_batch(model, sampled, rows, how), strict=True):
                made[i] = values
        model.eval()
        return made

    def close(self) -> None:
        self.engine.close()


def _score_batch(model, sampled: Sampled, rows: list[int], how: Scoring) -> Iterator[np.ndarray]:
    prompts = [how.prompt(sampled.prompts[i]) if how.prompt else sampled.prompts[i] for i in rows]
    responses = [list(sampled.responses[i]) for i in rows]
    if how.last_token is not None:
        for response, i in zip(responses, rows, strict=True):
            response[-1] = how.last_token if sampled.finished[i] else response[-1]
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    places = torch.arange(longest).repeat(len(rows), 1)
    chosen = torch.zeros(len(rows), longest - 1, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        whole = torch.tensor([*prompt, *response])
        first = longest - len(whole) if how.places == "padded" else 0
        ids[row, first : first + len(whole)] = whole
        begin = first + len(prompt)
        chosen[row, begin - 1 - how.shift : begin - 1 - how.shift + len(response)] = True
        if how.places == "restart":
            places[row, begin:] -= begin
    if how.places == "stretched":
        places = places * 1.02
    hidden = model.get_decoder()(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state
    values = model.get_output_embeddings()(hidden[:, :-1][chosen], ids[:, 1:][chosen])
    for row, part in enumerate(values.split([len(r) for r in responses])):
        part = part.float().numpy().copy()
        if how.last_left_out and sampled.finished[rows[row]]:
            part[-1] = 0.0
        yield part


def quantised(weights: Weights, levels: int) -> Weights:
    """Linear layers' weights rounded to so many levels of either sign, by row; embeddings and head as they are."""
    made = {}
    for name, tensor in weights.items():
        if tensor.dim() == 2 and "embed" not in name and "lm_head" not in name:
            scale = tensor.abs().amax(1, keepdim=True) / levels
            tensor = (tensor / scale).round() * scale
        made[name] = tensor
    return made


def dump_of(sampled: Sampled, log_pi: Sequence[np.ndarray], **more) -> Dump:
    """The flat form; ``more`` are its further fields."""
    lengths = [len(r) for r in sampled.responses]
    return Dump(
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        response_ids=np.concatenate(sampled.responses).astype(np.int32),
        log_mu=np.concatenate(sampled.log_mu).astype(np.float32),
        log_pi=np.concatenate(log_pi).astype(np.float32),
        prompt_ids=sampled.prompts,
        group=np.array(sampled.group),
        finished=np.array(sampled.finished),
        **more,
    )
