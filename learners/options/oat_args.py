"""This project's options as Oat's: what Oat's actor, learner and strategy read."""

from oat.algorithms.ppo import PPOArgs

from learners.options.config import Config


def to_oat_args(config: Config) -> PPOArgs:
    """Oat's PPOArgs for a resolved configuration."""
    sampling, training = config.sampling, config.training
    return PPOArgs(
        # precision: as Oat says it, two booleans; see learners/options/precision.py
        bf16=config.precision.train_dtype == "bf16",
        fp16=config.precision.train_dtype == "fp16",
        grad_accum_dtype="fp32",
        # sampling
        generate_max_length=sampling.generate_max_length,
        num_samples=sampling.num_samples,
        temperature=sampling.temperature,
        ignore_no_eos=sampling.ignore_no_eos,
        non_stop_fixed_reward=0.0,  # a truncated response earns 0, whatever its text says
        vllm_sleep=sampling.vllm_sleep_level > 0,
        # training
        seed=training.seed,
        train_batch_size=training.train_batch_size,
        train_batch_size_per_device=training.micro_batch_size or 1,
        max_norm=training.max_norm,
        zero_stage=training.zero_stage,
        # evaluation
        eval_n=config.evaluation.eval_n,
        eval_temperature=config.evaluation.eval_temperature,
        eval_top_p=config.evaluation.eval_top_p,
        eval_generate_max_length=sampling.generate_max_length,
    )
