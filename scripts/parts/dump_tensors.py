"""Dumps that are tensors, as torch.save wrote them: dictionaries of padded batches, and slime's list of samples."""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from scripts.parts.dump import ASK, TYPES, Part, Ragged, as_type
from tasks.errors import UsageError, require


def read_torch(file: Path, form: str | None) -> list[Part]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that it refuses
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: whatever its bytes lead the restricted unpickler to
        raise UsageError(
            f"{file} is a pickle of more than tensors and plain values, which could run anything when it is read, and "
            "is not; convert it where it was written, with the line that docs/dumps.md has for it."
        ) from error
    require(isinstance(found, Mapping), f"{file} holds a {type(found).__name__}; a dictionary is wanted ({ASK}).")
    for name, (known, reader) in TENSORS.items():
        if form == name or (form is None and known <= found.keys()):
            missing = known - found.keys()
            require(not missing, f"{file} has no {' and no '.join(sorted(missing))}; {ASK}.")
            return [reader(file, found)]
    keys = ", ".join(sorted(map(str, found))[:12])
    if found.keys() & {"rollout_log_probs", "rollout_logprobs", "sampling_per_token_logps"}:
        raise UsageError(f"{file} has the sampler's log-probabilities and not the trainer's (it has: {keys}); {ASK}.")
    raise UsageError(f"{file} holds tensors in no form that is known (it has: {keys}); {ASK}.")


def _padded(file: Path, found: Mapping, names: Mapping[str, str], mask: torch.Tensor) -> Part:
    """Columns of (N, R) tensors, of which ``mask`` says what a policy sampled."""
    rows, sampled = len(mask), mask.bool()
    part = Part(file, {}, np.arange(1, rows + 1))
    lengths = sampled.sum(1).numpy()
    for ours, theirs in names.items():
        tensor = found[theirs]
        is_one = isinstance(tensor, torch.Tensor) and not tensor.is_nested and not tensor.is_complex()
        is_one = is_one and tensor.shape == mask.shape
        require(is_one, f"{file}: {theirs} is no tensor of {rows} rows of {mask.shape[1]}, as the mask is.")
        values = tensor[sampled].float() if ours.startswith("log") else tensor[sampled]  # numpy knows no bfloat16
        part.columns[ours] = Ragged(lengths, as_type(values.numpy(), TYPES.get(ours, np.float32)))
    number = re.search(r"(?:^|step[_-]?)(\d+)", file.stem)
    if number:
        part.columns["step"] = np.full(rows, int(number[1]))
    return part


def _rows_of(ids: torch.Tensor, mask: torch.Tensor) -> Ragged:
    return Ragged(mask.bool().sum(1).numpy(), as_type(ids[mask.bool()].numpy(), np.int32))


def _tensor(file: Path, found: Mapping, name: str) -> torch.Tensor:
    tensor = found[name]
    is_one = isinstance(tensor, torch.Tensor) and not tensor.is_nested and tensor.dim() == 2
    require(is_one, f"{file}: {name} is no padded tensor of responses; {ASK}.")
    return tensor


def _add_rewards(part: Part, found: Mapping, *names: str) -> None:
    for name in names:
        scores = found.get(name)
        if isinstance(scores, torch.Tensor) and not scores.is_complex() and len(scores) == len(part.rows):
            scores = scores.double()
            part.columns["reward"] = (scores.sum(1) if scores.dim() == 2 else scores).numpy()
            return


def _add_groups(part: Part, found: Mapping, name: str) -> None:
    labels = found.get(name)
    if isinstance(labels, list | tuple) and len(labels) == len(part.rows):
        part.add("group", list(labels))


def _verl(file: Path, found: Mapping) -> Part:
    """`dict(batch.batch)` of a DataProto after old_log_probs were computed."""
    names = {"response_ids": "responses", "log_mu": "rollout_log_probs", "log_pi": "old_log_probs"}
    part = _padded(file, found, names, _tensor(file, found, "response_mask"))
    if "prompts" in found and "attention_mask" in found:
        prompts = _tensor(file, found, "prompts")
        part.columns["prompt_ids"] = _rows_of(prompts, found["attention_mask"][:, : prompts.shape[1]])
    _add_rewards(part, found, "token_level_scores", "rm_scores")
    _add_groups(part, found, "uid")
    return part


def _skyrl(file: Path, found: Mapping) -> Part:
    """A TrainingInputBatch as a dictionary: responses stand at the right end of what they are part of. Rewards and
    prompts' labels are taken out of it before it is dumped."""
    mask, ids = _tensor(file, found, "loss_mask"), _tensor(file, found, "sequences")
    width = mask.shape[1]
    names = {"response_ids": "sequences", "log_mu": "rollout_logprobs", "log_pi": "action_log_probs"}
    part = _padded(file, {**found, "sequences": ids[:, -width:]}, names, mask)
    if "attention_mask" in found and "response_mask" in found:
        prompt = _tensor(file, found, "attention_mask").bool().clone()
        prompt[:, -width:] &= ~_tensor(file, found, "response_mask").bool()
        part.columns["prompt_ids"] = _rows_of(ids, prompt)
    return part


def _trl(file: Path, found: Mapping) -> Part:
    """What GRPOTrainer's _generate_and_score_completions returns."""
    mask = _tensor(file, found, "completion_mask")
    if isinstance(found.get("tool_mask"), torch.Tensor):
        mask = mask * found["tool_mask"]
    names = {"response_ids": "completion_ids", "log_mu": "sampling_per_token_logps", "log_pi": "old_per_token_logps"}
    part = _padded(file, found, names, mask)
    if "prompt_ids" in found and "prompt_mask" in found:
        part.columns["prompt_ids"] = _rows_of(found["prompt_ids"], found["prompt_mask"])
    return part


def _slime(file: Path, found: Mapping) -> Part:
    """--save-debug-train-data: a dictionary a sample, with tensors of its response."""
    samples = found["samples"]
    require(bool(samples) and isinstance(samples[0], Mapping), f"{file} holds no samples; leave it out.")
    missing = [name for name in ("tokens", "rollout_log_probs", "log_probs") if samples[0].get(name) is None]
    require(
        not missing,
        f"{file} is slime's, without {' and '.join(missing)}; give what --save-debug-train-data wrote, of a run whose "
        "rollouts have log-probabilities.",
    )
    lists: dict[str, list] = {"prompt_ids": [], "response_ids": [], "log_mu": [], "log_pi": [], "mask": []}
    for sample in samples:
        log_pi, ids = np.asarray(sample["log_probs"], np.float32), np.asarray(sample["tokens"])
        length = len(log_pi)
        lists["log_pi"].append(log_pi)
        lists["log_mu"].append(np.asarray(sample["rollout_log_probs"], np.float32))
        lists["response_ids"].append(as_type(ids[len(ids) - length :], np.int32))
        lists["prompt_ids"].append(as_type(ids[: len(ids) - length], np.int32))
        mask = sample.get("loss_masks")
        lists["mask"].append(np.ones(length, bool) if mask is None else np.asarray(mask).astype(bool))
    part = Part(file, {ours: Ragged.of(arrays) for ours, arrays in lists.items()}, np.arange(1, len(samples) + 1))
    rewards = found.get("raw_reward") or [sample.get("rewards") for sample in samples]
    if len(rewards) == len(samples) and all(isinstance(reward, int | float) for reward in rewards):
        part.add("reward", list(rewards))
    if all(sample.get("truncated") is not None for sample in samples):
        part.columns["finished"] = np.array([not sample["truncated"] for sample in samples])
    if isinstance(found.get("rollout_id"), int):
        part.columns["step"] = np.full(len(samples), found["rollout_id"])
    return part


# Which keys tell a framework's dictionary, and its reader.
TENSORS: dict[str, tuple[set[str], Callable[[Path, Mapping], Part]]] = {
    "slime": ({"samples"}, _slime),
    "verl": ({"responses", "response_mask", "rollout_log_probs", "old_log_probs"}, _verl),
    "skyrl": ({"sequences", "loss_mask", "rollout_logprobs", "action_log_probs"}, _skyrl),
    "trl": ({"completion_ids", "completion_mask", "sampling_per_token_logps", "old_per_token_logps"}, _trl),
}
