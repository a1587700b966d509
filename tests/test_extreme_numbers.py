"""Where numbers end: ratios beyond FP32, weights of nothing, log-probabilities that are none."""

from types import SimpleNamespace

import pytest
import torch

from learners.objectives import OBJECTIVES, PolicyBatch
from tasks.errors import NonFiniteError

MASK = torch.ones(1, 2, dtype=torch.bool)


def loss_and_gradient(name: str, logp: list[float], others: list[float], advantage: float):
    log_pi = torch.tensor([logp], requires_grad=True)
    other = torch.tensor([others])
    batch = PolicyBatch(log_pi, other, torch.tensor([advantage]), MASK, old_logp=other)
    loss, _ = OBJECTIVES[name](batch)
    loss.sum().backward()
    return loss.detach(), log_pi.grad


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_an_advantage_no_ratio_is_too_large(name):
    loss, gradient = loss_and_gradient(name, [-1.0, -2.0], [-150.0, -2.5], advantage=0.0)
    assert (loss == 0).all() and (gradient == 0).all()


@pytest.mark.parametrize("name", ["grpo", "grpo-bypass", "dppo-tv", "dppo-kl", "gspo", "gspo-bypass", "gmpo", "sapo"])
def test_what_is_clipped_has_a_finite_gradient_whatever_its_ratio(name):
    _, gradient = loss_and_gradient(name, [-1.0, -2.0], [-400.0, -2.0], advantage=1.0)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 0] == 0


@pytest.mark.parametrize("name", ["pg-seq-is", "pg-token-is"])
def test_an_infinite_weight_of_something_does_not_pass_for_a_number(name):
    loss, _ = loss_and_gradient(name, [-1.0, -2.0], [-150.0, -2.0], advantage=1.0)
    assert not torch.isfinite(loss).all()


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf")])
def test_a_mu_that_is_no_number_is_refused_by_prompt_and_position(bad):
    from actors import runtime

    runtime.prepare(set())
    from actors.math_actor import require_finite

    fine = SimpleNamespace(prompt="1 + 1 =", response_logprobs=[-0.1, -0.2])
    require_finite([fine])
    with pytest.raises(NonFiniteError, match=r"token 2 of a response to the prompt '2 \+ 2 ='"):
        require_finite([fine, SimpleNamespace(prompt="2 + 2 =", response_logprobs=[-0.1, bad, -0.3])])
