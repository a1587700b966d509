"""Advantages: how much better a response is than the others sampled for the same prompt, chosen by name.

Each is a pure function ``(rewards (B,), group_size) -> (B,)`` in FP32; the responses of a prompt lie next to each
other, and ``group_size`` divides B. A group whose rewards are all equal gets exactly 0 throughout. Only tensor methods
are used, so that naming them does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def group_mean(rewards: Tensor, group_size: int) -> Tensor:
    """Reward less the mean of its group, not divided by the group's spread (Dr.GRPO, arXiv 2503.20783)."""
    groups = rewards.view(-1, group_size)
    # The mean of equal numbers is not always that number once it is rounded; divided by a spread it would be noise.
    differ = (groups != groups[:, :1]).any(1, keepdim=True)
    return (groups - groups.mean(1, keepdim=True)).where(differ, groups.new_zeros(())).flatten()


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    """Reward less the mean of the others in its group (RLOO, arXiv 2402.14740): `group_mean` times G / (G - 1)."""
    return group_mean(rewards, group_size) * (group_size / (group_size - 1))


def group_std(rewards: Tensor, group_size: int) -> Tensor:
    """Reward less the mean of its group, divided by the group's (unbiased) standard deviation + 1e-8 (GRPO,
    arXiv 2402.03300)."""
    spread = rewards.view(-1, group_size).std(1, keepdim=True)
    return (group_mean(rewards, group_size).view(-1, group_size) / (spread + 1e-8)).flatten()


def overlong_punishment(lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    """DAPO's soft punishment of long responses (arXiv 2503.14476, eq. 13): 0 up to ``max_length - buffer`` tokens, then
    falling linearly to -1 at ``max_length``; a buffer of 0 punishes nothing. Of (B,) lengths in tokens (B,) FP32, to be
    added to the reward."""
    if not buffer:
        return lengths.new_zeros(lengths.shape).float()
    return ((max_length - buffer - lengths) / buffer).float().clamp(-1.0, 0.0)


ADVANTAGES = {"group-mean": group_mean, "leave-one-out": leave_one_out, "group-std": group_std}
