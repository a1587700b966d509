"""The learner's options: one dataclass for each group of `--help`, which shows the line under each option.

A task's are in tasks/options.py, sampling's in actors/options.py. Names are Oat's, or the field's, wherever the idea is
the same. `None` means that something else decides: the model, the objective, the preset (learners/options/config.py).
"""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from learners.objectives import OBJECTIVES, RECIPES, REJECTIONS
from learners.objectives.advantages import ADVANTAGES
from learners.objectives.aggregation import Aggregation
from tasks.options import UNSAID, Chosen

EMBEDDED = "embedded"
LOSS_SCALING = ("loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale")


@dataclass
class OriginOptions:
    """Where the options come from that are not given."""

    preset: Chosen[str] = None
    """an experiment by name, whose values fill in what is not given; `train.py --list-presets` shows them all"""


@dataclass
class PrecisionOptions:
    """The one choice this project is about, and FP16's loss scaling."""

    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """of both engines: compute, cache and synchronisation; masters, optimiser and log-probabilities stay FP32"""
    train_dtype: Chosen[Literal["fp16", "bf16", "fp32"]] = None
    """of the learner alone, for ablations (default: --dtype)"""
    sample_dtype: Chosen[Literal["fp16", "bf16", "fp32"]] = None
    """of the sampler alone; it gets the FP32 master weights, cast (default: --dtype)"""
    lm_head_fp32: bool = False
    """compute the learner's last product, hidden states with the vocabulary, in FP32"""
    loss_scale: float = 0.0
    """FP16 only: 0 scales dynamically, any other number is a fixed scale (1 switches scaling off)"""
    initial_scale_power: int = 16
    """FP16 only: dynamic scaling starts at 2 to this power"""
    loss_scale_window: int = 1000
    """FP16 only: the scale doubles after so many updates without an overflow"""
    hysteresis: int = 2
    """FP16 only: this many overflows halve the scale, and so does each that follows"""
    min_loss_scale: int = 1
    """FP16 only: an overflow at this scale ends the run"""
    cpu_half: Literal["auto", "stock", "fp32-accumulate"] = "auto"
    """half products on a CPU: stock torch's, fp32-accumulate ours, auto ours unless native (docs/cpu-half.md)"""

    @property
    def label(self) -> str:
        """For names and tables: "fp16", or "bf16-train-fp32-sample" where the two sides differ."""
        if self.train_dtype == self.sample_dtype:
            return self.train_dtype
        return f"{self.train_dtype}-train-{self.sample_dtype}-sample"


@dataclass
class ModelOptions:
    """What is trained."""

    model: str = EMBEDDED
    """a Hugging Face model: local folder or hub id; "embedded" is the 0.8 M-parameter model of this repository"""
    trust_remote_code: bool = False
    """run Python code that comes with the model"""
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """the learner's attention; auto is sdpa on a GPU and eager on a CPU"""
    gradient_checkpointing: Chosen[bool] = None
    """recompute activations in the backward pass: less memory, a third more time (embedded model: no, else yes)"""
    router_fp32: bool = False
    """mixtures of experts only: compute the learner's router, logits and scores, in FP32"""


@dataclass
class ObjectiveOptions:
    """The loss."""

    objective: Literal[tuple(OBJECTIVES)] = "pg-seq-is"
    """policy gradients (reinforce, pg-...), clipped surrogates (grpo..., gspo, icepop), others: docs/objectives.md"""
    reject: Annotated[tuple[Literal[tuple(REJECTIONS)], ...], UNSAID] = ()
    """leave tokens or responses out of the loss where mu is too far off, one or more rules: docs/objectives.md"""
    recipe: Literal[tuple(RECIPES)] = "oat"
    """whose constants the options below default to: the paper's authors' in Oat or in VeRL, or another framework's"""
    advantage: Chosen[Literal[tuple(ADVANTAGES)]] = None
    """reward less the group's mean, less the others' mean, or also divided by the spread (default: by objective)"""
    aggregation: Chosen[Literal[get_args(Aggregation)]] = None
    """what divides the summed token losses: length limit, own length, or all tokens (default: by objective)"""
    clip_low: Chosen[float] = None
    """grpo..., icepop, gspo, cispo: the ratio is clipped below at 1 - clip_low (default: by objective)"""
    clip_high: Chosen[float] = None
    """grpo..., icepop, gspo, cispo: the ratio is clipped above at 1 + clip_high (default: by objective)"""
    dual_clip: Chosen[float] = None
    """grpo..., icepop: where A < 0 the loss is at most -A x dual_clip; above 1, 0 is off (default 0)"""
    tis_cap: Chosen[float] = None
    """...-tis: importance weights are truncated at it (default: by objective and recipe)"""
    mis_cap: Chosen[float] = None
    """...-mis: responses whose importance weight exceeds it are masked (default: by objective and recipe)"""
    log_weight_clamp: Chosen[float] = None
    """with an importance weight: its logarithm is kept within +- this; 0 is off (default: oat 0, verl 20)"""
    is_batch_normalize: bool = False
    """with an importance weight: divide it by its mean over the step (which takes pi_old)"""
    icepop_low: Chosen[float] = None
    """icepop: tokens with a smaller weight pi_old / mu are masked (default 0.5)"""
    icepop_high: Chosen[float] = None
    """icepop: tokens with a larger weight pi_old / mu are masked (default 5)"""
    dppo_delta: Chosen[float] = None
    """dppo-...: radius of the trust region around mu (default: tv 0.15, kl 0.05)"""
    dppo_tau: Chosen[float] = None
    """dppo-...: weight of (log pi/mu)^2, which is added; 0 is off (default: by recipe)"""
    sapo_tau_positive: Chosen[float] = None
    """sapo: how fast the gate closes where A > 0 (default 1)"""
    sapo_tau_negative: Chosen[float] = None
    """sapo: how fast the gate closes where A <= 0 (default 1.05)"""
    vespo_k_positive: Chosen[float] = None
    """vespo: k where A >= 0 (default 2)"""
    vespo_lambda_positive: Chosen[float] = None
    """vespo: lambda where A >= 0 (default 3)"""
    vespo_k_negative: Chosen[float] = None
    """vespo: k where A < 0 (default 3)"""
    vespo_lambda_negative: Chosen[float] = None
    """vespo: lambda where A < 0 (default 2)"""
    geo_low: Chosen[float] = None
    """--reject geo: smallest exp of a response's mean log ratio (default: by recipe)"""
    geo_high: Chosen[float] = None
    """--reject geo: largest exp of a response's mean log ratio (default: by recipe)"""
    k3_cap: Chosen[float] = None
    """--reject k3: largest mean of w - 1 - log w of a response (default 0.01)"""
    token_k2_cap: Chosen[float] = None
    """--reject max-token: largest (log w)^2 / 2 of a token (default 2.5)"""
    outlier_low: Chosen[float] = None
    """--reject outlier: smallest weight of a token (default 1e-4)"""
    outlier_high: Chosen[float] = None
    """--reject outlier: largest weight of a token (default 100)"""
    veto_below: Chosen[float] = None
    """--reject veto: smallest weight of a token (default 1e-4)"""
    opsm_delta: Chosen[float] = None
    """--reject opsm: where A < 0, largest mean of log mu - log pi of a response (default 0.5)"""
    kpop_cap: Chosen[float] = None
    """--reject kpop: largest Bernoulli KL divergence of a token, either way (default 2)"""
    m2_cap: Chosen[float] = None
    """--reject m2po: largest mean of (log w)^2 over the tokens that are left (default 0.04)"""
    beta: float = 0.0
    """weight of the KL divergence (k3) to the initial model, which then stays in memory"""


@dataclass
class TrainingOptions:
    """The learner: how DeepSpeed trains."""

    seed: int = 0
    """of everything: problems, order, sampling, shuffling"""
    max_steps: Chosen[int] = None
    """steps (sample, learn, synchronise) to run (embedded model: 60, else what num_prompt_epoch gives)"""
    num_prompt_epoch: int = 1
    """passes over the prompts when max_steps is not given"""
    train_batch_size: int = 128
    """responses per optimiser update, over all processes"""
    micro_batch_size: Chosen[int] = None
    """responses per forward and backward pass of one process (embedded model: 64, else by tokens)"""
    micro_batch_tokens: Chosen[int] = None
    """instead: most tokens per forward and backward pass, padding included; responses of about one length together
    (default of a real model: 16384, or one response of full length if that is more)"""
    train_on_all: bool = False
    """also pass responses backwards that cannot have a gradient, as all to their prompt earned the same"""
    num_ppo_epochs: int = 1
    """passes over the sampled responses of a step"""
    learning_rate: Chosen[float] = None
    """of AdamW (embedded model: 5e-5, else 1e-6; with adapters 1e-3 and 4e-5)"""
    lr_scheduler: Chosen[Literal["constant", "constant_with_warmup", "linear", "cosine_with_min_lr"]] = None
    """over the updates that were applied, a skipped one does not count (embedded model: linear, else constant)"""
    lr_warmup_ratio: Chosen[float] = None
    """share of the updates over which the rate rises from 0 (embedded model: 0.1, else 0)"""
    lr_warmup_steps: Chosen[int] = None
    """the same in steps instead (default: lr_warmup_ratio of all)"""
    adam_beta_1: float = 0.9
    adam_beta_2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    """of AdamW, on weight matrices"""
    max_norm: float = 1.0
    """the gradient is clipped to this norm, after unscaling"""
    zero_stage: Chosen[Literal[1, 2, 3]] = None
    """what DeepSpeed ZeRO shards: 1 optimiser state, 2 and gradients, 3 and parameters (default: the smallest that fits
    the GPUs; 1 on a CPU)"""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """GPU only: what ZeRO keeps in host memory, the optimiser's state or (stage 3) the parameters too"""


@dataclass
class MemoryOptions:
    """Whether a run fits into its GPUs, before anything starts."""

    plan: bool = False
    """print what each process would hold on its GPU, start nothing, and end: with code 0 if it fits, 2 if not"""
    plan_gpus: Chosen[int] = None
    """with --plan: of so many GPUs, a process each (default: the processes of this launch)"""
    plan_memory: Chosen[float] = None
    """with --plan: of so much memory each, GiB; nvidia-smi shows 79.6 on an 80 GB card (default: this machine's)"""


@dataclass
class LoraOptions:
    """Low-rank adapters, trained instead of the weights."""

    lora_rank: int = 0
    """rank of the adapters; 0 trains the whole model"""
    lora_alpha: Chosen[float] = None
    """what the adapters add is multiplied by alpha / rank (default: twice the rank)"""
    lora_targets: Annotated[tuple[str, ...], UNSAID] = ()
    """names of the layers that get one, such as q_proj v_proj (default: every linear layer but the head)"""
    lora_sync: Literal["merge", "adapter"] = "merge"
    """how the sampler gets them: merged into the weights in FP32 and cast once, or as vLLM's LoRA"""


@dataclass
class EvaluationOptions:
    """Accuracy on held-out problems."""

    eval_steps: int = 20
    """evaluate every so many steps, and before the first and after the last; 0 never does"""
    max_eval: Chosen[int] = None
    """at most so many test problems (embedded model: 256, else 512)"""
    eval_temperature: float = 0.0
    """0 is greedy"""
    eval_top_p: float = 1.0
    """sample from the likeliest tokens that make up this share of the probability"""
    eval_n: int = 1
    """responses per test problem"""
    eval_k: Chosen[int] = None
    """of pass@k, which is reported where eval_n is above 1 (default: eval_n)"""
    stop_when_passed: bool = False
    """sanity task only: end the run as soon as the sanity test is passed (docs/sanity.md)"""


@dataclass
class OutputOptions:
    """What a run leaves behind."""

    output_dir: Chosen[str] = None
    """new folder for everything a run writes (default: runs/<name>-<time>)"""
    name: Chosen[str] = None
    """of the run (default: <task>-<objective>-<dtype>)"""
    log_samples: int = 4
    """prompts whose responses are written to samples.jsonl at each step"""
    log_rollouts: int = 0
    """responses whose log-probabilities by both engines are kept at each step, in rollouts/, for scripts/doctor.py"""
    save_model: bool = True
    """write the trained model to <output-dir>/model, in Hugging Face format"""
    export: Chosen[str] = None
    """write the trained model to this folder too, whole (adapters merged)"""
    export_dtype: Chosen[Literal["fp16", "bf16", "fp32"]] = None
    """of the models that are written, cast from the FP32 master weights (default: the learner's)"""
    save_every: int = 20
    """write a checkpoint every so many steps; 0 only when the run is stopped by SIGTERM or SIGUSR1"""
    keep: int = 2
    """newest checkpoints that are kept"""
    resume: str = "auto"
    """auto goes on where --output-dir holds an unfinished run, never refuses that, a path names a checkpoint"""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases; auto is online with an API key and offline without"""
    wandb_project: str = "fp16-rl"
    wandb_group: Chosen[str] = None
    """what this run is grouped with"""
    wandb_tags: Annotated[tuple[str, ...], UNSAID] = ()
    """words to find it by"""
