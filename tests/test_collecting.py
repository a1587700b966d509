"""The first half of a step on one process and on several real ones, with an actor that needs no engine; and which
updates the second half makes of it."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from actors.processes import Processes
from learners.command_line import parse
from learners.rollouts.batch import Packed  # noqa: F401 - so that what passes between processes is this one
from tasks.prompts import Prompt, PromptStream
from tests.stand_ins import stand_ins
from tests.test_across_processes import on_processes

GROUP = 4
HEAVY = ("oat.types", "oat.model", "oat.algorithms.ppo", "oat.utils.ops", "oat.utils.deepspeed", "actors.math_actor",
         "deepspeed.utils", "deepspeed.runtime.zero.partition_parameters", "deepspeed.runtime.zero.linear",
         "transformers.integrations", "transformers.trainer", "peft")  # fmt: skip


with stand_ins(*HEAVY):
    from learners import policy_learner
    from learners.rollouts.collect import Rollouts


@dataclass
class Transition:
    prompt_ids: list[int]
    response_ids: list[int]
    response_logprobs: list[float]
    rewards: list[float]
    info: dict = field(default_factory=dict)
    loss_mask: bool = True


class Actor:
    """Answers by the prompt and the number of the response alone; every third prompt is solved or missed as a whole."""

    def __init__(self, rank: int):
        self.rank, self.asked = rank, []

    def sample(self, prompts, seed, places):
        self.asked.append(([prompt.token_ids[0] for prompt in prompts], seed, list(places)))
        info = {"actor/generate_time": 1.0 + self.rank, "actor/verify_time": 9.0 - self.rank,
                "reward/timeouts": 10**self.rank, "actor/no_eos_count": self.rank + 1,
                "actor/num_data": len(prompts) * GROUP}  # fmt: skip
        return [
            Transition(
                [n], [n, i][: 1 + i % 2] * 2, [-0.5 * n, -i][: 1 + i % 2] * 2, [float(i == 1 or n % 3 == 0)], info
            )
            for n in (prompt.token_ids[0] for prompt in prompts)
            for i in range(GROUP)
        ]


def options(*more: str):
    return parse([f"--num-samples={GROUP}", "--rollout-batch-size=8", "--train-batch-size=8", "--seed=3", *more])


PROMPTS = [Prompt(str(n), "", [n]) for n in range(1, 25)]


def collect(rank: int, count: int, group: int, config, number: int = 2) -> dict:
    log = SimpleNamespace(samples=lambda *told: None, say=lambda line: said.append(line))
    said, actor = [], Actor(rank)
    rollouts = Rollouts(config, PROMPTS, Processes(rank, count, group), log)
    step = rollouts.collect(number, actor)
    return {
        "number": step.number, "times": step.times, "asked": actor.asked, "said": said,
        "result": step.tally.result(),
        "drawn": rollouts.prompts_drawn, "batch": {n: t.tolist() for n, t in step.batch.tensors().items()},
    }  # fmt: skip


@pytest.mark.parametrize(("count", "group"), [(2, 1), (4, 2)])
def test_several_processes_have_the_batch_of_one(count, group, tmp_path):
    config = options("--overlong-buffer=23")
    alone = collect(0, 1, 1, config)
    expected = [prompt.token_ids[0] for prompt in PromptStream(PROMPTS, 8, 3).batch(2)]
    assert alone["asked"][0][0] == expected and alone["asked"][0][2] == list(range(8))
    made = on_processes(count, lambda rank: collect(rank, count, group, config), tmp_path)
    engines = count // group
    for rank, own in enumerate(made):
        assert own["batch"] == alone["batch"] and own["number"] == 2
        part = slice(rank // group * 8 // engines, (rank // group + 1) * 8 // engines)
        assert own["asked"] == [(expected[part], alone["asked"][0][1], list(range(8))[part])]
        tokens = sum(map(sum, alone["batch"]["response_mask"]))
        assert own["times"] == pytest.approx({
            "time/sample": count, "time/grade": 9, "throughput/sample_tokens_per_s": tokens / count,
            "reward/timeouts": sum(10**first for first in range(0, count, group)),
            "train/overlong_punishment": alone["times"]["train/overlong_punishment"],
        })  # fmt: skip
        cut, sampled = sum(r + 1 for r in range(count)), count * 8 // engines * GROUP
        assert own["result"] == pytest.approx({"train/truncated": cut / sampled})


def test_advantages_are_of_rewards_with_the_punishment_and_rewards_stay_without():
    config = options("--overlong-buffer=23", "--advantage=group-mean")
    made = collect(0, 1, 1, config)
    lengths = torch.tensor(made["batch"]["response_mask"]).sum(1)
    punishment = -(lengths - 1).clamp(min=0) / 23  # of 24 tokens, all but the first are in the buffer
    rewards = torch.tensor(made["batch"]["rewards"])
    assert set(rewards.tolist()) == {0.0, 1.0}
    groups = (rewards + punishment).view(-1, GROUP)
    torch.testing.assert_close(
        torch.tensor(made["batch"]["advantages"]).view(-1, GROUP), groups - groups.mean(1, keepdim=True)
    )
    assert made["times"]["train/overlong_punishment"] == pytest.approx(punishment.mean().item())
    assert "train/overlong_punishment" not in collect(0, 1, 1, options())["times"]


def test_steps_differ_in_prompts_and_seed_and_a_step_done_again_does_not():
    first, again, second = (collect(0, 1, 1, options(), number)["asked"] for number in (1, 1, 2))
    assert first == again
    assert first[0][0] != second[0][0] and first[0][1] != second[0][1]


@pytest.mark.parametrize("count", [1, 2])
def test_dynamic_sampling_fills_each_engines_part_and_counts_what_was_drawn(count, tmp_path):
    config = options("--dynamic-sampling=True", "--max-sampling-rounds=4")
    made = on_processes(count, lambda rank: collect(rank, count, 1, config), tmp_path)
    for own in made:
        assert own["batch"] == made[0]["batch"] and len(own["batch"]["rewards"]) == 8 * GROUP
        groups = torch.tensor(own["batch"]["rewards"]).view(-1, GROUP)
        assert (groups.min(1).values < groups.max(1).values).all()
        rounds = own["times"]["sampling/rounds"] if "sampling/rounds" in own["times"] else len(own["asked"])
        assert rounds == len(own["asked"]) == len(made[0]["asked"]), "all take the same rounds"
        assert own["drawn"] == sum(len(asked[0]) for asked in own["asked"]) * count
    places = [place for own in made for asked in own["asked"] for place in asked[2]]
    assert sorted(places) == list(range(made[0]["drawn"])), "every place is one prompt's"


def test_a_batch_that_cannot_be_filled_says_so():
    config = options("--dynamic-sampling=True", "--max-sampling-rounds=1")
    made = collect(0, 1, 1, config)
    filled = sum(n % 3 == 0 for n in made["asked"][0][0])
    assert filled > 0 and len(made["said"]) == 1
    assert f"in 1 rounds {filled} prompts too few had responses of different reward" in made["said"][0]


# ------------------------------------------------------------------------------------------------ the second half


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_epoch_trains_on_every_response_once_in_updates_of_one_size(epochs):
    config = options(f"--num-ppo-epochs={epochs}")
    batch = range(config.sequences_per_step)
    stub = SimpleNamespace(config=config, args=SimpleNamespace(seed=3, train_batch_size=8))
    made = {n: policy_learner.PolicyLearner._updates(stub, SimpleNamespace(number=n, batch=batch)) for n in (1, 2)}
    for updates in made.values():
        assert len(updates) == config.updates_per_step == 4 * epochs
        assert {len(indices) for indices in updates} == {8}
        for epoch in range(epochs):
            assert sorted(torch.cat(updates[4 * epoch : 4 * epoch + 4]).tolist()) == list(batch)
    again = policy_learner.PolicyLearner._updates(stub, SimpleNamespace(number=1, batch=batch))
    assert all(torch.equal(a, b) for a, b in zip(made[1], again, strict=True))
    assert not torch.equal(torch.cat(made[1]), torch.cat(made[2]))
    assert epochs == 1 or not torch.equal(torch.cat(made[1][:4]), torch.cat(made[1][4:8])), "shuffled anew"
