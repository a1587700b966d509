"""The learner: Oat's PPOLearner in one process with the actor.

Read `run` first: one step is sample -> learn -> synchronise, and everything it writes goes through the run's log.
"""

import time
from collections import deque

import deepspeed
import numpy as np
import torch
from deepspeed.utils import safe_get_full_fp32_param
from oat.algorithms.ppo import PPOArgs, PPOLearner
from oat.model import LLM
from oat.types import TransitionData
from oat.utils.ops import disable_dropout
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig
from transformers.trainer import get_scheduler

from actors import runtime
from actors.math_actor import MathActor
from learners.advantages import ADVANTAGES, overlong_punishment
from learners.aggregation import UpdateCounts, aggregate
from learners.collect import Collected, collect_mixed
from learners.config import Config
from learners.log_probs import TokenLogProbs
from learners.mismatch import derive, measure
from learners.objectives import OBJECTIVES, PolicyBatch, reference_kl
from learners.precision import NAMES, NonFiniteError, Precision
from learners.rollout import RolloutBatch
from learners.routers import route_in_fp32
from learners.run_log import RunLog
from learners.strategy import PrecisionStrategy, StepReport
from learners.tally import Tally, across_processes
from tasks.prompts import Prompt, PromptStream


class PolicyLearner(PPOLearner):
    """Oat's learner with its parts put together for one process.

    Oat's `_init` and `run` start remote actors and talk to them; here the actor is an object. The model wrapper, the
    strategy, transitions and the vocabulary of the loop (`process_feedback_data`, `learn`, `sync_params_to_actors`,
    `evaluate`) are Oat's; the loss is a pure function, chosen by name (learners/objectives.py).

    Args:
        config: resolved.
        args: the same, as Oat's.
        precision: of both engines.
        prompts: for training.
        eval_prompts: held out; may be empty.
        log: where metrics, samples and the summary go.
    """

    def __init__(
        self,
        config: Config,
        args: PPOArgs,
        precision: Precision,
        prompts: list[Prompt],
        eval_prompts: list[Prompt],
        log: RunLog,
    ):
        # Not Oat's __init__: it only stores what is stored here, and binds a port for Launchpad.
        self.args, self.actors = args, []
        self.config, self.precision, self.log = config, precision, log
        self.objective = OBJECTIVES[config.objective.objective]
        self.thresholds = {name: getattr(config.objective, name) for name in self.objective.thresholds}
        self.advantage = ADVANTAGES[config.objective.advantage]
        self.stream = PromptStream(prompts, config.sampling.rollout_batch_size, config.training.seed)
        self.eval_prompts = eval_prompts
        self.max_steps = config.training.max_steps or self.stream.steps_per_epoch * config.training.num_prompt_epoch
        log.max_steps = self.max_steps
        self._init(args, [])

    def _init(self, args: PPOArgs, actors: list) -> None:
        """Build model, optimiser and scheduler and hand them to DeepSpeed."""
        self.strategy = PrecisionStrategy(args, self.precision)
        self.strategy.setup_distributed()
        self.reference = self._load_policy(sharded=False).eval().requires_grad_(False) if args.beta > 0 else None
        self.model = LLM(self._load_policy(sharded=args.zero_stage == 3))
        disable_dropout(self.model)
        if args.gradient_checkpointing:
            self.model.model.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer = self.strategy.create_optimizer(
            self.model,
            lr=args.learning_rate,
            betas=(args.adam_beta_1, args.adam_beta_2),
            eps=self.config.training.adam_eps,
            weight_decay=args.l2,
        )
        updates = self.max_steps * self.config.updates_per_step
        minimum = {"min_lr": args.learning_rate * 0.1} if args.lr_scheduler == "cosine_with_min_lr" else {}
        self.scheduler = get_scheduler(
            args.lr_scheduler,
            self.optimizer,
            num_warmup_steps=self.config.warmup_updates(updates),
            num_training_steps=updates,
            scheduler_specific_kwargs=minimum,
        )
        self.model, self.optimizer, self.scheduler = self.strategy.prepare((self.model, self.optimizer, self.scheduler))
        self.engine = self.model.model
        self.causal_lm = self.engine.module.causal_lm
        self.engine.module.check()
        self.pi_buffer: deque[TransitionData] = deque(maxlen=args.pi_buffer_maxlen_per_device)
        self.prompts_drawn = 0  # by dynamic sampling, over all epochs: where its next step goes on
        self.query_step = self.policy_sgd_step = self.skipped_updates = self.pi_beta_version = 0
        self.pi_beta_lags_behind = True

    def _load_policy(self, sharded: bool) -> TokenLogProbs:
        """The model in the training dtype; ``sharded`` as ZeRO-3 wants it, else whole and on the device."""
        model = TokenLogProbs(self._load_model(sharded), self.args.temperature, self.config.precision.lm_head_fp32)
        return model if sharded else model.to(runtime.device())

    def _load_model(self, sharded: bool) -> torch.nn.Module:
        """The Hugging Face model in the training dtype, checked to fit in it."""
        attention = self.config.model.attn_implementation
        if attention == "auto":
            attention = "sdpa" if torch.cuda.is_available() else "eager"
        if sharded:  # parameters are cut up as they are made
            self._sharding = HfDeepSpeedConfig(self.strategy.get_ds_train_config(is_wrapped=True))
        model = AutoModelForCausalLM.from_pretrained(
            self.config.model_path,
            dtype=self.precision.train,
            attn_implementation=attention,
            trust_remote_code=self.config.model.trust_remote_code,
        )
        model.config.use_cache = False
        if self.config.model.router_fp32:
            route_in_fp32(model)
        for name, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteError(
                    f"The weight {name} of {self.config.model.model} is not finite in "
                    f"{NAMES[self.precision.train]}: it exceeds the range of that dtype; use --dtype bf16 or fp32 for "
                    "this model."
                )
        return model

    # ------------------------------------------------------------------------------------------------ the loop

    def attach(self, actor: MathActor) -> None:
        """Take the actor in, give it the weights, and assert that both engines have the dtypes that were asked for."""
        self.actor = actor
        self.sync_params_to_actors()
        trained = {p.dtype for p in self.causal_lm.parameters() if p.is_floating_point()}
        sampled = actor.engine.parameter_dtypes()
        assert trained == {self.precision.train}, trained
        assert sampled == {self.precision.sample}, sampled
        masters = {safe_get_full_fp32_param(p).dtype for p in list(self.causal_lm.parameters())[:1]}
        self.log.say(
            f"precision: learner {NAMES[self.precision.train]}, master weights {NAMES[masters.pop()]}, "
            f"sampler {NAMES[self.precision.sample]} (read from both engines' tensors)"
        )

    def run(self) -> None:
        """Train for `max_steps` steps, evaluating now and then, and save the model."""
        self.evaluate_and_log(step=0)
        for step in range(1, self.max_steps + 1):
            started = time.perf_counter()
            times = self.collect(step)
            self._pre_learning()
            metrics = self.learn(step)
            self._post_learning()
            times["time/learn"] = metrics.pop("time/learn")
            times["time/sync"] = self.sync_params_to_actors()
            tokens = sum(len(t.prompt_ids) + len(t.response_ids) for t in self.pi_buffer)
            metrics |= times | {"time/step": time.perf_counter() - started}
            metrics["throughput/learn_tokens_per_s"] = tokens / times["time/learn"]
            interval = self.args.eval_steps
            if interval > 0 and (step % interval == 0 or step == self.max_steps):
                metrics |= self.evaluate(step)
            self.log.step(step, metrics)
        if self.config.output.save_model:
            self.save_model(self.log.folder / "model")

    def collect(self, step: int) -> dict[str, float]:
        """Sample and grade the prompts of a step into the buffer. Returns the time of each, seconds, and what dynamic
        sampling took."""
        sampling_metrics = {}
        if self.config.sampling.dynamic_sampling:
            collected = self._collect_mixed(step)
            prompts, transitions, sampling_metrics = collected.prompts, collected.transitions, collected.metrics()
        else:
            prompts = self.stream.batch(step)
            transitions = self.actor.sample(prompts, seed=self._seed(step))
        self.pi_buffer.clear()
        self.process_feedback_data(transitions)
        self.log.samples(step, prompts, transitions, self.args.num_samples)
        info = transitions[0].info
        sampled = sum(len(t.response_ids) for t in transitions)
        return sampling_metrics | {
            "time/sample": info["actor/generate_time"],
            "time/grade": info["actor/verify_time"],
            "throughput/sample_tokens_per_s": sampled / info["actor/generate_time"],
        }

    def _collect_mixed(self, step: int) -> Collected:
        """Dynamic sampling: goes on in the prompts where the last step stopped (`prompts_drawn`)."""

        def draw(count: int) -> list[Prompt]:
            prompts = self.stream.take(self.prompts_drawn, count)
            self.prompts_drawn += count
            return prompts

        wanted, rounds = self.config.sampling.rollout_batch_size, self.config.sampling.max_sampling_rounds
        collected = collect_mixed(
            draw,
            lambda prompts, turn: self.actor.sample(prompts, seed=self._seed(step, turn)),
            wanted,
            self.args.num_samples,
            rounds,
        )
        if collected.filled:
            self.log.say(
                f"step {step}: after {rounds} rounds {wanted - collected.filled} of {wanted} prompts had responses of "
                "different reward; the others have no advantage and add nothing to the gradient"
            )
        return collected

    def process_feedback_data(self, data_list: list[TransitionData]) -> None:
        """Put transitions into the buffer (Oat's)."""
        self.query_step += len(data_list)
        self.pi_buffer.extend(data_list)

    def _seed(self, step: int, turn: int = 0) -> int:
        """A seed for the sampling (in one of several turns) and shuffling of a step, the same whatever came before."""
        return int(np.random.SeedSequence([self.args.seed, step, turn]).generate_state(1)[0])

    def _pre_learning(self) -> None:
        if self.args.vllm_sleep:
            self.actor.engine.sleep()

    def _post_learning(self) -> None:
        self.pi_beta_lags_behind = True
        if self.args.vllm_sleep:
            torch.cuda.empty_cache()
            self.actor.engine.wake_up(["weights"])

    # ------------------------------------------------------------------------------------------------ learning

    def learn(self, learning_round: int) -> dict[str, float]:
        """Train on the buffer: cut the step's responses into updates, and each update into micro-batches.

        Args:
            learning_round: the step, from 1.

        Returns:
            Metrics of the step, by their names in metrics.jsonl.
        """
        started, self.step = time.perf_counter(), learning_round
        self.engine.train()
        tally = Tally()
        batch = RolloutBatch.from_transitions(self.pi_buffer, runtime.device())
        punishment = overlong_punishment(
            batch.response_mask.sum(1), self.args.generate_max_length, self.config.sampling.overlong_buffer
        )
        batch.advantages = self.advantage(batch.rewards + punishment, self.args.num_samples)
        if self.objective.needs_pi_old:
            batch.old_logp = self._log_probs_without_gradient(batch, self.log_probs)
            measure(tally, batch.old_logp, batch.mu_logp, batch.response_mask)
        if self.reference is not None:
            batch.reference_logp = self._log_probs_without_gradient(batch, self._reference_log_probs)
        generator = torch.Generator().manual_seed(self._seed(learning_round))
        size = self.args.train_batch_size // self.strategy.world_size
        at_rollout_weights = not self.objective.needs_pi_old  # measured above, or until the first update is applied
        for _ in range(self.args.num_ppo_epochs):
            for indices in torch.randperm(len(batch), generator=generator).split(size):
                report = self._update(batch.select(indices), tally, at_rollout_weights)
                at_rollout_weights &= report.skipped
        self._tally_rollout(batch, tally)
        if self.config.sampling.overlong_buffer:
            tally.add("train/overlong_punishment", punishment)
        metrics = derive(tally.result())
        metrics["precision/loss_scale"] = self.strategy.loss_scale(self.model)
        metrics["precision/skipped_updates"] = self.skipped_updates
        metrics["train/learning_rate"] = self.scheduler.get_last_lr()[0]
        metrics["train/updates"] = self.policy_sgd_step
        metrics["time/learn"] = time.perf_counter() - started
        return metrics

    def _update(self, batch: RolloutBatch, tally: Tally, at_rollout_weights: bool) -> StepReport:
        """One optimiser update on the given responses of this process. Returns the strategy's report."""
        counts = self._count(batch)
        update_loss = 0.0
        for part in batch.micro_batches(self.args.train_batch_size_per_device):
            logp = self.log_probs(part)
            if at_rollout_weights:
                measure(tally, logp, part.mu_logp, part.response_mask)
            loss = aggregate(
                self._token_losses(logp, part, tally),
                part.response_mask,
                part.kept,
                self.config.objective.aggregation,
                counts,
            )
            self._require_finite(loss, part, "loss")
            self.strategy.backward(loss, self.model, self.optimizer)
            update_loss += loss.item()
        report = self.strategy.optimizer_step(self.optimizer, self.model, self.scheduler)
        self.skipped_updates += report.skipped
        self.policy_sgd_step += not report.skipped
        # Counts are of the whole update: the parts of the processes are summed, the updates averaged.
        tally.add("train/loss", torch.tensor(update_loss), count=1 / self.strategy.world_size)
        if not report.skipped:
            tally.add("precision/grad_norm", torch.tensor(report.grad_norm))
        return report

    def _count(self, batch: RolloutBatch) -> UpdateCounts:
        """What an update consists of, over all processes; each has its part of it in ``batch``."""
        kept_tokens = batch.response_mask[batch.kept].sum().item()
        here = torch.tensor([len(batch), batch.kept.sum().item(), kept_tokens], dtype=torch.float64)
        return UpdateCounts(*across_processes(here, "sum").tolist(), max_length=self.args.generate_max_length)

    def _token_losses(self, logp: torch.Tensor, batch: RolloutBatch, tally: Tally) -> torch.Tensor:
        """(B, L - 1): the objective's loss, with what is added to it; its statistics go to the tally."""
        policy = PolicyBatch(logp, batch.mu_logp, batch.advantages, batch.response_mask, batch.old_logp)
        losses, statistics = self.objective(policy, **self.thresholds)
        if batch.reference_logp is not None:
            divergence = reference_kl(logp, batch.reference_logp, batch.response_mask)
            statistics["reference_kl"] = divergence.detach()
            losses = losses + self.args.beta * divergence
        for name, values in statistics.items():
            per_token = values.shape == batch.response_mask.shape
            tally.add(f"objective/{name}", values[batch.response_mask] if per_token else values)
        return losses

    def log_probs(self, batch: RolloutBatch) -> torch.Tensor:
        """log pi of a batch's response tokens: (B, L - 1) FP32, 0 outside the response."""
        kept = self.model(batch.input_ids, batch.attention_mask, logits_to_keep=batch.response_mask)
        logp = torch.zeros_like(batch.mu_logp).masked_scatter(batch.response_mask, kept)
        self._require_finite(logp, batch, "log-probability")
        return logp

    def _reference_log_probs(self, batch: RolloutBatch) -> torch.Tensor:
        positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device).expand_as(batch.input_ids)
        kept = self.reference(batch.input_ids, batch.attention_mask, positions, batch.response_mask)
        return torch.zeros_like(batch.mu_logp).masked_scatter(batch.response_mask, kept)

    @torch.no_grad()
    def _log_probs_without_gradient(self, batch: RolloutBatch, log_probs) -> torch.Tensor:
        """(B, L - 1): of all the responses, micro-batch by micro-batch, in their order."""
        made = torch.zeros_like(batch.mu_logp)
        for indices in batch.micro_batch_indices(self.args.train_batch_size_per_device):
            part = log_probs(batch.select(indices))
            made[indices, : part.shape[1]] = part
        return made

    def _require_finite(self, values: torch.Tensor, batch: RolloutBatch, what: str) -> None:
        finite = torch.isfinite(values)
        if finite.all():
            return
        row = 0 if values.dim() == 0 else int((~finite).any(1).nonzero()[0])
        ids = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
        start = int(batch.response_mask[row].int().argmax()) + 1
        prompt = next((t.prompt for t in self.pi_buffer if list(t.prompt_ids) == ids[:start]), "?")
        raise NonFiniteError(
            f"A {what} is not finite (step {self.step}, update {self.policy_sgd_step + 1}, --dtype "
            f"{NAMES[self.precision.train]}, prompt {prompt[:80]!r}). Loss scaling cannot mend this: activations or "
            "weights left the dtype's range; try --dtype bf16 or fp32, or a lower --learning-rate."
        )

    def _tally_rollout(self, batch: RolloutBatch, tally: Tally) -> None:
        info = self.pi_buffer[0].info
        tally.add("train/reward", batch.rewards)
        tally.add("train/response_length", batch.response_mask.sum(1))
        tally.add("train/truncated", torch.tensor(float(info["actor/no_eos_count"])), count=info["actor/num_data"])
        groups = batch.rewards.view(-1, self.args.num_samples)
        tally.add("train/groups_with_equal_rewards", (groups == groups[:, :1]).all(1).float())

    # ------------------------------------------------------------------------------------------------ weights

    def sampler_weights(self):
        """The weights as the sampler gets them: (Hugging Face name, tensor in the sampling dtype), one at a time.

        The learner's own tensors are already the master weights cast to the training dtype; a sampler in another dtype
        is cast from the FP32 masters, never from a half.
        """
        for name, parameter in self.causal_lm.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.args.zero_stage == 3):
                if self.precision.sample == self.precision.train:
                    yield name, parameter.data
                else:
                    yield name, safe_get_full_fp32_param(parameter).to(self.precision.sample)

    def sync_params_to_actors(self) -> float:
        """Give the sampler the learner's weights. Returns seconds."""
        started = time.perf_counter()
        self.actor.engine.load_weights(self.sampler_weights())
        if self.args.vllm_sleep and self.pi_beta_version > 0:
            self.actor.engine.wake_up(["kv_cache"])
        self.pi_beta_version += 1
        self.pi_beta_lags_behind = False
        return time.perf_counter() - started

    def save_model(self, folder) -> None:
        """Write the policy and its tokenizer in Hugging Face format, in the training dtype."""
        with deepspeed.zero.GatheredParameters(list(self.causal_lm.parameters()), enabled=self.args.zero_stage == 3):
            if self.strategy.is_rank_0():
                self.causal_lm.save_pretrained(folder)
                self.actor.llm.get_tokenizer().save_pretrained(folder)

    # ------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, step: int) -> dict[str, float]:
        """Accuracy on the held-out problems at the current weights; {} if there are none."""
        if not self.eval_prompts:
            return {}
        assert not self.pi_beta_lags_behind
        started = time.perf_counter()
        _, rewards = self.actor.evaluate(self.eval_prompts, seed=self._seed(step))
        return {"eval/accuracy": float(np.mean(rewards == 1)), "time/evaluate": time.perf_counter() - started}

    def evaluate_and_log(self, step: int) -> None:
        if self.args.eval_steps > 0 and self.eval_prompts:
            self.log.evaluation(step, self.evaluate(step))
