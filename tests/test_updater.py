"""An update on one process and on several real ones against plain Python, with a policy that is a table of
log-probabilities and an engine that only adds gradients up. The real ones: tests/engines/test_processes.py."""

from types import SimpleNamespace

import pytest
import torch

from actors.processes import Processes, across_processes
from learners.command_line import parse
from learners.objectives.advantages import group_mean
from learners.rollouts.batch import RolloutBatch
from tasks.errors import NonFiniteError
from tests.engines.by_hand import slopes_by_hand
from tests.stand_ins import stand_ins
from tests.test_across_processes import on_processes
from tests.test_collecting import HEAVY

ROWS, GROUP, PROMPT, LONGEST = 8, 4, 2, 6


def draw(seed: int = 0) -> dict[str, torch.Tensor]:
    """Eight responses whose tokens are all different, so that the table has a place for each; one is left out."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LONGEST + 1, (ROWS,), generator=generator) + PROMPT
    lengths[0] = LONGEST + PROMPT
    ids = torch.arange(ROWS * (LONGEST + PROMPT), dtype=torch.int32).view(ROWS, -1)
    places = torch.arange(1, LONGEST + PROMPT)
    mask = (places >= PROMPT) & (places < lengths[:, None])
    rewards = torch.tensor([1.0, 0, 0, 1, 0.5, 0.5, 0.5, 0.5])
    logp = -torch.rand(ids.shape, generator=generator) - 0.1
    mu = (logp[:, 1:] + 0.3 * torch.randn(mask.shape, generator=generator)).clamp(max=-0.01)
    return {
        "input_ids": ids, "lengths": lengths, "response_mask": mask, "mu_logp": mu.where(mask, 0.0), "rewards": rewards,
        "kept": torch.arange(ROWS) != 3, "advantages": group_mean(rewards, GROUP),
    } | {"table": logp.flatten()}  # fmt: skip


class Table(torch.nn.Module):
    """log pi of a token, whatever stands before it."""

    def __init__(self, table):
        super().__init__()
        self.table, self.passes = torch.nn.Parameter(table.clone()), 0

    def forward(self, ids, lengths, mask):
        self.passes += 1
        return self.table[ids[:, 1:].long()][mask]


class Strategy:
    """DeepSpeed's part: gradients of the processes are averaged."""

    precision = SimpleNamespace(train=torch.float32)

    def __init__(self, world: int, skips: bool = False):
        self.world, self.skips = world, skips

    def backward(self, loss, model, _):
        (loss * self.world).backward()

    def optimizer_step(self, _, model, __):
        grad = model.model.table.grad
        self.gradient = across_processes(
            (torch.zeros_like(model.model.table) if grad is None else grad).detach(), "sum"
        )
        self.gradient = self.gradient / self.world
        return SimpleNamespace(skipped=self.skips, grad_norm=7.0, loss_scale=1.0)


with stand_ins(*HEAVY):
    from learners.update import updater


def update(rank: int, world: int, config, skips: bool = False, **changes) -> dict:
    """What an update makes on one of ``world`` processes."""
    drawn = draw() | changes
    table = drawn.pop("table")
    batch, model, strategy = updater.RolloutBatch(**drawn), SimpleNamespace(model=Table(table)), Strategy(world, skips)
    reference = Table(table - 0.2) if config.objective.beta else None
    tokenizer = SimpleNamespace(decode=lambda ids: f"ids {ids.tolist()}")
    made = updater.Updater(config, strategy, model, None, None, reference, Processes(rank, world), tokenizer)
    step = updater.Step(1, batch, {})
    made.evaluate_before(step)
    before = model.model.passes
    report = made.update(step, step.batch)
    return {
        "gradient": strategy.gradient.tolist(), "metrics": step.tally.result(), "before": before,
        "passes": model.model.passes, "skipped": report.skipped, "pi_old": made.needs_pi_old,
    }  # fmt: skip


def config_of(*words: str):
    return parse(["--rollout-batch-size=2", "--num-samples=4", "--train-batch-size=8", *words])


def by_hand(config) -> torch.Tensor:
    drawn = draw()
    logp = drawn.pop("table").view(ROWS, -1)[:, 1:]
    batch, longest = RolloutBatch(**drawn), config.sampling.generate_max_length
    slopes = slopes_by_hand(batch, logp, vars(config.objective), longest)
    return torch.nn.functional.pad(slopes, (1, 0)).flatten()


CASES = {
    "pg-seq-is": [], "all": ["--train-on-all=True"],
    "token mean": ["--objective=pg-token-tis", "--aggregation=token-mean-batch"],
    "sequence mean": ["--objective=grpo-seq-mis", "--aggregation=token-mean-sequence"],
    "rejections": ["--objective=grpo-token-tis", "--reject", "k3", "icepop", "veto", "--k3-cap=0.05",
                   "--icepop-high=1.3"],
    "left out": ["--reject", "m2po", "--m2-cap=0.02", "--aggregation=token-mean-batch"],
    "over their mean": ["--objective=pg-seq-tis", "--is-batch-normalize=True"],
    "tokens over their mean": ["--objective=icepop", "--is-batch-normalize=True", "--icepop-high=1.2"],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("world", "cut"), [(1, "--micro-batch-size=8"), (2, "--micro-batch-size=1"), (2, "--micro-batch-tokens=60")]
)
def test_the_gradient_is_that_of_the_formulas_on_any_number_of_processes(case, world, cut, tmp_path):
    config = config_of(cut, *CASES[case])
    expected, alone = by_hand(config), update(0, 1, config_of(*CASES[case]))
    for own in on_processes(world, lambda rank: update(rank, world, config), tmp_path):
        torch.testing.assert_close(torch.tensor(own["gradient"]).double(), expected, rtol=2e-4, atol=1e-7)
        same = {key for key in alone["metrics"] if key.startswith(("mismatch", "moment", "train/loss", "precision"))}
        assert {key: own["metrics"][key] for key in same} == pytest.approx(
            {key: alone["metrics"][key] for key in same}, rel=1e-4, abs=1e-7
        )
        assert own["metrics"]["precision/grad_norm"] == 7.0
    assert expected.abs().max() > 1e-4


def test_what_is_counted_and_how_often_the_policy_is_asked():
    plain = update(0, 1, config_of("--micro-batch-size=1"))
    metrics = plain["metrics"]
    assert metrics["train/trained_share"] == 3 / 8, "four have an advantage, one of them is left out"
    assert not plain["pi_old"] and plain["before"] == 0 and plain["passes"] == 8, "the others are measured, once"
    drawn = draw()
    difference = (drawn["table"].view(ROWS, -1)[:, 1:].exp() - drawn["mu_logp"].exp()).abs()[drawn["response_mask"]]
    assert metrics["mismatch/abs_prob_diff_mean"] == pytest.approx(difference.mean().item(), rel=1e-5)
    old = update(0, 1, config_of("--micro-batch-size=1", "--objective=grpo"))
    assert old["pi_old"] and old["before"] == 8 and old["passes"] == 8 + 3
    assert old["metrics"]["mismatch/abs_prob_diff_mean"] == pytest.approx(difference.mean().item(), rel=1e-5)
    assert old["metrics"]["objective/ratio"] == pytest.approx(1.0)
    every = update(0, 1, config_of("--micro-batch-size=1", "--train-on-all=True"))
    assert every["metrics"]["train/trained_share"] == 1.0 and every["passes"] == 8
    skipped = update(0, 1, config_of(), skips=True)
    assert skipped["skipped"] and "precision/grad_norm" not in skipped["metrics"]


def test_the_loss_is_the_sum_over_processes_and_beta_adds_the_divergence(tmp_path):
    drawn, config = draw(), config_of("--objective=reinforce", "--beta=0.5", "--micro-batch-size=1")
    logp, mask = drawn["table"].view(ROWS, -1)[:, 1:], drawn["response_mask"] & drawn["kept"][:, None]
    divergence = torch.expm1(torch.tensor(-0.2)) + 0.2  # k3 of a reference that is 0.2 lower everywhere
    loss = (-drawn["advantages"][:, None] * logp + 0.5 * divergence)[mask].sum() / (ROWS * 24)
    for own in on_processes(2, lambda rank: update(rank, 2, config), tmp_path):
        assert own["metrics"]["train/loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert own["metrics"]["objective/reference_kl"] == pytest.approx(divergence.item(), rel=1e-4)
        assert own["metrics"]["train/trained_share"] == 1.0, "a divergence is of all"


def test_a_number_that_is_none_ends_the_update_and_names_the_prompt():
    table = draw()["table"]
    table[(LONGEST + PROMPT) * 2 + PROMPT] = float("nan")  # the first response token of row 2
    with pytest.raises(
        NonFiniteError, match=r"a log-probability is not finite \(--dtype fp32, prompt 'ids \[16, 17\]'\)"
    ):
        update(0, 1, config_of("--micro-batch-size=8"), table=table)
    infinite = draw()["mu_logp"] - 200.0 * draw()["response_mask"]
    with pytest.raises(NonFiniteError, match="a loss is not finite"):
        update(0, 1, config_of("--micro-batch-size=8"), mu_logp=infinite)
