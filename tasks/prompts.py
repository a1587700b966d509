"""From a task's examples to the prompts of each step."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.errors import UsageError
from tasks.task import Example
from tasks.templates import Template


@dataclass(frozen=True)
class Prompt:
    """A question ready to be sampled from."""

    question: str
    reference: str
    token_ids: list[int]


def load_tokenizer(model_path: str, trust_remote_code: bool = False):
    """The model's tokenizer, by the quick road (no torch) where the folder has a tokenizer.json.

    Raises:
        UsageError: the model has none that loads.
    """
    try:
        if (Path(model_path) / "tokenizer.json").exists():
            from transformers import PreTrainedTokenizerFast

            tokenizer = PreTrainedTokenizerFast.from_pretrained(model_path)
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"--model {model_path} has no tokenizer that loads ({reason}).") from error
    if tokenizer.eos_token_id is None:
        raise UsageError(f"--model {model_path}: its tokenizer has no end-of-sequence token, so no response could end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build_prompts(examples: list[Example], template: Template, tokenizer, max_length: int) -> tuple[list[Prompt], int]:
    """Render and tokenize examples, dropping prompts of more than ``max_length`` tokens.

    Returns:
        The prompts that are left, in order, and how many were dropped.

    Raises:
        UsageError: the template needs a chat template that the tokenizer lacks, or every prompt is too long.
    """
    if template.apply is None and not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "The model's tokenizer has no chat template; choose a --prompt-template, such as qwen_math or no."
        )
    rendered = [Prompt(e.question, e.answer, template.render(e.question, tokenizer)) for e in examples]
    kept = [prompt for prompt in rendered if 0 < len(prompt.token_ids) <= max_length]
    if examples and not kept:
        shortest = min(len(prompt.token_ids) for prompt in rendered)
        raise UsageError(
            f"Every prompt exceeds --prompt-max-length {max_length} (the shortest has {shortest} tokens); raise it."
        )
    return kept, len(rendered) - len(kept)


class PromptStream:
    """Which prompts come when: shuffled anew in every epoch, a function of (seed, position) and nothing else.

    An epoch's last prompts that do not fill a batch are left for the next epoch's shuffle, as in Oat (``drop_last``).

    Args:
        prompts: all of them.
        batch_size: prompts per step, over all processes.
        seed: of the order.

    Raises:
        UsageError: fewer prompts than one batch.
    """

    def __init__(self, prompts: list[Prompt], batch_size: int, seed: int):
        if len(prompts) < batch_size:
            raise UsageError(
                f"There are {len(prompts)} training prompts, fewer than --rollout-batch-size {batch_size}; lower it."
            )
        self.prompts, self.batch_size, self.seed = prompts, batch_size, seed
        self.steps_per_epoch = len(prompts) // batch_size

    def batch(self, step: int) -> list[Prompt]:
        """The prompts of step 1, 2, ..."""
        return self.take((step - 1) * self.batch_size, self.batch_size)

    def take(self, position: int, count: int) -> list[Prompt]:
        """``count`` prompts, the first ``position`` of all epochs left behind."""
        taken, epoch_length = [], self.steps_per_epoch * self.batch_size
        while count > 0:
            epoch, start = divmod(position, epoch_length)
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.prompts))
            part = order[start : min(start + count, epoch_length)]
            taken += [self.prompts[i] for i in part]
            position, count = position + len(part), count - len(part)
        return taken
