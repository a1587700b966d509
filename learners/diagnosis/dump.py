"""A dump: sampled responses with both engines' log-probabilities, as flat arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

CLAIMS = (
    "sample_dtype", "train_dtype", "temperature", "top_p", "top_k", "min_p", "lora", "rollout_quantization",
)  # fmt: skip


@dataclass
class Dump:
    """N responses of T tokens in all; what was not written is None."""

    starts: np.ndarray
    """(N + 1,) int64: response i's tokens are [starts[i], starts[i + 1])"""
    response_ids: np.ndarray
    """(T,) int32"""
    log_mu: np.ndarray
    """(T,) float32, the sampler's; NaN and inf are kept as found"""
    log_pi: np.ndarray
    """(T,) float32, the trainer's"""
    log_pi_again: np.ndarray | None = None
    """(T,) float32, the trainer's second pass over the same tokens"""
    prompt_ids: Sequence[list[int]] | None = None
    reward: np.ndarray | None = None
    """(N,) float64; NaN where a row has none"""
    group: np.ndarray | None = None
    """(N,) int64, the same for responses to the same prompt"""
    step: np.ndarray | None = None
    """(N,) int64, of training; -1 where a row has none"""
    finished: np.ndarray | None = None
    """(N,) bool, False where a response was cut"""
    claims: dict = field(default_factory=dict)
    """what the user believes, by the names of `CLAIMS`; what is absent is unknown"""
    problems: list[str] = field(default_factory=list)
    """what had to be mended or dropped, with the numbers of the rows"""
    unequal: int = 0
    """rows that were dropped since their columns have unequal lengths"""

    def __len__(self) -> int:
        return len(self.starts) - 1
