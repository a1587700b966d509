"""Many requests' streams of numbers at once, against one request at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors import cpu_sampler
from actors.cpu_sampler import Streams, log_probs, split_mix_64


def number(seed: int, count: int) -> int:
    """SplitMix64 as it is published, one step at a time, in Python's integers."""
    state = seed
    for _ in range(count + 1):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        z ^= z >> 31
    return z


def test_the_published_numbers():
    """The first three for seed 1234567, from the test vectors of the generator's reference."""
    counts = np.arange(3, dtype=np.uint64)
    assert split_mix_64(np.full(3, 1234567, dtype=np.uint64), counts).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 50)), min_size=1, max_size=8))
def test_all_at_once_is_each_alone(pairs):
    seeds, counts = (np.array(column, dtype=np.uint64) for column in zip(*pairs, strict=True))
    assert split_mix_64(seeds, counts).tolist() == [number(seed, count) for seed, count in pairs]


@given(st.data())
def test_a_request_gets_the_same_numbers_whoever_is_in_the_batch(data):
    """Requests end, others come, rows move; none of that moves a stream."""
    requests = [torch.Generator().manual_seed(1000 + i) for i in range(6)]
    streams, drawn = Streams(), {i: 0 for i in range(6)}
    present = list(range(6))
    for _ in range(data.draw(st.integers(1, 6))):
        batch = data.draw(st.permutations(present))
        for i, value in zip(batch, streams.next([requests[i] for i in batch]).tolist(), strict=True):
            assert value == number(1000 + i, drawn[i]) >> 33
            drawn[i] += 1
        present = batch[: data.draw(st.integers(1, len(batch)))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", [0.5, 3.0, 10.0])
def test_the_normaliser_has_no_bias(seed, spread):
    """Over a real model's vocabulary, against float64: errors average out, where log_softmax's can all have one sign.

    The seeds are fixed, since errors have tails: of 640 rows the worst was off by 1.1 spacings, their deviation is 0.4.
    """
    logits = torch.randn(16, 151_936, generator=torch.Generator().manual_seed(seed)) * spread
    exact = logits.double().log_softmax(1)
    spacing = torch.finfo(torch.float32).eps * 2 ** logits.logsumexp(1).max().log2().floor()
    error = (log_probs(logits).double() - exact).mean(1) / spacing
    assert error.abs().max() < 1.2, "half a spacing by rounding the normaliser, and its sum's own error"
    assert error.mean().abs() < 0.3
    if spread == 3.0:
        assert ((logits.log_softmax(1).double() - exact).mean(1) / spacing).min() > 1, "what this is here for"


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("mode", ["processed_logprobs", "processed_logits", "raw_logprobs"])
def test_what_the_sampler_reports(seeded, mode):
    """Of the tokens that top-k left, in both ways to draw; and nothing where the engine wants raw ones."""
    from vllm.platforms import current_platform
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    current_platform.import_kernels()
    cpu_sampler.install()
    sampler = TopKTopPSampler(mode)
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    kept = logits.topk(5, dim=1)
    generators = {row: torch.Generator().manual_seed(row) for row in range(4)} if seeded else {}
    tokens, reported = sampler.forward_cpu(logits.clone(), generators, torch.full((4,), 5), None)
    assert all(token in row for token, row in zip(tokens, kept.indices, strict=True))
    if mode == "raw_logprobs":
        assert reported is None
        return
    assert (reported > -torch.inf).sum(1).tolist() == [5] * 4
    expected = kept.values if mode == "processed_logits" else kept.values.double().log_softmax(1).float()
    torch.testing.assert_close(reported.gather(1, kept.indices), expected, rtol=0, atol=1e-6)
