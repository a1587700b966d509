"""A policy whose sequences can all be enumerated, and a sampler beside it that rounds: the toy of correction_table.py.

pi is a Markov chain over three tokens: its logits depend on the last token (or on there being none), twelve parameters
in all. mu is pi with noise on its logits that is fixed for each context, as rounding is: the context is one of 16
prompts and the whole prefix, whose hash picks one of 65,536 vectors of normal noise. Sequences have a fixed length T; a
response's return is the sum of its tokens' rewards over sqrt(T), so that its spread does not grow, and its advantage
the return less J(pi). J and its gradient are exact at any length, by dynamic programming.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from learners.objectives import PolicyBatch

VOCABULARY = 3
PROMPTS = 16  # pi is the same after each of them, the noise is not
NOISE_VECTORS = 2**16
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits without order: the upper bits of a product hash the lower


@dataclass
class Sequences:
    """Responses of one length with both log-probabilities: all of them, each with its probability, or a sample."""

    cells: np.ndarray
    """(N, T): 3 x context + token, an index into the flattened parameters"""
    mu_logp: np.ndarray
    """(N, T), log mu"""
    probability: np.ndarray
    """(N,), under mu; 1 / N each for a sample"""
    is_sample: bool

    def prefixes(self, length: int) -> "Sequences":
        """A sample's first tokens: a sample of that length."""
        return Sequences(self.cells[:, :length], self.mu_logp[:, :length], self.probability, self.is_sample)


class ToyPolicy:
    """pi and mu.

    Args:
        noise: standard deviation of mu's logits about pi's; 0 is a sampler without mismatch.
        seed: of the parameters, the rewards and the noise.
    """

    def __init__(self, noise: float, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.log_pi = log_softmax(rng.normal(0, 1.5, (VOCABULARY + 1, VOCABULARY)))
        self.rewards = rng.normal(0, 1, (VOCABULARY + 1, VOCABULARY))
        self.noise = noise
        self._vectors = rng.standard_normal((NOISE_VECTORS, VOCABULARY))

    def enumerate(self, length: int) -> Sequences:
        """All 3^length sequences after every prompt."""
        tokens = np.array(list(itertools.product(range(VOCABULARY), repeat=length))).repeat(PROMPTS, 0)
        cells, mu_logp = self._roll(len(tokens), length, lambda step, log_mu: tokens[:, step])
        return Sequences(cells, mu_logp, np.exp(mu_logp.sum(1)) / PROMPTS, is_sample=False)

    def sample(self, count: int, length: int, seed: int) -> Sequences:
        """``count`` sequences drawn from mu, the prompts in turn."""
        rng = np.random.default_rng(seed)

        def draw(step: int, log_mu: np.ndarray) -> np.ndarray:
            return (rng.random((count, 1)) > np.exp(log_mu[:, :-1]).cumsum(1)).sum(1)

        return Sequences(*self._roll(count, length, draw), np.full(count, 1 / count), is_sample=True)

    def _roll(self, count: int, length: int, choose: Callable) -> tuple[np.ndarray, np.ndarray]:
        """(cells, log mu), (count, length) each, of the tokens that ``choose`` names step by step."""
        cells, mu_logp = np.empty((count, length), np.int64), np.empty((count, length))
        last = np.full(count, VOCABULARY)
        prefix = (np.arange(count, dtype=np.uint64) % np.uint64(PROMPTS) + np.uint64(1)) * MULTIPLIER
        for step in range(length):
            noise = self.noise * self._vectors[prefix >> np.uint64(48)]
            log_mu = log_softmax(self.log_pi[last] + noise) if self.noise else self.log_pi[last]
            token = choose(step, log_mu)
            cells[:, step], mu_logp[:, step] = VOCABULARY * last + token, log_mu[np.arange(count), token]
            last, prefix = token, (prefix + token.astype(np.uint64) + np.uint64(1)) * MULTIPLIER
        return cells, mu_logp

    def batch(self, sequences: Sequences) -> PolicyBatch:
        """What an objective sees, in FP64; pi_old is pi, as at a step's first update."""
        cells = sequences.cells
        logp = torch.from_numpy(self.log_pi.ravel()[cells])
        returns = self.rewards.ravel()[cells].sum(1) / cells.shape[1] ** 0.5
        return PolicyBatch(
            logp=logp,
            mu_logp=torch.from_numpy(sequences.mu_logp),
            advantages=torch.from_numpy(returns - self.value_and_gradient(cells.shape[1])[0]),
            mask=torch.ones(cells.shape, dtype=torch.bool),
            old_logp=logp,
        )

    def gradients(self, cells: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """(N, 12): sum over a response's tokens of slope x gradient of log pi by the parameters; both (N, T)."""
        places = cells + self.log_pi.size * np.arange(len(cells))[:, None]
        pushed = np.bincount(places.ravel(), slopes.ravel(), len(cells) * self.log_pi.size)
        pushed = pushed.reshape(-1, *self.log_pi.shape)
        return (pushed - pushed.sum(2, keepdims=True) * np.exp(self.log_pi)).reshape(len(cells), -1)

    def value_and_gradient(self, length: int) -> tuple[float, np.ndarray]:
        """J(pi), a response's mean return, and its exact gradient, (12,), by the policy gradient theorem."""
        pi, at = np.exp(self.log_pi), np.zeros(VOCABULARY + 1)
        at[VOCABULARY] = 1.0
        visits = [at]  # probability of each context, step by step
        for _ in range(length - 1):
            visits.append(np.append(visits[-1] @ pi, 0.0))
        values, gradient = np.zeros(VOCABULARY), np.zeros_like(pi)  # of what is still to come, by the last token
        for at in reversed(visits):
            action_values = self.rewards + values
            state_values = (pi * action_values).sum(1)
            gradient += at[:, None] * pi * (action_values - state_values[:, None])
            values = state_values[:VOCABULARY]
        return state_values[VOCABULARY] / length**0.5, gradient.ravel() / length**0.5


def calibrated(k3: float, seed: int = 0) -> ToyPolicy:
    """The toy whose KL(mu, pi) of a token, the mean of w - 1 - log w over 256 sequences of 512 tokens, is ``k3``."""
    toy = ToyPolicy(k3**0.5, seed)
    for _ in range(6):
        batch = toy.batch(toy.sample(256, 512, seed))
        log_weight = batch.logp - batch.mu_logp
        toy.noise *= (k3 / (log_weight.expm1() - log_weight).mean().item()) ** 0.5
    return toy


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
