"""Dynamic sampling and the over-long punishment, without an engine."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.objectives.advantages import ADVANTAGES, overlong_punishment
from learners.rollouts.dynamic_sampling import collect_mixed, prompts_to_draw, total_info
from tasks.prompts import Prompt, PromptStream


@dataclass
class Response:
    """The part of Oat's TransitionData that is read."""

    prompt: int
    rewards: list[float]
    info: dict = field(default_factory=dict)


class Sampler:
    """Prompts are numbers; those in ``mixed`` get one right response of two, the others two."""

    def __init__(self, mixed):
        self.mixed, self.position, self.calls = set(mixed), 0, []

    def draw(self, count):
        self.position += count
        return list(range(self.position - count, self.position))

    def sample(self, prompts):
        self.calls.append((len(self.calls), len(prompts)))
        info = {"actor/generate_time": 1.0, "actor/num_data": 2 * len(prompts), "actor/rewards": 0.5}
        return [
            Response(prompt, [0, float(right)], info)
            for prompt in prompts
            for right in (1, 0 if prompt in self.mixed else 1)
        ]

    def collect(self, wanted, max_rounds, **more):
        return collect_mixed(self.draw, self.sample, wanted, 2, max_rounds, **more)


@given(st.sets(st.integers(0, 60)), st.integers(1, 8), st.integers(1, 6))
def test_a_batch_is_the_first_mixed_prompts_and_always_full(mixed, wanted, max_rounds):
    sampler = Sampler(mixed)
    made = sampler.collect(wanted, max_rounds)
    seen = range(sampler.position)
    first_mixed = [prompt for prompt in seen if prompt in mixed][:wanted]
    first_equal = [prompt for prompt in seen if prompt not in mixed]
    assert made.prompts == first_mixed + first_equal[: wanted - len(first_mixed)]
    assert [t.prompt for t in made.transitions] == [prompt for prompt in made.prompts for _ in range(2)]
    assert len(made.prompts) == wanted
    rounds, sampled, dropped, filled = (
        made.metrics[f"sampling/{name}"] for name in ("rounds", "prompts", "dropped_prompts", "filled_prompts")
    )
    assert filled == wanted - len(first_mixed)
    assert filled == 0 or rounds == max_rounds, "it stops short only where the rounds are over"
    assert (sampled, dropped + filled) == (sampler.position, len(first_equal))
    assert all(t.info == {"actor/generate_time": rounds, "actor/num_data": 2 * sampled}
               for t in made.transitions)  # fmt: skip


def test_no_round_is_spent_on_a_full_batch():
    sampler = Sampler(range(10))
    assert sampler.collect(4, 5).metrics["sampling/rounds"] == 1
    assert sampler.calls == [(0, 4)]


def test_later_rounds_draw_what_should_do():
    sampler = Sampler({0, 1, 5, 6, 7, 8, 9, 10})  # of the first 4, half
    assert sampler.collect(4, 5).metrics["sampling/rounds"] == 2
    assert sampler.calls == [(0, 4), (1, 4)]
    assert prompts_to_draw(8, 6, 8) == 3
    assert prompts_to_draw(8, 0, 8) == 8
    assert prompts_to_draw(8, 9, 16) == 0
    assert prompts_to_draw(8, 1, 80) == 8, "never more than a batch at once"


def test_processes_take_the_same_rounds():
    """This process has enough at once, another one is short: both go on."""
    sampler, counts = Sampler(range(100)), iter([3, 0])
    made = sampler.collect(4, 5, largest=lambda own: max(own, next(counts)))
    assert sampler.calls == [(0, 4), (1, 3)]
    assert made.prompts == [0, 1, 2, 3]


def test_statistics_add_up_or_are_left_out():
    of_a_response = ("rewards", "response_tok_len", "sampling_max_tokens", "sampling_temperature")
    infos = [{"actor/num_data": count} | {f"actor/{name}": 1.0 for name in of_a_response} for count in (4, 6)]
    assert total_info(infos) == {"actor/num_data": 10}


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 40), st.integers(0, 30))
def test_prompts_by_position_are_the_batches_one_after_the_other(prompts, batch, position, count):
    if prompts < batch:
        return
    stream = PromptStream([Prompt(str(i), "", [i]) for i in range(prompts)], batch, seed=3)
    row = [prompt for step in range(1, 80 // batch + 2) for prompt in stream.batch(step)]
    assert stream.take(position, count) == row[position : position + count]


@pytest.mark.parametrize(("length", "punishment"), [(0, 0), (16384, 0), (16385, -1 / 4096), (18432, -0.5),
                                                    (20479, -4095 / 4096), (20480, -1), (30000, -1)])  # fmt: skip
def test_the_overlong_punishment_is_dapos(length, punishment):
    """DAPO's own setting: 16,384 tokens and 4,096 more to fall from 0 to -1."""
    made = overlong_punishment(torch.tensor([length]), 20480, 4096)
    assert made.dtype == torch.float32
    assert made.item() == pytest.approx(punishment, abs=1e-7)


def test_no_buffer_punishes_nothing_and_a_buffer_tells_equal_rewards_apart():
    lengths, rewards = torch.tensor([10, 24, 23, 24]), torch.zeros(4)
    assert overlong_punishment(lengths, 24, 0).tolist() == [0, 0, 0, 0]
    punished = rewards + overlong_punishment(lengths, 24, 4)
    assert ADVANTAGES["group-mean"](punished, 2).tolist() == pytest.approx([0.5, -0.5, 0.125, -0.125])
