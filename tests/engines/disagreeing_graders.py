"""Two processes that share an engine, each with a grader of its own mind: do they still agree? Run under torchrun."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train
from actors.launch import Launch

load_task, build = train.load_task, train.build


def with_a_grader_of_its_own(config):
    task, *prompts = load_task(config)
    chance = random.Random(Launch.from_environment().rank)
    task.grade = lambda responses, references: [float(chance.random() < 0.5) for _ in responses]
    return task, *prompts


def with_a_look_at_what_comes(*arguments, **named):
    from actors.processes import gather

    learner = build(*arguments, **named)
    sample, evaluate = learner.actor.sample, learner.actor.evaluate

    def same_everywhere(what):
        one, other = gather(what)
        assert one == other, "the processes of an engine disagree"

    def sample_and_compare(*arguments):
        transitions = sample(*arguments)
        same_everywhere([(t.prompt, t.response, sum(t.rewards)) for t in transitions])
        return transitions

    def evaluate_and_compare(*arguments, **named):
        rewards, lengths = evaluate(*arguments, **named)
        assert 0 < rewards.mean() < 1
        same_everywhere(rewards.tolist())
        return rewards, lengths

    learner.actor.sample, learner.actor.evaluate = sample_and_compare, evaluate_and_compare
    return learner


train.load_task, train.build = with_a_grader_of_its_own, with_a_look_at_what_comes
sys.exit(train.main())
