"""A sample of whole responses, token by token, which the statistics are made from."""

from dataclasses import dataclass

import numpy as np

MOST_TOKENS = 2**20  # beyond this a dump is sampled, in blocks, since the neighbours of a response share its prompt
BLOCK = 64  # responses
CERTAIN = 1e-3  # a token that one engine gives all but this says little about the gap
FAINT = 3e-5  # of 1 - p, what FP32 leaves of its logarithm to a few parts in a hundred


@dataclass
class Sample:
    """T tokens of R responses, those with finite log-probabilities; float64 unless said otherwise."""

    x: np.ndarray
    """log mu"""
    y: np.ndarray
    """log pi"""
    ids: np.ndarray
    """int64"""
    row: np.ndarray
    """int64, which of the R responses"""
    place: np.ndarray
    """int64, from the response's first token"""
    back: np.ndarray
    """int64, from its last"""
    responses: np.ndarray
    """(R,) int64, indices into the dump"""
    again: np.ndarray | None
    """log pi of the second pass"""

    def __post_init__(self):
        self.g = self.y - self.x
        self.x_odds, self.y_odds = log_odds(self.x), log_odds(self.y)
        self.d = self.y_odds - self.x_odds
        """the gap in log odds: rounding noise in the logits gives it about the same size at every probability"""
        self.open = (self.x < -CERTAIN) & (self.y < -CERTAIN)
        """bool: neither engine was certain"""
        self.new = first_of_each(self.ids, self.x, self.y)
        """bool: not the same token with the same two numbers again, which would be the same noise counted twice"""

    def __len__(self) -> int:
        return len(self.x)


def draw(dump) -> Sample:
    """Whole responses of a dump, all of them if there are few."""
    starts = dump.starts
    responses = np.arange(len(starts) - 1)
    if starts[-1] > MOST_TOKENS:
        mean = starts[-1] / len(responses)
        blocks = max(1, int(MOST_TOKENS / mean / BLOCK))
        firsts = np.unique(np.linspace(0, max(len(responses) - BLOCK, 0), blocks).astype(np.int64))
        responses = np.unique((firsts[:, None] + np.arange(BLOCK)).ravel())
        responses = responses[responses < len(starts) - 1]
        kept = np.cumsum(np.diff(starts)[responses]) <= 2 * MOST_TOKENS
        responses = responses[kept | (np.arange(len(kept)) == 0)]
    lengths = np.diff(starts)[responses]
    row = np.repeat(np.arange(len(responses)), lengths)
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    tokens = starts[responses][row] + place
    back = lengths[row] - 1 - place
    x, y = dump.log_mu[tokens].astype(float), dump.log_pi[tokens].astype(float)
    good = np.isfinite(x) & np.isfinite(y)
    again = None
    if dump.log_pi_again is not None:
        again = dump.log_pi_again[tokens].astype(float)[good]
    ids = dump.response_ids[tokens].astype(np.int64)
    return Sample(x[good], y[good], ids[good], row[good], place[good], back[good], responses, again)


def log_odds(log_p: np.ndarray) -> np.ndarray:
    """log p / (1 - p)."""
    log_p = np.minimum(log_p, -1e-9)
    return log_p - np.log(-np.expm1(log_p))


def first_of_each(ids: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(T,) bool: the first of every (token, log mu, log pi)."""
    key = mixed(ids.astype(np.uint64), x.astype(np.float32).view(np.uint32), y.astype(np.float32).view(np.uint32))
    flags = np.zeros(len(ids), bool)
    flags[np.unique(key, return_index=True)[1]] = True
    return flags


def mixed(*parts: np.ndarray) -> np.ndarray:
    """A hash of several columns of integers, uint64."""
    made = np.zeros(len(parts[0]), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            made = (made ^ part.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            made ^= made >> np.uint64(29)
    return made
