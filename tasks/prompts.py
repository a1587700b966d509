"""From a task's examples to the prompts of each step."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.errors import UsageError, first_line
from tasks.mixture import epoch_counts
from tasks.task import Example
from tasks.templates import Template


@dataclass(frozen=True)
class Prompt:
    """A question ready to be sampled from."""

    question: str
    reference: str
    token_ids: list[int]
    source: int = 0
    """which dataset of a mixture it is from"""
    weight: float | None = None
    """of that dataset, see `Example`"""


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
        raise UsageError(f"--model {model_path} has no tokenizer that loads ({first_line(error)}).") from error
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
    if template.text is None and not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "The model's tokenizer has no chat template; choose a --prompt-template, such as qwen_math or no."
        )
    rendered = [
        Prompt(e.question, e.answer, template.render(e.question, tokenizer), e.source, e.weight) for e in examples
    ]
    kept = [prompt for prompt in rendered if 0 < len(prompt.token_ids) <= max_length]
    if examples and not kept:
        shortest = min(len(prompt.token_ids) for prompt in rendered)
        raise UsageError(
            f"Every prompt exceeds --prompt-max-length {max_length} (the shortest has {shortest} tokens); raise it."
        )
    return kept, len(rendered) - len(kept)


class PromptStream:
    """Which prompts come when: shuffled anew in every epoch, a function of (seed, position) and nothing else.

    No epoch has a prompt twice. Its last prompts that do not fill a batch are left for the next epoch's shuffle, as in
    Oat (``drop_last``). Where datasets are mixed by weight, each epoch draws from each its share of an epoch, anew, and
    has as many prompts as the dataset that is scarcest for its weight allows.

    Args:
        prompts: all of them.
        batch_size: prompts per step, over all processes.
        seed: of the order.

    Raises:
        UsageError: fewer prompts in an epoch than one batch.
    """

    def __init__(self, prompts: list[Prompt], batch_size: int, seed: int):
        self.prompts, self.batch_size, self.seed = prompts, batch_size, seed
        self._drawn = _drawn_from_each_source(prompts)
        size = sum(count for _, count in self._drawn)
        if size < batch_size:
            raise UsageError(
                f"There are {size} training prompts, fewer than --rollout-batch-size {batch_size}; lower it."
            )
        self.steps_per_epoch = size // batch_size

    def batch(self, step: int) -> list[Prompt]:
        """The prompts of step 1, 2, ..."""
        return self.take((step - 1) * self.batch_size, self.batch_size)

    def take(self, position: int, count: int) -> list[Prompt]:
        """``count`` prompts, the first ``position`` of all epochs left behind."""
        taken, epoch_length = [], self.steps_per_epoch * self.batch_size
        while count > 0:
            epoch, start = divmod(position, epoch_length)
            order = self._order(epoch)
            part = order[start : min(start + count, epoch_length)]
            taken += [self.prompts[i] for i in part]
            position, count = position + len(part), count - len(part)
        return taken

    def _order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        if len(self._drawn) == 1:
            return rng.permutation(len(self.prompts))
        return rng.permutation(np.concatenate([rng.permutation(indices)[:count] for indices, count in self._drawn]))


def _drawn_from_each_source(prompts: list[Prompt]) -> list[tuple[np.ndarray, int]]:
    """Indices of the prompts to draw from, and how many of them an epoch takes; one entry where nothing is weighted."""
    sources: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        sources.setdefault(0 if prompt.weight is None else prompt.source, []).append(index)
    if len(sources) <= 1:
        return [(np.arange(len(prompts)), len(prompts))]
    indices = [np.array(found) for found in sources.values()]
    counts = epoch_counts(list(map(len, indices)), [prompts[found[0]].weight for found in indices])
    return list(zip(indices, counts, strict=True))
