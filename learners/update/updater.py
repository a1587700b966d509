"""One update: responses -> log pi -> the objective's loss -> gradient -> scaled optimiser step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from oat.model import LLM

from actors import runtime
from actors.processes import Processes, across_processes
from learners.aggregation import UpdateCounts, aggregate
from learners.objectives import OBJECTIVES, PolicyBatch, reference_kl
from learners.options.precision import NAMES
from learners.record.mismatch import measure
from learners.record.tally import Tally
from learners.rollouts.batch import RolloutBatch
from learners.rollouts.step import Step
from learners.update.micro_batches import deal, with_something_to_teach
from learners.update.strategy import PrecisionStrategy, StepReport
from tasks.errors import NonFiniteError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from learners.model.log_probs import TokenLogProbs
    from learners.options.config import Config


class Updater:
    """Computes with the policy on this process's share of a batch: log pi, the loss, an update.

    What an update consists of (which responses, when it is saved) is the learner's business.

    Args:
        config: resolved.
        strategy, model, optimizer, scheduler: as DeepSpeed has them.
        reference: the model that ``--beta`` ties the policy to, or None.
        processes: this one's place among those of the run.
        tokenizer: to name the prompt where something is not finite.
    """

    def __init__(
        self,
        config: Config,
        strategy: PrecisionStrategy,
        model: LLM,
        optimizer,
        scheduler,
        reference: TokenLogProbs | None,
        processes: Processes,
        tokenizer: PreTrainedTokenizerBase,
    ):
        self.config, self.strategy, self.processes, self.tokenizer = config, strategy, processes, tokenizer
        self.model, self.optimizer, self.scheduler, self.reference = model, optimizer, scheduler, reference
        self.objective = OBJECTIVES[config.objective.objective]
        self.thresholds = {name: getattr(config.objective, name) for name in self.objective.thresholds}

    def evaluate_before(self, step: Step) -> None:
        """What must be known at the rollout weights: pi_old if the objective needs it, the reference if there is one.

        Raises:
            NonFiniteError: a log-probability is not finite.
        """
        batch = step.batch
        if self.objective.needs_pi_old:
            batch.old_logp = self._without_gradient(batch, self.log_probs)
            measure(step.tally, batch.old_logp, batch.mu_logp, batch.response_mask)
            step.at_rollout_weights = False  # measured, so the first update need not
        if self.reference is not None:
            batch.reference_logp = self._without_gradient(batch, lambda part: self._log_probs_of(self.reference, part))

    def update(self, step: Step, batch: RolloutBatch) -> StepReport:
        """One optimiser update on the given responses, of which this process takes its share.

        Args:
            step: whose tally takes the statistics.
            batch: the responses of the update, on every process all of them.

        Raises:
            NonFiniteError: a log-probability or the loss is not finite, or the gradient at the smallest loss scale.
        """
        counts = UpdateCounts(
            sequences=len(batch),
            kept_sequences=batch.kept.sum().item(),
            kept_tokens=batch.response_mask[batch.kept].sum().item(),
            max_length=self.config.sampling.generate_max_length,
        )
        teaching, others = self._divide(batch)
        if step.at_rollout_weights:
            self._measure_without_gradient(others, step.tally)
        update_loss = 0.0
        for indices in self._deal(teaching):
            part = teaching.select(indices).to(runtime.device())
            logp = self.log_probs(part)
            if step.at_rollout_weights:
                measure(step.tally, logp, part.mu_logp, part.response_mask)
            losses = self._token_losses(logp, part, step.tally)
            loss = aggregate(losses, part.response_mask, part.kept, self.config.objective.aggregation, counts)
            self._require_finite(loss, part, "loss")
            self.strategy.backward(loss, self.model, self.optimizer)
            update_loss += loss.item()
        report = self.strategy.optimizer_step(self.optimizer, self.model, self.scheduler)
        # Counts are of the whole update: the parts of the processes are summed, the updates averaged.
        step.tally.add("train/loss", torch.tensor(update_loss), count=1 / self.processes.world_size)
        step.tally.add("train/trained_share", torch.tensor(float(len(teaching))), count=len(batch))
        if not report.skipped:
            step.tally.add("precision/grad_norm", torch.tensor(report.grad_norm))
        return report

    def log_probs(self, batch: RolloutBatch) -> torch.Tensor:
        """log pi of a batch's response tokens: (B, L - 1) FP32, 0 outside the response.

        Raises:
            NonFiniteError: one is not finite.
        """
        logp = self._log_probs_of(self.model.model, batch)
        self._require_finite(logp, batch, "log-probability")
        return logp

    def _log_probs_of(self, model, batch: RolloutBatch) -> torch.Tensor:
        chosen = model(batch.input_ids, batch.lengths, batch.response_mask)
        return torch.zeros_like(batch.mu_logp).masked_scatter(batch.response_mask, chosen)

    def _token_losses(self, logp: torch.Tensor, batch: RolloutBatch, tally: Tally) -> torch.Tensor:
        """(B, L - 1): the objective's loss, with what is added to it; its statistics go to the tally."""
        policy = PolicyBatch(logp, batch.mu_logp, batch.advantages, batch.response_mask, batch.old_logp)
        losses, statistics = self.objective(policy, **self.thresholds)
        if batch.reference_logp is not None:
            divergence = reference_kl(logp, batch.reference_logp, batch.response_mask)
            statistics["reference_kl"] = divergence.detach()
            losses = losses + self.config.objective.beta * divergence
        for name, values in statistics.items():
            per_token = values.shape == batch.response_mask.shape
            tally.add(f"objective/{name}", values[batch.response_mask] if per_token else values)
        return losses

    @torch.no_grad()
    def _without_gradient(self, batch: RolloutBatch, log_probs) -> torch.Tensor:
        """(B, L - 1): of all the responses, each evaluated on one process, in their order."""
        made = torch.zeros_like(batch.mu_logp)
        for indices in self._deal(batch):
            part = log_probs(batch.select(indices).to(runtime.device()))
            made[indices, : part.shape[1]] = part.to(made.device)
        return across_processes(made, "sum")

    def _divide(self, batch: RolloutBatch) -> tuple[RolloutBatch, RolloutBatch]:
        """The responses of an update that are passed backwards, and the others: without an advantage, or left out of
        the loss, every term of it is 0."""
        teaches = (batch.advantages != 0) & batch.kept
        if self.config.training.train_on_all or self.objective.trains_without_advantage or self.reference is not None:
            teaches = torch.ones_like(teaches)
        chosen = with_something_to_teach(teaches, batch.lengths, self.processes.world_size)
        others = torch.ones_like(teaches).index_fill_(0, chosen, False)
        return batch.select(chosen), batch.select(others.nonzero().flatten())

    @torch.no_grad()
    def _measure_without_gradient(self, batch: RolloutBatch, tally: Tally) -> None:
        for indices in self._deal(batch) if len(batch) else ():
            part = batch.select(indices).to(runtime.device())
            measure(tally, self.log_probs(part), part.mu_logp, part.response_mask)

    def _deal(self, batch: RolloutBatch) -> list[torch.Tensor]:
        """This process's micro-batches of a batch."""
        training = self.config.training
        dealt = deal(
            batch.lengths,
            self.processes.world_size,
            size=training.micro_batch_size,
            tokens=training.micro_batch_tokens,
        )
        return dealt[self.processes.rank]

    def _require_finite(self, values: torch.Tensor, batch: RolloutBatch, what: str) -> None:
        finite = torch.isfinite(values)
        if finite.all():
            return
        row = 0 if values.dim() == 0 else int((~finite).any(1).nonzero()[0])
        prompt = self.tokenizer.decode(batch.input_ids[row, : int(batch.response_mask[row].int().argmax()) + 1])
        raise NonFiniteError(
            f"a {what} is not finite (--dtype {NAMES[self.strategy.precision.train]}, prompt {prompt[:80]!r}). Loss "
            "scaling cannot mend this: activations or weights left the dtype's range; try --dtype bf16 or fp32, or a "
            "lower --learning-rate."
        )
