"""The options of sampling during training, a group of `--help`; those of sampling alone are in actors/offline.py."""

from dataclasses import dataclass
from typing import Literal

from tasks.options import Chosen


@dataclass
class SamplingOptions:
    """The actor: how vLLM samples."""

    rollout_batch_size: int = 64
    """prompts per step, over all processes"""
    num_samples: int = 8
    """responses per prompt: the group that the advantage is computed in"""
    generate_max_length: Chosen[int] = None
    """a response is cut here, and then earns 0; tokens (embedded model: 24, else 8192)"""
    temperature: float = 1.0
    """of the sampled distribution; pi is evaluated at the same temperature"""
    vllm_gpu_ratio: float = 0.35
    """share of a GPU's memory that vLLM takes"""
    vllm_sleep_level: Chosen[Literal[0, 1, 2]] = None
    """while the learner works vLLM drops its cache and (1) moves its weights to the host or (2) drops them (default: 2
    for a real model on a GPU, 1 with --lora-sync adapter; else 0, never sleep)"""
    tensor_parallel: int = 1
    """processes that share one vLLM engine; they must be on one machine"""
    enforce_eager: bool = False
    """run vLLM without compilation and CUDA graphs (on a CPU it always does)"""
    enable_prefix_caching: bool = False
    """share the cache of common prompt prefixes; it is emptied at every synchronisation"""
    ignore_no_eos: bool = False
    """leave truncated responses out of the loss instead of training on reward 0"""
    dynamic_sampling: bool = False
    """drop prompts whose responses all earn the same and sample further ones until the batch is full (DAPO)"""
    max_sampling_rounds: Chosen[int] = None
    """dynamic sampling only: at most so many rounds a step; dropped prompts then fill the batch (default 10)"""
    overlong_buffer: int = 0
    """of the last so many tokens of generate_max_length each costs 1/so many of reward (DAPO); tokens, 0 is off"""
