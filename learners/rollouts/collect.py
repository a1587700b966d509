"""The first half of a step: prompts are sampled and graded, and every process gets all of the step's responses."""

from __future__ import annotations

import numpy as np
import torch
from oat.types import TransitionData

from actors.math_actor import MathActor
from actors.processes import Processes, across_processes, gather
from learners.objectives.advantages import ADVANTAGES, overlong_punishment
from learners.options.config import Config
from learners.record.run_log import RunLog
from learners.rollouts.batch import Packed, RolloutBatch
from learners.rollouts.dynamic_sampling import Collected, collect_mixed
from learners.rollouts.step import Step
from tasks.prompts import Prompt, PromptStream


def step_seed(seed: int, *key: int) -> int:
    """A seed for the sampling or shuffling of one step, the same whatever came before."""
    return int(np.random.SeedSequence([seed, *key]).generate_state(1)[0])


class Rollouts:
    """Makes the `Step` that the learner learns from, of prompts for training; the log takes a few of the responses."""

    def __init__(self, config: Config, prompts: list[Prompt], processes: Processes, log: RunLog):
        self.config, self.processes, self.log = config, processes, log
        self.stream = PromptStream(prompts, config.sampling.rollout_batch_size, config.training.seed)
        self.advantage = ADVANTAGES[config.objective.advantage]
        self.prompts_drawn = 0  # by dynamic sampling, over all epochs: where its next step goes on

    def collect(self, number: int, actor: MathActor) -> Step:
        """Sample and grade the prompts of step ``number``, and gather the responses of all processes."""
        options = self.config.sampling
        measured = {}
        if options.dynamic_sampling:
            collected = self._collect_mixed(number, actor)
            prompts = [prompt for prompt, _ in collected.prompts]
            transitions, measured = collected.transitions, collected.metrics
        else:
            prompts = self.processes.prompts_of_engine(self.stream.batch(number))
            places = self.processes.prompts_of_engine(range(options.rollout_batch_size))
            transitions = actor.sample(prompts, step_seed(self.config.training.seed, number), places)
        self.log.samples(number, prompts, transitions, options.num_samples)
        batch = RolloutBatch.unpack(gather(Packed.of(self.processes.share_of_engine(transitions))))
        lengths = batch.response_mask.sum(1)
        punishment = overlong_punishment(lengths, options.generate_max_length, options.overlong_buffer)
        batch.advantages = self.advantage(batch.rewards + punishment, options.num_samples)
        if options.overlong_buffer:
            measured["train/overlong_punishment"] = punishment.mean().item()
        info = transitions[0].info
        step = Step(number, batch, measured | self._measure(info, batch))
        step.tally.add("train/truncated", torch.tensor(float(info["actor/no_eos_count"])), count=info["actor/num_data"])
        return step

    def _measure(self, info: dict, batch: RolloutBatch) -> dict[str, float]:
        """Times and counts of the sampling, over all processes."""
        seconds = torch.tensor([info["actor/generate_time"], info["actor/verify_time"]], dtype=torch.float64)
        sample, grade = across_processes(seconds, "max").tolist()
        timeouts = torch.tensor([float(info["reward/timeouts"] * self.processes.first_of_engine)])
        return {
            "time/sample": sample,
            "time/grade": grade,
            "throughput/sample_tokens_per_s": batch.response_mask.sum().item() / sample,
            "reward/timeouts": across_processes(timeouts, "sum").item(),
        }

    def _collect_mixed(self, number: int, actor: MathActor) -> Collected:
        """Dynamic sampling: goes on in the prompts where the last step stopped (`prompts_drawn`)."""
        options, engines, seed = self.config.sampling, self.processes.engines, self.config.training.seed

        def draw(count: int) -> list[tuple[Prompt, int]]:
            """Prompts, each with its place among all that were ever drawn."""
            first, total = self.prompts_drawn, count * engines
            self.prompts_drawn += total
            drawn = list(zip(self.stream.take(first, total), range(first, first + total), strict=True))
            return self.processes.prompts_of_engine(drawn)

        def sample(drawn: list[tuple[Prompt, int]]) -> list[TransitionData]:
            prompts, places = zip(*drawn, strict=True)
            return actor.sample(prompts, step_seed(seed, number), places)

        collected = collect_mixed(
            draw,
            sample,
            wanted=options.rollout_batch_size // engines,
            group_size=options.num_samples,
            max_rounds=options.max_sampling_rounds,
            largest=lambda own: int(across_processes(torch.tensor([float(own)]), "max").item()),
        )
        if filled := collected.metrics["sampling/filled_prompts"]:
            self.log.say(
                f"step {number}: in {options.max_sampling_rounds} rounds {filled} prompts too few had "
                "responses of different reward; others fill the batch, without an advantage"
            )
        return collected
