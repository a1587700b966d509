"""From the command line to a run's options: parsed, filled in from the preset and by the model, and checked.

Nothing heavy is imported unless memory decides. The options themselves: learners/options/config.py.
"""

import dataclasses
import sys
from typing import Annotated

import tyro

from actors.launch import Launch, is_first
from learners.model.config_file import check_model
from learners.options.checks import check
from learners.options.config import Config
from learners.options.presets import fill_in
from learners.record.output_checks import check_output


def parse(arguments: list[str] | None = None, launch: Launch | None = None) -> Config:
    """Turn a command line into a resolved, checked configuration.

    Hyphens and underscores, ``--flag value``, ``--flag=value`` and ``--flag False`` are all understood, which is what
    W&B sweeps send.

    Raises:
        SystemExit: with code 2 on an unknown option or value (printed by tyro), 0 after ``--help``.
        UsageError: options that contradict each other or that a later step would trip over.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    config = tyro.cli(
        Annotated[Config, tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff],
        args=arguments,
        prog="train.py",
        console_outputs=is_first(),
    )
    return complete(config, arguments, launch)


def complete(config: Config, arguments: list[str], launch: Launch | None = None) -> Config:
    """Fill in what the command line left out, from the preset and by the model, and check the whole.

    Args:
        config: as parsed.
        arguments: the words that it was parsed from; an option that they name is never overruled.
        launch: the processes of the run (default: what torchrun or srun started here).

    Raises:
        UsageError: as in `parse`.
    """
    if config.origin.preset is not None:
        named = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in arguments if word.startswith("--")}
        chosen = {name: getattr(*config.option(name)) for name in named if config.has(name)}
        for name, value in fill_in(config.origin.preset, chosen).items():
            setattr(*config.option(name), value)
    asked_for = dataclasses.asdict(config)
    config.resolve()
    launch = config.planned_launch() or launch or Launch.from_environment()
    check(config, asked_for, launch)
    check_output(config)
    check_model(config)
    if config.training.zero_stage is None:
        from learners.memory.advice import choose_stage

        config.training.zero_stage = choose_stage(config, launch)
    return config
