"""Many requests' streams of numbers at once, against one request at a time."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.cpu_sampler import Streams, split_mix_64


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
