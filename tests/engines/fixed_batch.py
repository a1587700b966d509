"""Five updates on a fixed batch by the learner alone: `fixed_batch.py OUT STAGES [--gathered] [train.py's options]`.

Run as one process or under torchrun; writes the FP32 masters after each run as OUT-<stage>.safetensors. With --gathered
ZeRO-3 really gathers every parameter, however small, and the processes have different numbers of chunks of tokens; so
they have in what follows. Several such lines, with a + between them, run one after the other.
"""

import itertools
import sys
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors.torch import save_file

import train
from actors.launch import Launch
from learners.command_line import parse


def fixed_batch(responses: int = 64):
    """Responses of 1 to 20 random tokens with random log mu and rewards, the same in every process."""
    from learners.rollouts.batch import RolloutBatch

    generator = torch.Generator().manual_seed(0)
    width = 28
    prompts = torch.randint(4, 8, (responses, 1), generator=generator)
    lengths = prompts + torch.randint(1, 20, (responses, 1), generator=generator)
    places = torch.arange(width)
    inside = (places[1:] >= prompts) & (places[1:] < lengths)
    return RolloutBatch(
        input_ids=(torch.randint(3, 98, (responses, width), generator=generator) * (places < lengths)).int(),
        lengths=lengths.squeeze(1),
        response_mask=inside,
        mu_logp=(-5 * torch.rand(responses, width - 1, generator=generator)) * inside,
        rewards=torch.randint(0, 2, (responses,), generator=generator).float(),
        kept=torch.ones(responses, dtype=torch.bool),
        advantages=torch.randn(responses, generator=generator),
    )


def gather_every_parameter() -> None:
    from learners.model import output_head
    from learners.update.strategy import PrecisionStrategy

    output_head.CHUNK_TOKENS = 8
    usual = PrecisionStrategy.get_ds_train_config

    def without_persistence(self, is_wrapped: bool) -> dict:
        config = usual(self, is_wrapped)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    PrecisionStrategy.get_ds_train_config = without_persistence


@contextmanager
def learner_alone(folder: Path, *arguments: str):
    """A learner without a sampler, in as many processes as there are; closed at the end."""
    gathered = "--gathered" in arguments
    arguments = [word for word in arguments if word != "--gathered"]
    config = parse(
        ["--rollout-batch-size=8", "--train-batch-size=16", "--max-steps=5", "--lr-scheduler=constant",
         "--lr-warmup-ratio=0", "--learning-rate=1e-4", "--objective=grpo-token-tis", "--eval-steps=0",
         f"--output-dir={folder}", *arguments]
    )  # fmt: skip
    task, prompts, _ = train.load_task(config)
    train.prepare(config)
    from actors.processes import Processes
    from learners.options.oat_args import to_oat_args
    from learners.options.precision import Precision
    from learners.policy_learner import PolicyLearner
    from learners.record.run_log import NoLog

    if gathered:
        gather_every_parameter()
    launch = Launch.from_environment()
    learner = PolicyLearner(
        config, to_oat_args(config), Precision.of(config.precision), prompts, [], NoLog(folder),
        Processes(launch.rank, launch.world_size),
    )  # fmt: skip
    yield learner
    learner.engine.destroy()
    task.close()


def leave() -> None:
    """Part from the other processes, as train.py does at its end: a process that ends with the group's threads still
    running may be aborted for it."""
    from actors import runtime

    runtime.leave_process_group()


def five_updates(learner, to: str) -> None:
    from learners.model.weights import master
    from learners.rollouts.step import Step

    learner.learn(Step(1, fixed_batch(), times={}))  # four updates
    more = fixed_batch()
    learner.learn(Step(2, more.select(torch.arange(16)), times={}))
    assert learner.policy_sgd_step == 5
    masters = {name: master(p).detach().clone().contiguous() for name, p in learner.causal_lm.named_parameters()}
    if learner.processes.rank == 0:
        save_file(masters, to)


def command_lines(words: list[str]) -> list[list[str]]:
    """Those that the words are, with a + between them: what loads the engines once for all."""
    return [list(line) for is_end, line in itertools.groupby(words, lambda word: word == "+") if not is_end]


if __name__ == "__main__":
    for where, stages, *rest in command_lines(sys.argv[1:]):
        for each in stages.split(","):
            with learner_alone(Path(f"{where}-run"), f"--zero-stage={each}", "--dtype=fp32", *rest) as built:
                five_updates(built, f"{where}-{each}.safetensors")
    leave()
