"""Policies over so few tokens that every response can be enumerated, and expectations are sums."""

import itertools

import torch

from learners.objectives import OBJECTIVES, REJECTIONS, PolicyBatch


class ToyPolicies:
    """Three tokens, up to four steps, token 0 ends. pi has parameters, mu is another policy; both are enumerable."""

    def __init__(self, steps: int = 4, mu_equals_pi: bool = False):
        generator = torch.Generator().manual_seed(5)
        self.prefixes = [p for n in range(steps) for p in itertools.product((1, 2), repeat=n)]
        self.index = {prefix: i for i, prefix in enumerate(self.prefixes)}
        self.theta = torch.randn(len(self.prefixes), 3, generator=generator, dtype=torch.float64).requires_grad_()
        noise = 0.0 if mu_equals_pi else 0.4
        other = self.theta.detach() + noise * torch.randn(self.theta.shape, generator=generator, dtype=torch.float64)
        self.log_mu = other.log_softmax(1)
        self.sequences = []
        for n in range(1, steps + 1):
            for body in itertools.product((1, 2), repeat=n - 1):
                self.sequences += [(*body, 0)] if n < steps else [(*body, last) for last in range(3)]
        self.rewards = torch.rand(len(self.sequences), generator=generator, dtype=torch.float64)

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Which state each token of a sequence was sampled in, and which token it is, (sequences, steps)."""
        width = max(map(len, self.sequences))
        rows = [[self.index[s[:t]] for t in range(len(s))] for s in self.sequences]
        states = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return states, torch.tensor([list(s) + [0] * (width - len(s)) for s in self.sequences])

    def batch(self) -> PolicyBatch:
        """Every sequence once."""
        states, tokens = self.places()
        log_pi, width = self.theta.log_softmax(1), states.shape[1]
        mask = torch.tensor([[True] * len(s) + [False] * (width - len(s)) for s in self.sequences])
        return PolicyBatch(
            logp=log_pi[states, tokens],
            mu_logp=self.log_mu[states, tokens],
            advantages=self.rewards,
            mask=mask,
            old_logp=log_pi.detach()[states, tokens],
        )

    def probabilities(self, logp: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (logp * mask).sum(1).exp()

    def true_gradient(self) -> torch.Tensor:
        """Of J(pi) = sum over sequences of pi(sequence) x reward, by differentiating the sum itself."""
        batch = self.batch()
        value = (self.probabilities(batch.logp, batch.mask) * self.rewards).sum()
        return torch.autograd.grad(value, self.theta)[0]

    def gradient_of_sum(self, weights: torch.Tensor) -> torch.Tensor:
        """Of the sum of weight x reward x log pi, with weights of sequences, (N,), or of their tokens, (N, steps)."""
        batch = self.batch()
        weights = weights[:, None] if weights.dim() == 1 else weights
        value = (weights.detach() * self.rewards[:, None] * batch.logp * batch.mask).sum()
        return torch.autograd.grad(value, self.theta)[0]

    def keeps(self, reject: str, **thresholds: float) -> torch.Tensor:
        """(sequences, steps) bool: what a rejection leaves."""
        batch = self.batch()
        return REJECTIONS[reject](batch, **thresholds) & batch.mask

    def expected_gradient(self, name: str, keeps: torch.Tensor | None = None, **thresholds: float) -> torch.Tensor:
        """Expectation under mu of minus the objective's gradient: sum over sequences of mu(sequence) x gradient."""
        batch = self.batch()
        loss, _ = OBJECTIVES[name](batch, **thresholds)
        weight = self.probabilities(batch.mu_logp, batch.mask)
        expectation = (weight * (loss * (batch.mask if keeps is None else keeps)).sum(1)).sum()
        return -torch.autograd.grad(expectation, self.theta)[0]


def both_probabilities(toy: ToyPolicies) -> tuple[torch.Tensor, torch.Tensor]:
    """(pi, mu) of every sequence."""
    batch = toy.batch()
    return tuple(toy.probabilities(logp, batch.mask).detach() for logp in (batch.logp, batch.mu_logp))


def relative_error(gradient: torch.Tensor, truth: torch.Tensor) -> float:
    return ((gradient - truth).norm() / truth.norm()).item()
