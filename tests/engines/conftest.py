"""What the end-to-end tests share."""

from contextlib import contextmanager

import train
from learners.config import parse


@contextmanager
def built_learner(folder, *arguments: str):
    """A learner with its actor, both real engines in this process, on the embedded model; closed at the end."""
    config = parse([*arguments, f"--output-dir={folder}", "--wandb=disabled"])
    task, prompts, eval_prompts = train.load_task(config)
    train.prepare(config)
    from learners.run_log import RunLog, default_folder

    learner = train.build(config, task, prompts, eval_prompts, RunLog(config, default_folder(config)))
    yield learner
    learner.close()
    task.close()
