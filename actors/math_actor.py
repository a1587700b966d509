"""The actor: samples with vLLM, grades with the task, hands over transitions with mu's log-probabilities."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import vllm
from oat.algorithms.ppo import PPOActor, PPOArgs
from oat.oracles.base import PreferenceOracleBase, RewardOracleBase
from oat.types import TransitionData
from vllm.lora.request import LoRARequest

from actors.engine import SamplingEngine
from actors.responses import Request, prompt_seed, response_seed, sample_stream
from tasks.prompts import Prompt


class TaskOracle(RewardOracleBase, PreferenceOracleBase):
    """A task's grader in the shape that Oat's actors ask for.

    Args:
        grade: (responses, references) -> rewards.
    """

    def __init__(self, grade: Callable[[list[str], list[str]], list[float]]):
        self.grade = grade

    def get_reward(self, inputs, responses, references, batch_size=4):
        """Rewards of N responses as an (N,) FP32 tensor, and an empty metric."""
        del inputs, batch_size
        return torch.tensor(self.grade(list(responses), list(references)), dtype=torch.float32), {}

    def compare(self, inputs, candidates_A, candidates_B, batch_size=4, return_probs=False, disable_tqdm=False):
        """Oat's evaluation: the reward of A against the reference B, as an (N,) array."""
        del batch_size, return_probs, disable_tqdm
        rewards, info = self.get_reward(inputs, candidates_A, candidates_B)
        return rewards.numpy(), info


class PassThrough:
    """What Oat's actor uses to send transitions to another process; here the learner is in this one."""

    def serialize_ipc(self, data):
        return data


class MathActor(PPOActor):
    """Oat's PPOActor on an engine in this process.

    Sampling, grading and the making of transitions (`step`) are Oat's. What is different: prompts are token ids, so
    that no template meets a tokenizer twice; the engine is built in the dtype that was asked for; every prompt of a
    step has a seed of its own, so that what it is answered is a function of (seed, step, place in the step, weights),
    up to the rounding of another batch (Oat takes the engine's seed from the clock); and evaluation samples as
    scripts/evaluate.py does.

    Args:
        args: Oat's arguments.
        engine: the sampler.
        grade: the task's grader.
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
        one_grade = lambda *answers: engine.decided_by_first(lambda: grade(*answers))
        self.oracle, self.oracle_batch_size = TaskOracle(one_grade), args.oracle_batch_size
        self.timeouts = timeouts
        self.ipc_client = PassThrough()
        self.adapter: LoRARequest | None = None
        self.prompt_seeds: list[int] = []  # of the step that is being sampled
        stopping = {"stop": list(stop), "include_stop_str_in_output": True} if stop else {}
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
        if not sampling_params.detokenize:
            self._decode([response for output in outputs for response in output.outputs])
        return outputs

    def _decode(self, responses: list[vllm.CompletionOutput]) -> None:
        """Whole responses at once: a tenth of the time that vLLM takes for it token by token."""
        ended = [response.finish_reason == "stop" for response in responses]
        tokens = [
            response.token_ids[:-1] if end else response.token_ids
            for response, end in zip(responses, ended, strict=True)
        ]
        decode = self.llm.get_tokenizer().batch_decode
        texts = decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for response, text in zip(responses, texts, strict=True):
            response.text = text

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
        """
        self.prompt_seeds = [prompt_seed(seed, place) for place in places]
        before = self.timeouts()
        transitions = self.step(
            [prompt.question for prompt in prompts],
            [prompt.token_ids for prompt in prompts],
            [prompt.reference for prompt in prompts],
        )
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
        requests = []
        for i, j in np.ndindex(shape):
            prompt = prompts[i]
            own_seed = response_seed(seed, prompt.question, j)
            requests.append(Request((i, j), prompt.token_ids, prompt.reference, own_seed))
        stream = sample_stream(self.engine, requests, self.eval_sampling_params, in_flight=len(requests))
        responses = [response for finished in stream for response in finished]
        rewards, lengths = np.zeros(shape), np.zeros(shape)
        graded, _ = self.oracle.get_reward(
            [], [response.text for response in responses], [response.request.reference for response in responses]
        )
        for response, reward in zip(responses, graded.tolist(), strict=True):
            rewards[response.request.key], lengths[response.request.key] = reward, response.tokens
        return rewards, lengths
