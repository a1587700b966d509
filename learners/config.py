"""Every option of a run: one dataclass for each group of `--help`, checked before anything heavy is imported.

Names are Oat's, or the field's, wherever the idea is the same. `None` means "by the model": the embedded model and a
real one want different batches, lengths and rates, and `Config.resolve` fills them in from one table, below. The
resolved options are what config.json holds. A preset (learners/presets.py) fills in what the command line leaves out.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

import tyro

from actors.launch import Launch
from learners.advantages import ADVANTAGES
from learners.aggregation import Aggregation
from learners.checks import check
from learners.objectives import OBJECTIVES, RECIPES, defaults
from learners.presets import fill_in
from tasks.arithmetic.model import CHECKPOINT
from tasks.arithmetic.problems import EMBEDDED_LEVELS
from tasks.registry import TASKS
from tasks.templates import TEMPLATES

EMBEDDED = "embedded"

# What `None` stands for: (the embedded model on two CPU cores, a real model as in the paper's sanity test).
DEFAULTS_BY_MODEL = {
    "task.prompt_max_length": (32, 1024),
    "sampling.generate_max_length": (24, 8192),
    "sampling.rollout_batch_size": (64, 64),
    "sampling.num_samples": (8, 8),
    "training.train_batch_size": (128, 128),
    "training.lr_scheduler": ("linear", "constant"),
    "training.lr_warmup_ratio": (0.1, 0.0),
    "training.max_steps": (60, None),
    "evaluation.eval_steps": (20, 20),
    "evaluation.max_eval": (256, 512),
}


@dataclass
class OriginOptions:
    """Where the options come from that are not given."""

    preset: str | None = None
    """an experiment by name, whose values fill in what is not given; `train.py --list-presets` shows them all"""


@dataclass
class PrecisionOptions:
    """The one choice this project is about, and FP16's loss scaling."""

    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """of both engines: compute, cache and synchronisation; masters, optimiser and log-probabilities stay FP32"""
    train_dtype: Literal["fp16", "bf16", "fp32"] | None = None
    """of the learner alone, for ablations (default: --dtype)"""
    sample_dtype: Literal["fp16", "bf16", "fp32"] | None = None
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
    """FP16 only: the scale is halved at the so-manieth overflow, and at each that follows"""
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
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""
    router_fp32: bool = False
    """mixtures of experts only: compute the learner's router, logits and scores, in FP32"""


@dataclass
class TaskOptions:
    """What is learned: prompts, references and the reward."""

    task: Literal[tuple(TASKS)] = "arithmetic"
    """arithmetic is embedded; math any dataset; sanity a set of partly solved problems; others: docs/tasks.md"""
    data: tuple[str, ...] = ()
    """not arithmetic: one or more of hub name (NAME or NAME:CONFIGURATION), folder, .jsonl, .json, .parquet, .csv file;
    reasoning-gym: a generator"""
    data_weights: tuple[float, ...] = ()
    """shares of several --data in an epoch, as 2 1; as much as the scarcest allows (default: all of each, once)"""
    eval_data: str | None = None
    """math, sanity: where evaluation problems come from (default for math: the test split of --data, if it has one)"""
    input_key: str = "problem"
    """math, sanity: column of the question; "outer.inner" is a field within one"""
    output_key: str = "answer"
    """math, sanity: column of the reference answer, likewise"""
    prompt_template: Literal[tuple(TEMPLATES)] | None = None
    """how a question becomes a prompt (default: arithmetic no, math chat, sanity its card's, reasoning-gym r1)"""
    prompt_max_length: int | None = None
    """longer prompts are dropped, and counted; tokens (embedded model: 32, else 1024)"""
    train_problems: int = 2048
    """arithmetic, reasoning-gym: number of training problems"""
    arithmetic_levels: tuple[int, ...] = EMBEDDED_LEVELS
    """arithmetic only: which additions; 0: one digit each, 1: two, 2: three and two, 3: three"""


@dataclass
class SamplingOptions:
    """The actor: how vLLM samples."""

    rollout_batch_size: int | None = None
    """prompts per step, over all processes (default 64)"""
    num_samples: int | None = None
    """responses per prompt: the group that the advantage is computed in (default 8)"""
    generate_max_length: int | None = None
    """a response is cut here, and then earns 0; tokens (embedded model: 24, else 8192)"""
    temperature: float = 1.0
    """of the sampled distribution; pi is evaluated at the same temperature"""
    vllm_gpu_ratio: float = 0.35
    """share of a GPU's memory that vLLM takes"""
    vllm_sleep_level: Literal[0, 1, 2] = 0
    """GPU only: while the learner works vLLM drops its cache and (1) moves its weights to the host or (2) drops them"""
    tensor_parallel: int = 1
    """processes that share one vLLM engine; they must be on one machine"""
    enforce_eager: bool = False
    """run vLLM without compilation and CUDA graphs (on a CPU it always does)"""
    enable_prefix_caching: bool = False
    """share the cache of common prompt prefixes; it is emptied at every synchronisation"""
    ignore_no_eos: bool = False
    """leave truncated responses out of the loss instead of training on reward 0"""
    dynamic_sampling: bool = False
    """drop prompts whose responses all earn the same and sample further ones until the batch is full (DAPO)"""
    max_sampling_rounds: int | None = None
    """dynamic sampling only: at most so many rounds a step; dropped prompts then fill the batch (default 10)"""
    overlong_buffer: int = 0
    """of the last so many tokens of generate_max_length each costs 1/so many of reward (DAPO); tokens, 0 is off"""


@dataclass
class ObjectiveOptions:
    """The loss."""

    objective: Literal[tuple(OBJECTIVES)] = "pg-seq-is"
    """policy gradients (reinforce, pg-...), clipped surrogates (grpo..., gspo, icepop), others: docs/objectives.md"""
    recipe: Literal[tuple(RECIPES)] = "oat"
    """whose constants the options below default to: the paper's authors' in Oat or in VeRL"""
    advantage: Literal[tuple(ADVANTAGES)] | None = None
    """reward less the group's mean, less the others' mean, or also divided by the spread (default: by objective)"""
    aggregation: Literal[get_args(Aggregation)] | None = None
    """what divides the summed token losses: length limit, own length, or all tokens (default: by objective)"""
    clip_low: float | None = None
    """grpo..., icepop, gspo, cispo: the ratio is clipped below at 1 - clip_low (default: by objective)"""
    clip_high: float | None = None
    """grpo..., icepop, gspo, cispo: the ratio is clipped above at 1 + clip_high (default: by objective)"""
    dual_clip: float | None = None
    """grpo..., icepop: where A < 0 the loss is at most -A x dual_clip; above 1, 0 is off (default 0)"""
    tis_cap: float | None = None
    """...-tis: importance weights are truncated at it (default: by objective and recipe)"""
    mis_cap: float | None = None
    """...-mis: responses whose importance weight exceeds it are masked (default: by objective and recipe)"""
    log_weight_clamp: float | None = None
    """with an importance weight: its logarithm is kept within +- this; 0 is off (default: oat 0, verl 20)"""
    icepop_low: float | None = None
    """icepop: tokens with a smaller weight pi_old / mu are masked (default 0.5)"""
    icepop_high: float | None = None
    """icepop: tokens with a larger weight pi_old / mu are masked (default 5)"""
    dppo_delta: float | None = None
    """dppo-...: radius of the trust region around mu (default: tv 0.15, kl 0.05)"""
    beta: float = 0.0
    """weight of the KL divergence (k3) to the initial model, which then stays in memory"""


@dataclass
class TrainingOptions:
    """The learner: how DeepSpeed trains."""

    seed: int = 0
    """of everything: problems, order, sampling, shuffling"""
    max_steps: int | None = None
    """steps (sample, learn, synchronise) to run (embedded model: 60, else what num_prompt_epoch gives)"""
    num_prompt_epoch: int = 1
    """passes over the prompts when max_steps is not given"""
    train_batch_size: int | None = None
    """responses per optimiser update, over all processes (default 128)"""
    micro_batch_size: int | None = None
    """responses per forward and backward pass of one process (embedded model: 64, else 1 unless by tokens)"""
    micro_batch_tokens: int | None = None
    """instead: most tokens per forward and backward pass, padding included; responses of about one length together"""
    num_ppo_epochs: int = 1
    """passes over the sampled responses of a step"""
    learning_rate: float | None = None
    """of AdamW (embedded model: 5e-5, else 1e-6; with adapters 1e-3 and 4e-5)"""
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine_with_min_lr"] | None = None
    """over the updates that were applied, a skipped one does not count (embedded model: linear, else constant)"""
    lr_warmup_ratio: float | None = None
    """share of the updates over which the rate rises from 0 (embedded model: 0.1, else 0)"""
    lr_warmup_steps: int | None = None
    """the same in steps instead (default: lr_warmup_ratio of all)"""
    adam_beta_1: float = 0.9
    adam_beta_2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    """of AdamW, on weight matrices"""
    max_norm: float = 1.0
    """the gradient is clipped to this norm, after unscaling"""
    zero_stage: Literal[1, 2, 3] = 2
    """what DeepSpeed ZeRO shards: 1 optimiser state, 2 and gradients, 3 and parameters"""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """GPU only: what ZeRO keeps in host memory, the optimiser's state or (stage 3) the parameters too"""


@dataclass
class LoraOptions:
    """Low-rank adapters, trained instead of the weights."""

    lora_rank: int = 0
    """rank of the adapters; 0 trains the whole model"""
    lora_alpha: float | None = None
    """what the adapters add is multiplied by alpha / rank (default: twice the rank)"""
    lora_targets: tuple[str, ...] = ()
    """names of the layers that get one, such as q_proj v_proj (default: every linear layer but the head)"""
    lora_sync: Literal["merge", "adapter"] = "merge"
    """how the sampler gets them: merged into the weights in FP32 and cast once, or as vLLM's LoRA"""


@dataclass
class EvaluationOptions:
    """Accuracy on held-out problems."""

    eval_steps: int | None = None
    """evaluate every so many steps, and before the first and after the last; 0 never does (default 20)"""
    max_eval: int | None = None
    """at most so many test problems (embedded model: 256, else 512)"""
    eval_temperature: float = 0.0
    """0 is greedy"""
    eval_top_p: float = 1.0
    """sample from the likeliest tokens that make up this share of the probability"""
    eval_n: int = 1
    """responses per test problem"""
    eval_k: int | None = None
    """of pass@k, which is reported where eval_n is above 1 (default: eval_n)"""
    stop_when_passed: bool = False
    """sanity task only: end the run as soon as the sanity test is passed (docs/sanity.md)"""


@dataclass
class OutputOptions:
    """What a run leaves behind."""

    output_dir: str | None = None
    """new folder for everything a run writes (default: runs/<name>-<time>)"""
    name: str | None = None
    """of the run (default: <task>-<objective>-<dtype>)"""
    log_samples: int = 4
    """prompts whose responses are written to samples.jsonl at each step"""
    save_model: bool = True
    """write the trained model to <output-dir>/model, in Hugging Face format"""
    export: str | None = None
    """write the trained model to this folder too, whole (adapters merged)"""
    export_dtype: Literal["fp16", "bf16", "fp32"] | None = None
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
    wandb_group: str | None = None
    wandb_tags: tuple[str, ...] = ()


@dataclass
class Config:
    """Fine-tune a language model with RL in one process: vLLM samples, DeepSpeed trains, both in --dtype.

    With no option it trains the embedded model on the embedded task on whatever device is there.
    """

    origin: OriginOptions = field(default_factory=OriginOptions)
    precision: PrecisionOptions = field(default_factory=PrecisionOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    task: TaskOptions = field(default_factory=TaskOptions)
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    @property
    def is_embedded(self) -> bool:
        return self.model.model == EMBEDDED

    @property
    def model_path(self) -> str:
        """Folder or hub id to load the model and its tokenizer from."""
        return str(CHECKPOINT) if self.is_embedded else self.model.model

    @property
    def sequences_per_step(self) -> int:
        return self.sampling.rollout_batch_size * self.sampling.num_samples

    @property
    def updates_per_step(self) -> int:
        return self.sequences_per_step // self.training.train_batch_size * self.training.num_ppo_epochs

    def warmup_updates(self, updates: int) -> int:
        """Of so many updates, those over which the learning rate rises."""
        steps = self.training.lr_warmup_steps
        return round(updates * self.training.lr_warmup_ratio) if steps is None else steps * self.updates_per_step

    @property
    def sleeps(self) -> bool:
        """Whether vLLM sleeps while the learner works."""
        return self.sampling.vllm_sleep_level > 0

    @property
    def max_model_len(self) -> int:
        """Longest prompt and response together, in tokens."""
        return self.task.prompt_max_length + self.sampling.generate_max_length

    @property
    def groups(self) -> list:
        """The dataclasses of options, in the order of --help."""
        return list(vars(self).values())

    def has(self, name: str) -> bool:
        """Whether one of the groups holds an option of that name."""
        return any(name in vars(group) for group in self.groups)

    def option(self, name: str) -> tuple[object, str]:
        """The group that holds an option, and its name: what getattr and setattr take."""
        return next(group for group in self.groups if name in vars(group)), name

    def resolve(self) -> None:
        """Fill in every option that was left to the model, the task or the objective. At most a card.json is read."""
        for path, (embedded, real) in DEFAULTS_BY_MODEL.items():
            group, name = path.split(".")
            if getattr(getattr(self, group), name) is None:
                setattr(getattr(self, group), name, embedded if self.is_embedded else real)
        if self.training.micro_batch_size is None and self.training.micro_batch_tokens is None:
            self.training.micro_batch_size = 64 if self.is_embedded else 1
        if self.training.learning_rate is None:
            whole, adapters = (5e-5, 1e-3) if self.is_embedded else (1e-6, 4e-5)
            self.training.learning_rate = adapters if self.lora.lora_rank > 0 else whole
        if self.lora.lora_alpha is None:
            self.lora.lora_alpha = 2.0 * self.lora.lora_rank
        self.output.export_dtype = self.output.export_dtype or self.precision.train_dtype or self.precision.dtype
        if self.task.prompt_template is None:
            self.task.prompt_template = TASKS[self.task.task].template(self.task)
        if self.sampling.max_sampling_rounds is None and self.sampling.dynamic_sampling:
            self.sampling.max_sampling_rounds = 10
        for name, default in defaults(self.objective.objective, self.objective.recipe).items():
            if getattr(self.objective, name) is None:
                setattr(self.objective, name, default)
        self.evaluation.eval_k = self.evaluation.eval_k or self.evaluation.eval_n
        precision = self.precision
        precision.train_dtype = precision.train_dtype or precision.dtype
        precision.sample_dtype = precision.sample_dtype or precision.dtype
        if self.output.name is None:
            self.output.name = f"{self.origin.preset or self.task.task}-{self.objective.objective}-{precision.label}"

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def parse(arguments: list[str] | None = None, launch: Launch | None = None) -> Config:
    """Turn a command line into a resolved, checked configuration.

    Hyphens and underscores, ``--flag value``, ``--flag=value`` and ``--flag False`` are all understood, which is what
    W&B sweeps send.

    Raises:
        SystemExit: with code 2 on an unknown option or value (printed by tyro), 0 after ``--help``.
        UsageError: options that contradict each other or that a later step would trip over.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    config = tyro.cli(
        Annotated[Config, tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff],
        args=arguments,
        prog="train.py",
    )
    return complete(config, arguments, launch)


def complete(config: Config, arguments: list[str], launch: Launch | None = None) -> Config:
    """Fill in what the command line left out, from the preset and by the model, and check the whole.

    Args:
        config: as parsed.
        arguments: the words that it was parsed from; an option that they name is never overruled.
        launch: the processes of the run (default: what torchrun or srun started here).

    Raises:
        UsageError: as in `parse`.
    """
    if config.origin.preset is not None:
        named = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in arguments if word.startswith("--")}
        chosen = {name: getattr(*config.option(name)) for name in named if config.has(name)}
        for name, value in fill_in(config.origin.preset, chosen).items():
            setattr(*config.option(name), value)
    asked_for = dataclasses.asdict(config)
    config.resolve()
    check(config, asked_for, launch or Launch.from_environment())
    return config
