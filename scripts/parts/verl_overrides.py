"""A configuration of train.py in VeRL's words: the Hydra overrides of verl 0.9.1 for the same experiment.

A pure function of a resolved `Config`. What VeRL cannot express is refused. Its names and defaults were read in the
installed package; tests/verl_check.py composes them with VeRL's own configuration and compares the losses.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from learners.objectives import OBJECTIVES
from tasks.errors import require
from tasks.templates import TEMPLATES

if TYPE_CHECKING:
    from learners.options.config import Config

VERL = "0.9.1"
GRADED = ("arithmetic", "math", "sanity")  # tasks whose reward scripts/export_verl.py writes
OFF = 1e9  # a bound that nothing reaches: VeRL keeps log-ratios within +-20, and e^20 is 4.9e8
NEARLY_ZERO = 1e-9  # below e^-20
PASS_THROUGH = "{{ messages[0].content }}"  # a chat template for prompts that are written out already

# The level of the importance weight, by objective. VeRL calls it rollout_is.
POLICY_GRADIENTS = {
    "reinforce": None,
    "pg-seq-is": "sequence",
    "pg-seq-tis": "sequence",
    "pg-seq-mis": "sequence",
    "pg-token-is": "token",
    "pg-token-tis": "token",
}
SURROGATES = {
    "grpo": None,
    "grpo-bypass": None,
    "grpo-token-tis": "token",
    "grpo-seq-tis": "sequence",
    "grpo-seq-mis": "sequence",
    "icepop": "token",
}
OWN_LOSS = {"gspo": "gspo", "gspo-bypass": "gspo", "gmpo": "geo_mean", "sapo": "sapo", "cispo": "cispo",
            "dppo-tv": "dppo_tv", "dppo-kl": "dppo_kl"}  # fmt: skip
EXPORTED = (*POLICY_GRADIENTS, *SURROGATES, *OWN_LOSS)

ADVANTAGES = {"group-mean": ("grpo", False), "group-std": ("grpo", True), "leave-one-out": ("rloo", False)}
AGGREGATIONS = {
    "token-sum-constant": "seq-mean-token-sum-norm",
    "token-mean-sequence": "seq-mean-token-mean",
    "token-mean-batch": "token-mean",
}
# What VeRL calls rollout_rs, and the thresholds here, by rejection. VeRL's k1 is -log w, so its bands are on 1 / w.
REJECTIONS = {
    "geo": ("seq_mean_k1", "geo_low", "geo_high"),
    "icepop": ("token_k1", "icepop_low", "icepop_high"),
    "k3": ("seq_mean_k3", "k3_cap"),
    "max-token": ("seq_max_k2", "token_k2_cap"),
}
PLAIN_WORD = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z][a-z0-9_-]*", re.IGNORECASE)
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def overrides(config: Config, nodes: int, gpus_per_node: int) -> dict[str, object]:
    """Key -> value for `python -m verl.trainer.main_ppo`, all but the paths of data, reward and model.

    A key that starts with + is not in VeRL's YAML files.

    Args:
        config: resolved.
        nodes, gpus_per_node: that VeRL runs on.

    Raises:
        UsageError: VeRL cannot express it.
    """
    refuse_what_verl_lacks(config, nodes * gpus_per_node)
    return (
        _data(config)
        | _precision(config)
        | _objective(config)
        | _sampling(config)
        | _training(config)
        | _model(config)
        | {
            "trainer.use_v1": True,
            "trainer.nnodes": nodes,
            "trainer.n_gpus_per_node": gpus_per_node,
            "trainer.logger": ["console"],
            "trainer.project_name": config.output.wandb_project,
            "trainer.experiment_name": f"verl-{config.output.name}",
        }
    )


def refuse_what_verl_lacks(config: Config, devices: int) -> None:
    """Raises:
    UsageError: with one sentence that says what VeRL can do instead.
    """
    sampling, training, precision, objective = config.sampling, config.training, config.precision, config.objective
    require(
        training.train_batch_size % sampling.num_samples == 0,
        f"VeRL counts an update in whole prompts; make --train-batch-size a multiple of {sampling.num_samples}.",
    )
    require(
        config.sequences_per_step % devices == 0 and training.train_batch_size % devices == 0,
        f"VeRL divides a step of {config.sequences_per_step} responses and an update of {training.train_batch_size} "
        f"among {devices} GPUs; choose --nodes and --gpus-per-node so that it can.",
    )
    require(
        config.task.task in GRADED,
        f"The reward of --task {config.task.task} is not exported; VeRL gets those of {', '.join(GRADED)}.",
    )
    require(
        not TEMPLATES[config.task.prompt_template].stop,
        f"VeRL has no stop strings, which --prompt-template {config.task.prompt_template} needs; choose another one.",
    )
    require(
        training.lr_scheduler != "linear",
        "VeRL has no linear decay; --lr-scheduler takes constant, constant_with_warmup and cosine_with_min_lr there.",
    )
    require(
        not sampling.ignore_no_eos,
        "VeRL cannot leave truncated responses out of the loss; --overlong-buffer punishes them there.",
    )
    require(
        not precision.lm_head_fp32, "VeRL computes the output head in the training dtype; leave --lm-head-fp32 out."
    )
    require(
        float(config.lora.lora_alpha).is_integer(), "VeRL takes a whole number for alpha; round --lora-alpha to one."
    )
    require(not config.model.router_fp32, "VeRL's FSDP routes in the training dtype; add --router-fp32 False.")
    require(
        precision.loss_scale == 0 and precision.initial_scale_power == 16 and precision.min_loss_scale == 1,
        "VeRL scales FP16's loss dynamically from 2^16 and takes no option for it; leave out those of loss scaling.",
    )
    require(
        objective.objective in EXPORTED,
        f"--objective {objective.objective} is not exported; VeRL gets one of {', '.join(EXPORTED)}.",
    )
    require(
        (objective.log_weight_clamp or 0) in (0, 20),
        "VeRL keeps the logarithm of an importance weight within +-20; --log-weight-clamp takes 20 or 0 there.",
    )
    _refuse_of_the_loss(config, devices)


def _refuse_of_the_loss(config: Config, devices: int) -> None:
    """What VeRL would take and make something else of: as `refuse_what_verl_lacks`."""
    options, name, training = config.objective, config.objective.objective, config.training
    two_policies, by_response = not OBJECTIVES[name].needs_pi_old, options.aggregation == "token-mean-sequence"
    require(not options.dppo_tau, "VeRL's DPPO adds no penalty to the loss; add --dppo-tau 0.")
    require(
        by_response or name not in ("gmpo", "sapo"),
        f"VeRL averages {name} over responses, whatever it is told; add --aggregation token-mean-sequence.",
    )
    whole = training.train_batch_size // devices
    require(
        name != "gmpo" or training.micro_batch_size == whole,
        "VeRL weighs each micro-batch of gmpo like a whole update, so that an update must be one of them; "
        f"add --micro-batch-size {whole}, or choose another --train-batch-size.",
    )
    require(
        not (options.is_batch_normalize and two_policies),
        f"VeRL divides the weights of {name} by their mean over a micro-batch, not over the step; leave "
        "--is-batch-normalize out.",
    )
    if not options.reject:
        return
    lacking = [made for made in options.reject if made not in REJECTIONS]
    require(not lacking, f"VeRL has no --reject {' '.join(lacking)}; it takes {', '.join(REJECTIONS)}.")
    require(
        not (two_policies and name in OWN_LOSS),
        f"VeRL rejects nothing where {name} takes the sampler for pi_old; leave --reject out.",
    )
    require(
        two_policies or options.beta == 0,
        f"With {name} VeRL leaves what is rejected out of the divergence from the reference, too; leave --beta out.",
    )
    require(
        "icepop" not in options.reject or not (by_response or name == "gspo"),
        "VeRL does not count the tokens that --reject icepop rejects in their response's length, which this "
        "--objective or --aggregation divides by; choose another.",
    )


def _data(config: Config) -> dict[str, object]:
    return {
        "data.train_batch_size": config.sampling.rollout_batch_size,
        "data.max_prompt_length": config.task.prompt_max_length,
        "data.max_response_length": config.sampling.generate_max_length,
        "data.seed": config.training.seed,
    }


def _precision(config: Config) -> dict[str, object]:
    """Both sides' dtypes. VeRL 0.9.1 reads the trainer's from fsdp_config.mixed_precision; fsdp_config.dtype, which its
    YAML offers for it, is read nowhere and would leave FSDP in BF16. Masters (model_dtype) are FP32, and so is what is
    reduced. With FP16 the engine scales the loss by itself (ShardedGradScaler, 2^16, window 400)."""
    made = {}
    for part in ("actor_rollout_ref.actor", "actor_rollout_ref.ref"):
        fsdp = f"{part}.fsdp_config"
        made |= {
            f"{fsdp}.model_dtype": "fp32",
            f"{fsdp}.dtype": DTYPES[config.precision.train_dtype],
            f"+{fsdp}.mixed_precision.param_dtype": config.precision.train_dtype,
            f"+{fsdp}.mixed_precision.reduce_dtype": "fp32",
            f"+{fsdp}.mixed_precision.buffer_dtype": "fp32",
        }
    return made | {"actor_rollout_ref.rollout.dtype": DTYPES[config.precision.sample_dtype]}


def _objective(config: Config) -> dict[str, object]:
    options, name = config.objective, config.objective.objective
    estimator, by_spread = ADVANTAGES[options.advantage]
    actor = "actor_rollout_ref.actor"
    made = {
        "algorithm.adv_estimator": estimator,
        "algorithm.norm_adv_by_std_in_grpo": by_spread,
        "algorithm.use_kl_in_reward": False,
        f"{actor}.loss_agg_mode": AGGREGATIONS[options.aggregation],
        f"{actor}.entropy_coeff": 0,
        f"{actor}.use_kl_loss": options.beta > 0,
    }
    if options.aggregation == "token-sum-constant":
        made[f"{actor}.loss_scale_factor"] = config.sampling.generate_max_length
    if options.beta > 0:
        made |= {f"{actor}.kl_loss_coef": options.beta, f"{actor}.kl_loss_type": "low_var_kl"}

    # Two policies (bypass_mode: VeRL's "old" policy is the sampler) or three (pi_old is recomputed). VeRL's V1 trainer
    # does not hand the correction to the loss, so that it is said twice: for the trainer and for the loss.
    two_policies = not OBJECTIVES[name].needs_pi_old
    level = POLICY_GRADIENTS.get(name, SURROGATES.get(name))
    rejections, thresholds = _rejections(config)
    correction = {
        "bypass_mode": two_policies,
        "loss_type": "reinforce" if name in POLICY_GRADIENTS else "ppo_clip",
        "rollout_is": level,
        "rollout_is_threshold": _threshold(config) if level else OFF,
        "rollout_rs": rejections,
        "rollout_rs_threshold": thresholds,
        "rollout_is_batch_normalize": options.is_batch_normalize,
    }
    made |= {f"algorithm.rollout_correction.{key}": value for key, value in correction.items()}
    loss_mode = OWN_LOSS.get(name, "bypass_mode" if two_policies else "vanilla")
    made[f"{actor}.policy_loss.loss_mode"] = loss_mode
    if loss_mode == "bypass_mode":
        made |= {f"+{actor}.policy_loss.rollout_correction.{key}": value for key, value in correction.items()}
    if name == "sapo":
        made |= {f"{actor}.tau_pos": options.sapo_tau_positive, f"{actor}.tau_neg": options.sapo_tau_negative}
    elif name not in POLICY_GRADIENTS:
        low, high = (options.dppo_delta,) * 2 if options.dppo_delta else (options.clip_low, options.clip_high)
        made |= {
            f"{actor}.clip_ratio": high,
            f"{actor}.clip_ratio_low": low,
            f"{actor}.clip_ratio_high": high,
            f"{actor}.clip_ratio_c": options.dual_clip or OFF,
        }
    return made


def _rejections(config: Config) -> tuple[str | None, str | None]:
    """VeRL's names of what rejects, and their thresholds in the same order: "low_high" on 1 / w, or a cap."""
    made = [REJECTIONS[rejection] for rejection in config.objective.reject]
    values = [[getattr(config.objective, threshold) for threshold in thresholds] for _, *thresholds in made]
    specs = [f"{1 / value[1]!r}_{1 / value[0]!r}" if len(value) == 2 else repr(value[0]) for value in values]
    return ",".join(mode for mode, *_ in made) or None, ",".join(specs) or None


def _threshold(config: Config) -> float | str:
    """A number truncates the weight; "low_high" sets it to 0 outside the band, which is masking."""
    options = config.objective
    if config.objective.objective == "icepop":
        return f"{options.icepop_low}_{options.icepop_high}"
    if options.mis_cap is not None:
        return f"{NEARLY_ZERO}_{options.mis_cap}"
    return OFF if options.tis_cap is None else options.tis_cap


def _sampling(config: Config) -> dict[str, object]:
    sampling, evaluation, rollout = config.sampling, config.evaluation, "actor_rollout_ref.rollout"
    made = {
        f"{rollout}.name": "vllm",
        f"{rollout}.n": sampling.num_samples,
        f"{rollout}.temperature": sampling.temperature,
        f"{rollout}.seed": config.training.seed,
        f"{rollout}.max_model_len": config.max_model_len,
        f"{rollout}.tensor_model_parallel_size": sampling.tensor_parallel,
        f"{rollout}.gpu_memory_utilization": sampling.vllm_gpu_ratio,
        f"{rollout}.free_cache_engine": sampling.vllm_sleep_level > 0,
        f"{rollout}.enforce_eager": sampling.enforce_eager,
        f"{rollout}.enable_prefix_caching": sampling.enable_prefix_caching,
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.val_kwargs.n": evaluation.eval_n,
        f"{rollout}.val_kwargs.temperature": evaluation.eval_temperature,
        f"{rollout}.val_kwargs.do_sample": evaluation.eval_temperature > 0,
        "algorithm.filter_groups.enable": sampling.dynamic_sampling,
        "algorithm.filter_groups.metric": "acc",
        "trainer.val_before_train": evaluation.eval_steps > 0,
        "trainer.test_freq": evaluation.eval_steps or -1,
    }
    if sampling.overlong_buffer:
        made |= {
            "reward.reward_manager.name": "dapo",
            "+reward.reward_kwargs.max_resp_len": sampling.generate_max_length,
            "+reward.reward_kwargs.overlong_buffer_cfg.enable": True,
            "+reward.reward_kwargs.overlong_buffer_cfg.len": sampling.overlong_buffer,
            "+reward.reward_kwargs.overlong_buffer_cfg.penalty_factor": 1.0,
            "+reward.reward_kwargs.overlong_buffer_cfg.log": True,
        }
    return made


def _training(config: Config) -> dict[str, object]:
    training, actor = config.training, "actor_rollout_ref.actor"
    scheduler = "cosine" if training.lr_scheduler == "cosine_with_min_lr" else "constant"
    warm_up = 0 if training.lr_scheduler == "constant" else training.lr_warmup_ratio
    made = {
        f"{actor}.ppo_mini_batch_size": training.train_batch_size // config.sampling.num_samples,
        f"{actor}.ppo_epochs": training.num_ppo_epochs,
        f"{actor}.shuffle": True,
        f"{actor}.data_loader_seed": training.seed,
        f"{actor}.grad_clip": training.max_norm,
        f"{actor}.optim.lr": training.learning_rate,
        f"{actor}.optim.betas": [training.adam_beta_1, training.adam_beta_2],
        f"{actor}.optim.weight_decay": training.weight_decay,
        f"{actor}.optim.clip_grad": training.max_norm,
        f"{actor}.optim.override_optimizer_config": {"eps": training.adam_eps},
        f"{actor}.optim.lr_scheduler_type": scheduler,
        f"{actor}.optim.min_lr_ratio": 0.1 if scheduler == "cosine" else 0.0,
        f"{actor}.optim.lr_warmup_steps_ratio": warm_up,
        f"{actor}.fsdp_config.reshard_after_forward": training.zero_stage == 3,
        "trainer.total_epochs": training.num_prompt_epoch,
        "trainer.total_training_steps": training.max_steps,
        "trainer.critic_warmup": 0,
    }
    if training.micro_batch_size is None:  # the sampler's and the reference's log-probabilities follow the actor's
        made |= {f"{actor}.use_dynamic_bsz": True, f"{actor}.ppo_max_token_len_per_gpu": training.micro_batch_tokens}
    else:
        made |= {
            f"{actor}.ppo_micro_batch_size_per_gpu": training.micro_batch_size,
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": training.micro_batch_size,
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": training.micro_batch_size,
        }
    if training.lr_warmup_steps is not None:
        made[f"{actor}.optim.lr_warmup_steps"] = training.lr_warmup_steps
    return made


def _model(config: Config) -> dict[str, object]:
    model = "actor_rollout_ref.model"
    made: dict[str, object] = {
        f"{model}.enable_gradient_checkpointing": config.model.gradient_checkpointing,
        f"{model}.trust_remote_code": config.model.trust_remote_code,
    }
    if config.lora.lora_rank > 0:
        made |= {
            f"{model}.lora_rank": config.lora.lora_rank,
            f"{model}.lora_alpha": int(config.lora.lora_alpha),
            f"{model}.target_modules": list(config.lora.lora_targets) or "all-linear",
        }
    if config.task.prompt_template != "chat":
        made[f"{model}.custom_chat_template"] = PASS_THROUGH
    return made


def as_override(key: str, value: object) -> str:
    """One override in Hydra's grammar. What is no plain word is quoted: Hydra reads 0.5_5 as the number 0.55.

    Example: ``as_override("a.b", "0.5_5") == "a.b='0.5_5'"``.
    """
    return f"{key}={_in_hydra(value)}"


def _in_hydra(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and PLAIN_WORD.fullmatch(value):
        return value
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, list):
        return "[" + ",".join(map(_in_hydra, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_in_hydra(each)}" for key, each in value.items()) + "}"
    return repr(value)
