"""The actor: samples with vLLM, grades with the task, hands over transitions with mu's log-probabilities."""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from types import SimpleNamespace

import numpy as np
import torch
import vllm
from oat.algorithms.ppo import PPOActor, PPOArgs
from oat.types import TransitionData
from vllm.lora.request import LoRARequest

from actors.engine import SamplingEngine
from actors.responses import Request, prompt_seed, response_seed, sample_stream
from tasks.errors import NonFiniteError
from tasks.prompts import Prompt


def require_finite(transitions: list[TransitionData]) -> None:
    """All of mu's log-probabilities must be numbers: with one that is not, a loss can be finite and its gradient not.

    Raises:
        NonFiniteError: one is not; names the prompt and the position.
    """
    if np.isfinite(np.fromiter(chain.from_iterable(t.response_logprobs for t in transitions), float)).all():
        return
    for transition in transitions:
        for place, log_prob in enumerate(transition.response_logprobs):
            if not math.isfinite(log_prob):
                raise NonFiniteError(
                    f"the sampler reported a log-probability of {log_prob} for token {place + 1} of a response to the "
                    f"prompt {transition.prompt[:80]!r}; no gradient can be made of it. Try --sample-dtype fp32."
                )


class MathActor(PPOActor):
    """Oat's PPOActor on an engine in this process.

    Sampling, grading and the making of transitions (`step`) are Oat's. What is different: prompts are token ids, so
    that no template meets a tokenizer twice; the engine is built in the dtype that was asked for; every prompt of a
    step has a seed of its own, so that what it is answered is a function of (seed, step, place in the step, weights),
    up to the rounding of another batch (Oat takes the engine's seed from the clock); and evaluation samples as
    scripts/evaluate.py does.

    Args:
        grade: (responses, references) -> rewards.
        stop: strings that end a response and stay in it.
        timeouts: answers so far that the grader ran out of time on.
    """

    def __init__(
        self,
        args: PPOArgs,
        engine: SamplingEngine,
        grade: Callable[[list[str], list[str]], list[float]],
        stop: tuple[str, ...] = (),
        timeouts: Callable[[], int] = lambda: 0,
    ):
        super().__init__(ipc_server=None, vllm_args={}, args=args)
        self.engine, self.llm = engine, engine.llm
        # The processes that share an engine must agree, also where a grader runs out of time in one of them.
        self.grade = lambda *answers: engine.decided_by_first(lambda: grade(*answers))
        self.timeouts = timeouts
        # What Oat's `step` asks for: rewards in FP32 beside a metric, and a way to the learner, which is here.
        get_reward = lambda _, *answers: (torch.tensor(self.grade(*answers), dtype=torch.float32), {})
        self.oracle = SimpleNamespace(get_reward=get_reward)
        self.ipc_client = SimpleNamespace(serialize_ipc=lambda transitions: transitions)
        self.adapter: LoRARequest | None = None
        self.prompt_seeds: list[int] = []  # of the step that is being sampled
        stopping = {"stop": list(stop), "include_stop_str_in_output": bool(stop)}
        self.sampling_params = vllm.SamplingParams(
            n=args.num_samples,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            max_tokens=args.generate_max_length,
            logprobs=0,  # of the sampled token alone
            detokenize=bool(stop),  # only a string that ends a response must be seen as it is written
            **stopping,
        )
        self.eval_sampling_params = vllm.SamplingParams(
            temperature=args.eval_temperature,
            top_p=args.eval_top_p,
            max_tokens=args.eval_generate_max_length,
            **stopping,
        )

    def generate(self, prompts: list[list[int]], sampling_params: vllm.SamplingParams) -> list[vllm.RequestOutput]:
        """Oat's way to the engine: sample every prompt (token ids) of a step; outputs come in their order."""
        own = []
        for seed in self.prompt_seeds:
            own.append(sampling_params.clone())
            own[-1].seed = seed
        outputs = self.engine.generate(prompts, own, self.adapter)
        if not sampling_params.detokenize:  # then whole, in a tenth of the time that vLLM takes token by token
            responses = [response for output in outputs for response in output.outputs]
            tokens = [r.token_ids[:-1] if r.finish_reason == "stop" else r.token_ids for r in responses]
            decode = self.llm.get_tokenizer().batch_decode
            texts = decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for response, text in zip(responses, texts, strict=True):
                response.text = text
        return outputs

    def load_adapter(self, folder: str) -> None:
        """From now on sample with the adapter in a folder (peft's format), and forget the last one."""
        last, number = self.adapter, 1 if self.adapter is None else self.adapter.lora_int_id + 1
        self.adapter = LoRARequest(f"adapter-{number}", number, folder)
        engine = self.llm.llm_engine
        if last is not None:
            engine.remove_lora(last.lora_int_id)
        engine.add_lora(self.adapter)  # read now: the folder need not stay

    def sample(self, prompts: Sequence[Prompt], seed: int, places: Sequence[int]) -> list[TransitionData]:
        """Oat's `step`, seeded.

        Args:
            prompts: this engine's part of a step's.
            seed: of the step.
            places: of these prompts among all that the step samples, on whatever engine.

        Returns:
            One transition per response, the responses of a prompt next to each other; ``info``, one for all, holds
            Oat's ``actor/generate_time`` and ``actor/verify_time``, seconds, and ``reward/timeouts``, a count.

        Raises:
            NonFiniteError: a log-probability or a logit is not a number.
        """
        self.prompt_seeds = [prompt_seed(seed, place) for place in places]
        before = self.timeouts()
        transitions = self.step(
            [prompt.question for prompt in prompts],
            [prompt.token_ids for prompt in prompts],
            [prompt.reference for prompt in prompts],
        )
        require_finite(transitions)
        transitions[0].info["reward/timeouts"] = self.timeouts() - before
        return transitions

    def evaluate(self, prompts: list[Prompt], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample ``eval_n`` responses of each prompt, each with a seed of its own, and grade them on their text.

        Args:
            seed: the same seed gives a prompt the same seeds, whatever the step and whatever else is evaluated.

        Returns:
            Rewards, and lengths in tokens, both of shape (prompts, eval_n).
        """
        shape = (len(prompts), self.args.eval_n)
        requests = [
            Request((i, j), prompt.token_ids, prompt.reference, response_seed(seed, prompt.question, j))
            for i, prompt in enumerate(prompts)
            for j in range(self.args.eval_n)
        ]
        stream = sample_stream(self.engine, requests, self.eval_sampling_params, in_flight=len(requests))
        responses = sorted(chain.from_iterable(stream), key=lambda response: response.request.key)
        rewards = self.grade([response.text for response in responses], [r.request.reference for r in responses])
        return np.reshape(rewards, shape), np.reshape([float(response.tokens) for response in responses], shape)
