"""The learner: Oat's PPOLearner in one process with the actor.

Read `run` first: one step is sample -> learn -> synchronise, and everything it writes goes through the run's log. With
several processes each runs this same program: it samples its engine's share of the prompts, all of them gather the
step's responses, and each trains on its share of every update. What is learned does not depend on how many there are.
"""

import tempfile
import time
from pathlib import Path

import torch
from oat.algorithms.ppo import PPOArgs, PPOLearner
from oat.model import LLM
from oat.utils.ops import disable_dropout
from transformers import AutoTokenizer
from transformers.integrations import HfDeepSpeedConfig
from transformers.trainer import get_scheduler

from actors import runtime
from actors.math_actor import MathActor
from actors.processes import Processes, from_first
from learners.checkpoints import training_state
from learners.checkpoints.folders import Checkpoints, name_of
from learners.checkpoints.interruption import Interruption, Stopped
from learners.model import lora, weights
from learners.model.loading import load_model
from learners.model.log_probs import TokenLogProbs
from learners.options.config import Config
from learners.options.precision import NAMES, TORCH_DTYPES, Precision
from learners.record.evaluation import evaluate
from learners.record.mismatch import derive
from learners.record.rollout_log import write_rollouts
from learners.record.run_files import CHECKPOINTS
from learners.record.run_log import RunLog
from learners.rollouts.collect import Rollouts, step_seed
from learners.rollouts.step import Step
from learners.update.strategy import PrecisionStrategy
from learners.update.updater import Updater
from tasks.errors import NonFiniteError
from tasks.prompts import Prompt


class PolicyLearner(PPOLearner):
    """Oat's learner with its parts put together for one process.

    Oat's `_init` and `run` start remote actors and talk to them; here the actor is an object. The model wrapper, the
    strategy, transitions and the vocabulary of the loop (`learn`, `sync_params_to_actors`, `evaluate`) are Oat's; the
    update is `Updater`'s (learners/update), its loss a pure function, chosen by name (learners/objectives).

    Args:
        config, args: resolved options, ours and the same as Oat's.
        prompts, eval_prompts: for training; held out, may be none.
    """

    def __init__(
        self,
        config: Config,
        args: PPOArgs,
        precision: Precision,
        prompts: list[Prompt],
        eval_prompts: list[Prompt],
        log: RunLog,
        processes: Processes,
    ):
        # Not Oat's __init__: it only stores what is stored here, and binds a port for Launchpad.
        self.args, self.actors = args, []
        self.config, self.precision, self.log, self.processes = config, precision, log, processes
        self.rollouts = Rollouts(config, prompts, processes, log)
        self.eval_prompts = eval_prompts
        epoch = self.rollouts.stream.steps_per_epoch
        self.max_steps = config.training.max_steps or epoch * config.training.num_prompt_epoch
        log.max_steps, log.steps_per_epoch = self.max_steps, epoch
        self.interruption = Interruption()
        self.checkpoints = Checkpoints(log.folder / CHECKPOINTS, config.output.keep)
        self._init(args, [])

    def _init(self, args: PPOArgs, actors: list) -> None:
        """Build model, optimiser and scheduler and hand them to DeepSpeed."""
        self.strategy = PrecisionStrategy(args, self.precision, offload=self.config.training.offload)
        self.strategy.setup_distributed()
        training = self.config.training
        needs_reference = self.config.objective.beta > 0
        self.reference = self._load_policy().eval().requires_grad_(False) if needs_reference else None
        if args.zero_stage == 3:  # from here on, parameters are cut up as they are made
            self._sharding = HfDeepSpeedConfig(self.strategy.get_ds_train_config(is_wrapped=True))
        policy = self._load_policy()
        options = self.config.lora
        self.peft = lora.add_adapters(policy.causal_lm, options) if options.lora_rank > 0 else None
        self.model = LLM(policy)
        disable_dropout(self.model)
        if self.config.model.gradient_checkpointing:
            policy.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer = self.strategy.create_optimizer(
            self.model,
            lr=training.learning_rate,
            betas=(training.adam_beta_1, training.adam_beta_2),
            eps=training.adam_eps,
            weight_decay=training.weight_decay,
        )
        updates = self.max_steps * self.config.updates_per_step
        minimum = {"min_lr": training.learning_rate * 0.1} if training.lr_scheduler == "cosine_with_min_lr" else {}
        self.scheduler = get_scheduler(
            training.lr_scheduler,
            self.optimizer,
            num_warmup_steps=self.config.warmup_updates(updates),
            num_training_steps=updates,
            scheduler_specific_kwargs=minimum,
        )
        self.model, self.optimizer, self.scheduler = self.strategy.prepare((self.model, self.optimizer, self.scheduler))
        self.engine = self.model.model
        self.causal_lm = self.engine.module.causal_lm
        self.engine.module.check()
        trusted = self.config.model.trust_remote_code  # AutoTokenizer: it is saved with the model, as its own class
        self.tokenizer = AutoTokenizer.from_pretrained(self.config.model_path, trust_remote_code=trusted)
        trained = (self.model, self.optimizer, self.scheduler)
        self.updater = Updater(self.config, self.strategy, *trained, self.reference, self.processes, self.tokenizer)
        self.query_step = self.policy_sgd_step = self.skipped_updates = 0
        self.steps_done, self.in_progress = 0, None

    def _load_policy(self) -> TokenLogProbs:
        """The model in the training dtype, as a source of log-probabilities."""
        model = load_model(self.config, self.precision)
        policy = TokenLogProbs(model, self.args.temperature, self.config.precision.lm_head_fp32)
        cut_up = hasattr(next(model.parameters()), "ds_id")
        return policy if cut_up else policy.to(runtime.device())

    # ------------------------------------------------------------------------------------------------ the loop

    def attach(self, actor: MathActor) -> None:
        """Take the actor in, give it the weights, and assert that both engines have the dtypes that were asked for."""
        self.actor = actor
        self.sync_params_to_actors()
        trained = {p.dtype for p in self.causal_lm.parameters() if p.is_floating_point()}
        sampled = actor.engine.parameter_dtypes()
        assert trained == {self.precision.train}, trained
        assert sampled == {self.precision.sample}, sampled
        masters = weights.master(next(p for p in self.causal_lm.parameters() if p.requires_grad))
        self.log.say(
            f"precision: learner {NAMES[self.precision.train]}, master weights {NAMES[masters.dtype]}, "
            f"sampler {NAMES[self.precision.sample]} (read from both engines' tensors)"
        )

    def run(self) -> None:
        """Train for `max_steps` steps, evaluating and saving now and then, and write the model.

        Raises:
            Stopped: SIGTERM or SIGUSR1 came; the run has saved itself.
        """
        begins = self.steps_done == 0 and self.in_progress is None
        if begins and self.config.evaluation.eval_steps > 0 and self.eval_prompts:
            self.log.evaluation(0, self.evaluate())
        while self.steps_done < self.max_steps:
            started = time.perf_counter()
            step = self.in_progress = self.in_progress or self.collect(self.steps_done + 1)
            metrics = self.learn(step)
            metrics["time/sync"] = self.sync_params_to_actors()
            self.in_progress, self.steps_done = None, step.number
            metrics["time/step"] = time.perf_counter() - started
            # At this step, whose reward the log has not been told of yet; the same on every process.
            may_stop = self.config.evaluation.stop_when_passed
            passed = may_stop and bool(from_first(self.log.sanity_verdict(metrics["train/reward"])))
            interval, last = self.config.evaluation.eval_steps, step.number == self.max_steps or passed
            if interval > 0 and (step.number % interval == 0 or last):
                metrics |= self.evaluate()
            self.log.step(step.number, metrics)
            every = self.config.output.save_every
            if every > 0 and (step.number % every == 0 or last):
                self.save_checkpoint()
            if passed:
                self.log.say(f"the sanity test is passed after {step.number} steps, and the run was to stop then")
                break
            self._stop_if_told()
        self.save_models()

    def collect(self, number: int) -> Step:
        """Sample and grade the prompts of a step (learners/rollouts/collect.py)."""
        step = self.rollouts.collect(number, self.actor)
        self.query_step += len(step.batch)
        return step

    def _stop_if_told(self) -> None:
        name = self.interruption.requested()
        if name is None:
            return
        where = f"after step {self.steps_done}"
        if (step := self.in_progress) is not None:
            where = f"in step {step.number} after update {step.updates_done}"
        saved = self.save_checkpoint()
        kept = f"; saved as {saved}, the same command goes on from there" if saved else " and nothing could be saved"
        raise Stopped(f"{name}: stopped {where} of {self.max_steps} steps{kept}")

    def close(self) -> None:
        """Give back what both engines hold."""
        self.actor.engine.close()
        self.engine.destroy()

    # ------------------------------------------------------------------------------------------------ learning

    def learn(self, step: Step) -> dict[str, float]:
        """Train on a step's responses: cut them into updates, and each update into micro-batches.

        Args:
            step: from `collect`, or one that was stopped between two updates.

        Returns:
            Metrics of the step, by their names in metrics.jsonl.

        Raises:
            NonFiniteError: a number left the dtype's range, and loss scaling cannot mend it.
            Stopped: between two updates.
        """
        started = time.perf_counter()
        if self.args.vllm_sleep:
            self.actor.engine.sleep()
        self.engine.train()
        tried_scale = self.strategy.loss_scale(self.model)
        try:
            if step.updates_done == 0:
                self.updater.evaluate_before(step)
                self._log_rollouts(step)
            for indices in self._updates(step)[step.updates_done :]:
                self._stop_if_told()
                report = self.updater.update(step, step.batch.select(indices))
                tried_scale = report.loss_scale
                self.skipped_updates += report.skipped
                self.policy_sgd_step += not report.skipped
                step.at_rollout_weights &= report.skipped
                step.updates_done += 1
        except NonFiniteError as error:
            raise NonFiniteError(f"Step {step.number}, update {self.policy_sgd_step + 1}: {error}") from error
        for finding in self.updater.watch.look():
            self.log.say(f"WARNING: step {step.number}: {finding} See python scripts/doctor.py {self.log.folder}.")
        self._tally_rollout(step)
        if self.args.vllm_sleep:
            torch.cuda.empty_cache()
            self.actor.engine.wake_up(["weights"])
        step.times["time/learn"] = step.times.get("time/learn", 0.0) + time.perf_counter() - started
        metrics = derive(step.tally.result()) | step.times
        metrics["precision/loss_scale"] = self.strategy.loss_scale(self.model)
        metrics["precision/skipped_updates"] = self.skipped_updates
        metrics["train/learning_rate"] = self.scheduler.get_last_lr()[0]
        metrics["train/updates"] = self.policy_sgd_step
        metrics["throughput/learn_tokens_per_s"] = step.batch.lengths.sum().item() / step.times["time/learn"]
        self._warn_if_nothing_was_learned(step.number, metrics, tried_scale)
        return metrics

    def _log_rollouts(self, step: Step) -> None:
        """Keep the step's first responses with log pi at the weights that sampled them: pi_old, or a pass for it."""
        world = self.processes.world_size
        count = min(-(-self.config.output.log_rollouts // world) * world, len(step.batch))
        if count == 0:
            return
        batch = step.batch.select(torch.arange(count))
        log_pi = batch.old_logp
        if log_pi is None:
            log_pi = self.updater.without_gradient(batch, self.updater.log_probs)
        if self.processes.rank == 0:
            try:
                write_rollouts(self.config, self.log.folder, step.number, batch, log_pi)
            except OSError as error:
                self.log.say(f"WARNING: the rollouts of step {step.number} could not be written ({error.strerror}).")

    def _warn_if_nothing_was_learned(self, number: int, metrics: dict[str, float], tried_scale: float) -> None:
        topic, why = "", ""
        if "precision/grad_norm" not in metrics:
            fixed = self.config.precision.loss_scale > 0
            mend = "choose a smaller --loss-scale, or 0 for one that adapts" if fixed else "it is being lowered"
            topic = "overflow"
            why = f"every update was skipped, as the gradient overflows at the loss scale {tried_scale:g}; {mend}"
        elif metrics["train/groups_with_equal_rewards"] == 1 and self.reference is None:
            topic = "equal rewards"
            why = (
                "all responses to each prompt earned the same; samples.jsonl has what is answered and how it is graded"
            )
        self.log.warn_of(topic, f"nothing was learned in step {number}: {why}.")

    def _updates(self, step: Step) -> list[torch.Tensor]:
        """Which responses each update of a step trains on: a function of (seed, step), on any number of processes."""
        generator = torch.Generator().manual_seed(step_seed(self.args.seed, step.number))
        return [
            indices
            for _ in range(self.config.training.num_ppo_epochs)
            for indices in torch.randperm(len(step.batch), generator=generator).split(self.args.train_batch_size)
        ]

    def _tally_rollout(self, step: Step) -> None:
        batch, tally = step.batch, step.tally  # every process has all responses, so that the means are of all
        tally.add("train/reward", batch.rewards)
        tally.add("train/response_length", batch.response_mask.sum(1))
        groups = batch.rewards.view(-1, self.args.num_samples)
        tally.add("train/groups_with_equal_rewards", (groups == groups[:, :1]).all(1).float())

    # ------------------------------------------------------------------------------------------------ weights

    def sampler_weights(self):
        """The weights as the sampler gets them: (Hugging Face name, tensor in the sampling dtype), one at a time."""
        return weights.whole_weights(self.causal_lm, self.precision.sample, self.precision.train)

    def sync_params_to_actors(self) -> float:
        """Give the sampler the learner's weights. Returns seconds."""
        started = time.perf_counter()
        if self.config.lora.lora_sync == "adapter" and self.peft is not None:
            tensors = lora.adapter_tensors(self.causal_lm, weights.master, self.precision.sample)
            with tempfile.TemporaryDirectory() as folder:
                lora.save_adapter(self.peft, tensors, Path(folder))
                self.actor.load_adapter(folder)
        else:
            self.actor.engine.load_weights(self.sampler_weights())
        if self.args.vllm_sleep:
            self.actor.engine.wake_up(["kv_cache"])
        return time.perf_counter() - started

    def save_models(self) -> None:
        """Write what the options ask for: the model into the run's folder, whole into another, the adapter."""
        output, first = self.config.output, self.processes.rank == 0
        dtype = TORCH_DTYPES[output.export_dtype]
        wanted = [self.log.folder / "model"] if output.save_model else []
        wanted += [Path(output.export)] if output.export else []
        for folder in wanted:
            weights.save_whole(self.causal_lm, self.tokenizer, folder, dtype, self.precision.train, writes=first)
        if self.peft is not None and output.save_model:
            tensors = lora.adapter_tensors(self.causal_lm, weights.master, dtype)
            if first:
                lora.save_adapter(self.peft, tensors, self.log.folder / "adapter")

    # ------------------------------------------------------------------------------------------------ checkpoints

    def save_checkpoint(self) -> Path | None:
        """Write everything that going on needs. Returns the folder, or None if it could not be written: then the run
        goes on, and the older checkpoints stay."""
        name = name_of(self.steps_done, self.in_progress.updates_done if self.in_progress else 0)
        problem = self.checkpoints.write(name, lambda folder: training_state.write(self, folder))
        if problem is None:
            return self.checkpoints.folder / name
        self.log.say(f"WARNING: checkpoint {name} could not be written ({problem}); the run goes on without it.")
        return None

    def resume(self, checkpoint: Path) -> None:
        """Take up a checkpoint, and give the sampler its weights.

        Raises:
            UsageError: it is of another model.
        """
        training_state.read(self, checkpoint)
        self.sync_params_to_actors()

    def counters(self) -> dict[str, int]:
        own = {name: getattr(self, name) for name in ("query_step", "policy_sgd_step", "skipped_updates")}
        return own | {"prompts_drawn": self.rollouts.prompts_drawn}

    def set_counters(self, counters: dict[str, int]) -> None:
        for name, value in counters.items():
            setattr(self.rollouts if name == "prompts_drawn" else self, name, value)

    # ------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self) -> dict[str, float]:
        """Accuracy on the held-out problems at the current weights (learners/record/evaluation.py)."""
        return evaluate(self.config, self.actor, self.eval_prompts, self.processes)
