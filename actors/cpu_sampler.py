"""vLLM's sampler for CPUs, with draws for a whole batch at once and log-probabilities whose normaliser has no bias.

Draws: vLLM asks each request's generator for a number in turn at every token, a tenth of the sampling time of a small
model. Here the number is a hash of the request's seed and of how many it has drawn, computed for all requests
together; the draw itself stays vLLM's kernel. What a request is answered depends, as before, on its seed and on nothing
else in the batch. On a GPU vLLM's own sampler does the same.

Log-probabilities: vLLM takes torch's log_softmax, whose float32 sum on a CPU comes out too small, by more the larger
the vocabulary, so that every log mu is too large and the mismatch has a part that no engine made. `log_probs` sums as
the trainer does.
"""

import numpy as np
import torch

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step and its two multipliers (Steele, Lea, Flood, OOPSLA 2014)
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def split_mix_64(seeds: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The ``counts``-th number, from 0, of SplitMix64 for each of ``seeds``; both (B,) uint64, as is what comes."""
    z = seeds + (counts + np.uint64(1)) * GOLDEN
    z = (z ^ (z >> np.uint64(30))) * MIX[0]
    z = (z ^ (z >> np.uint64(27))) * MIX[1]
    return z ^ (z >> np.uint64(31))


class Streams:
    """The streams of numbers of the requests in a batch."""

    def __init__(self):
        self._rows: list[torch.Generator] = []
        self._seeds = self._counts = np.zeros(0, dtype=np.uint64)

    def next(self, generators: list[torch.Generator]) -> torch.Tensor:
        """One number of every request: (B,) int64, from 0 to below 2^31.

        Args:
            generators: of the rows of the batch; only their seeds are read.
        """
        if generators != self._rows:  # by identity: requests came or went
            known = {id(row): count for row, count in zip(self._rows, self._counts, strict=True)}
            self._rows = generators
            self._seeds = np.array([row.initial_seed() for row in generators], dtype=np.uint64)
            self._counts = np.array([known.get(id(row), 0) for row in generators], dtype=np.uint64)
        drawn = split_mix_64(self._seeds, self._counts) >> np.uint64(33)
        self._counts = self._counts + np.uint64(1)
        return torch.from_numpy(drawn.astype(np.int64))


def install() -> None:
    """Have vLLM's CPU sampler draw so, where every request of a batch has a seed; before an engine is built."""
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    if not hasattr(TopKTopPSampler, "forward_cpu_in_turn"):
        TopKTopPSampler.forward_cpu_in_turn = TopKTopPSampler.forward_cpu
        TopKTopPSampler.forward_cpu = _forward_cpu


def log_probs(logits: torch.Tensor) -> torch.Tensor:
    """(B, V) logits, -inf where a token is filtered out -> (B, V) FP32 log-probabilities, as the trainer has them."""
    logits = logits.float()
    return logits - logits.logsumexp(dim=-1, keepdim=True)


def _forward_cpu(self, logits, generators, k, p):
    """See `TopKTopPSampler.forward_cpu`: (B, V) FP32 logits -> (B,) tokens, and what ``logprobs_mode`` asks for."""
    from vllm.v1.sample.ops import topk_topp_sampler as vllm_sampler

    logits = vllm_sampler.apply_top_k_top_p(logits, k, p)
    if len(generators) < len(logits) or self.use_fp64_gumbel:
        tokens, reported = self.forward_cpu_in_turn(logits, generators, None, None)
    else:
        if not hasattr(self, "streams"):
            self.streams = Streams()
        seeds = self.streams.next([generators[row] for row in range(len(logits))])
        tokens, reported = torch.ops._C.fused_gumbel_argmax(logits.float(), seeds), logits
    if self.logprobs_mode == "processed_logprobs":
        reported = log_probs(logits)
    return tokens, reported if self.logprobs_mode.startswith("processed") else None
