"""One update: responses -> log pi -> the objective's loss -> gradient -> scaled optimiser step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from oat.model import LLM

from actors import runtime
from actors.processes import Processes, across_processes
from learners.diagnosis.watch import Watch
from learners.objectives import OBJECTIVES, REJECTIONS, PolicyBatch, reference_kl
from learners.objectives.aggregation import UpdateCounts, aggregate
from learners.objectives.weights import importance_weight, limits_of
from learners.options.precision import NAMES
from learners.record.mismatch import measure
from learners.record.rollout_log import claims_of
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
        model, optimizer, scheduler: as DeepSpeed has them.
        reference: the model that ``--beta`` ties the policy to, or None.
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
        options = config.objective
        self.objective = OBJECTIVES[options.objective]
        self.thresholds = {name: getattr(options, name) for name in self.objective.thresholds}
        self.rejections = [REJECTIONS[name] for name in options.reject]
        self.watch = Watch(claims_of(config))

    @property
    def needs_pi_old(self) -> bool:
        """Whether anything asks for pi_old, which costs one more forward pass a step."""
        weighs = self.config.objective.is_batch_normalize
        return weighs or self.objective.needs_pi_old or any(made.needs_pi_old for made in self.rejections)

    def evaluate_before(self, step: Step) -> None:
        """What must be known at the rollout weights: pi_old and what follows from it, if anything asks for it, and the
        reference if there is one.

        Raises:
            NonFiniteError: a log-probability is not finite.
        """
        batch = step.batch
        if self.needs_pi_old:
            batch.old_logp = self.without_gradient(batch, self.log_probs)
            self._measure(step, batch, batch.old_logp)
            step.at_rollout_weights = False  # measured, so the first update need not
            batch.loss_mask = self._reject(step, batch, batch.old_logp, stays_counted=False)
            if self.config.objective.is_batch_normalize:
                step.mean_weight = self._mean_weight(batch)
        if self.reference is not None:
            batch.reference_logp = self.without_gradient(batch, lambda part: self._log_probs_of(self.reference, part))

    def _reject(self, step: Step, batch: RolloutBatch, logp: torch.Tensor, *, stays_counted: bool) -> torch.Tensor:
        """The response tokens, (B, L - 1), that are left by those rejections that leave what they reject in the
        denominators, or by the others. The share that each rejects goes to the tally."""
        left = mask = batch.response_mask & batch.kept[:, None]
        for rejection in self.rejections:
            if rejection.stays_counted == stays_counted:
                chosen = {name: getattr(self.config.objective, name) for name in rejection.thresholds}
                log_pi = logp if rejection.sees_movement or batch.old_logp is None else batch.old_logp
                keeps = rejection(PolicyBatch(log_pi.detach(), batch.mu_logp, batch.advantages, mask), **chosen)
                judged = keeps[mask] if keeps.shape == mask.shape else keeps[batch.kept]
                step.tally.add(f"objective/rejected_{rejection.name.replace('-', '_')}", (~judged).double())
                left = left & keeps
        return left

    def _mean_weight(self, batch: RolloutBatch) -> float:
        """Of the step's importance weights pi_old / mu, as they are limited; over tokens, or over responses, rejected
        ones too (as verl's and slime's)."""
        level, mask = self.objective.weighs, batch.response_mask & batch.kept[:, None]
        policy = PolicyBatch(batch.old_logp, batch.mu_logp, batch.advantages, mask)
        log_weight = policy.log_ratio(batch.old_logp, batch.mu_logp, level)
        weight, _ = importance_weight(level, log_weight, **limits_of(self.thresholds))
        used = weight[mask] if level == "token" else weight[batch.kept]
        return float(used.double().mean()) if float(used.sum()) > 0 else 1.0

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
            kept_sequences=batch.in_loss.any(1).sum().item(),
            kept_tokens=batch.in_loss.sum().item(),
            max_length=self.config.sampling.generate_max_length,
        )
        teaching, others = self._divide(batch)
        if step.at_rollout_weights:
            self._measure_without_gradient(others, step)
        update_loss = 0.0
        for indices in self._deal(teaching):
            part = teaching.select(indices).to(runtime.device())
            logp = self.log_probs(part)
            if step.at_rollout_weights:
                self._measure(step, part, logp)
            losses = self._token_losses(logp, part, step)
            loss = aggregate(losses, part.in_loss, part.in_loss.any(1), self.config.objective.aggregation, counts)
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

    def _token_losses(self, logp: torch.Tensor, batch: RolloutBatch, step: Step) -> torch.Tensor:
        """(B, L - 1): the objective's loss, with what is added to it; its statistics go to the tally."""
        left = batch.in_loss & self._reject(step, batch, logp, stays_counted=True)
        responses = left.any(1)
        mask = batch.response_mask & responses[:, None]  # not of what is left out: an infinite weight times 0 is NaN
        policy = PolicyBatch(logp, batch.mu_logp, batch.advantages, mask, batch.old_logp)
        losses, statistics = self.objective(policy, **self.thresholds)
        losses = losses.where(left, losses.new_zeros(())) / step.mean_weight
        if batch.reference_logp is not None:
            divergence = reference_kl(logp, batch.reference_logp, batch.in_loss)
            step.tally.add("objective/reference_kl", divergence[batch.in_loss])
            losses = losses + self.config.objective.beta * divergence
        for name, values in statistics.items():
            step.tally.add(f"objective/{name}", values[left if values.shape == left.shape else responses])
        return losses

    @torch.no_grad()
    def without_gradient(self, batch: RolloutBatch, log_probs) -> torch.Tensor:
        """(B, L - 1): of all the responses, each evaluated on one process, in their order."""
        made = torch.zeros_like(batch.mu_logp)
        for indices in self._deal(batch):
            part = log_probs(batch.select(indices).to(runtime.device()))
            made[indices, : part.shape[1]] = part.to(made.device)
        return across_processes(made, "sum")

    def _divide(self, batch: RolloutBatch) -> tuple[RolloutBatch, RolloutBatch]:
        """The responses of an update that are passed backwards, and the others: without an advantage, or left out of
        the loss, every term of it is 0."""
        teaches = (batch.advantages != 0) & batch.in_loss.any(1)
        without = self.objective.trains_without_advantage(**self.thresholds) or self.reference is not None
        if self.config.training.train_on_all or without:
            teaches = torch.ones_like(teaches)
        chosen = with_something_to_teach(teaches, batch.lengths, self.processes.world_size)
        others = torch.ones_like(teaches).index_fill_(0, chosen, False)
        return batch.select(chosen), batch.select(others.nonzero().flatten())

    @torch.no_grad()
    def _measure_without_gradient(self, batch: RolloutBatch, step: Step) -> None:
        for indices in self._deal(batch) if len(batch) else ():
            part = batch.select(indices).to(runtime.device())
            self._measure(step, part, self.log_probs(part))

    def _measure(self, step: Step, batch: RolloutBatch, logp: torch.Tensor) -> None:
        """The mismatch of whole responses, and what the doctor is to see of them; log pi at the rollout weights."""
        measure(step.tally, logp, batch.mu_logp, batch.response_mask)
        if self.processes.rank == 0:
            self.watch.keep(step.number, batch, logp.detach())

    def _deal(self, batch: RolloutBatch) -> list[torch.Tensor]:
        """This process's micro-batches of a batch."""
        training, world_size = self.config.training, self.processes.world_size
        dealt = deal(batch.lengths, world_size, size=training.micro_batch_size, tokens=training.micro_batch_tokens)
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
