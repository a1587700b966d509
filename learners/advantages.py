"""Advantages: how much better a response is than the others sampled for the same prompt. Pure functions of tensors."""

from torch import Tensor


def group_mean(rewards: Tensor, group_size: int) -> Tensor:
    """Reward less the mean of its group, not divided by the group's spread (Dr.GRPO, arXiv 2503.20783).

    Args:
        rewards: (B,) FP32; the responses of a prompt lie next to each other.
        group_size: responses per prompt; divides B.

    Returns:
        (B,) FP32; 0 throughout a group whose rewards are equal. Equals the leave-one-out advantage times
        (group_size - 1) / group_size.
    """
    groups = rewards.view(-1, group_size)
    return (groups - groups.mean(1, keepdim=True)).flatten()
