"""A run's options, and what those stand for that are left to the model, the task, the objective or the device.

The embedded model and a real one want different batches, lengths and rates, which stand in one table, below. The
resolved options are what config.json holds.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from actors.devices import gpus
from actors.launch import Launch
from actors.options import SamplingOptions
from learners.objectives import defaults
from learners.options import groups
from tasks.arithmetic.model import CHECKPOINT
from tasks.options import TaskOptions
from tasks.registry import TASKS

# What `None` stands for: (the embedded model on two CPU cores, a real model as in the paper's sanity test).
DEFAULTS_BY_MODEL = {
    "model.gradient_checkpointing": (False, True),
    "task.prompt_max_length": (32, 1024),
    "sampling.generate_max_length": (24, 8192),
    "training.lr_scheduler": ("linear", "constant"),
    "training.lr_warmup_ratio": (0.1, 0.0),
    "training.max_steps": (60, None),
    "evaluation.max_eval": (256, 512),
}


@dataclass
class Config:
    """Fine-tune a language model with RL in one process: vLLM samples, DeepSpeed trains, both in --dtype.

    With no option it trains the embedded model on the embedded task on whatever device is there.
    """

    origin: groups.OriginOptions = field(default_factory=groups.OriginOptions)
    precision: groups.PrecisionOptions = field(default_factory=groups.PrecisionOptions)
    model: groups.ModelOptions = field(default_factory=groups.ModelOptions)
    task: TaskOptions = field(default_factory=TaskOptions)
    objective: groups.ObjectiveOptions = field(default_factory=groups.ObjectiveOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    training: groups.TrainingOptions = field(default_factory=groups.TrainingOptions)
    memory: groups.MemoryOptions = field(default_factory=groups.MemoryOptions)
    lora: groups.LoraOptions = field(default_factory=groups.LoraOptions)
    evaluation: groups.EvaluationOptions = field(default_factory=groups.EvaluationOptions)
    output: groups.OutputOptions = field(default_factory=groups.OutputOptions)

    @property
    def is_embedded(self) -> bool:
        return self.model.model == groups.EMBEDDED

    @property
    def is_small(self) -> bool:
        """Whether it is the embedded model, also by its path: then its batches, lengths and rates are the defaults."""
        return self.is_embedded or Path(self.model.model).resolve() == CHECKPOINT.resolve()

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
    def needs_memory_plan(self) -> bool:
        """Whether memory decides: a real model on a GPU, or planned for one. The embedded model always fits."""
        return not self.is_small and (self.memory.plan or bool(gpus()))

    @property
    def max_model_len(self) -> int:
        """Longest prompt and response together, in tokens."""
        return self.task.prompt_max_length + self.sampling.generate_max_length

    def has(self, name: str) -> bool:
        """Whether one of the groups holds an option of that name."""
        return any(name in vars(group) for group in vars(self).values())

    def option(self, name: str) -> tuple[object, str]:
        """The group that holds an option, and its name: what getattr and setattr take."""
        return next(group for group in vars(self).values() if name in vars(group)), name

    def resolve(self) -> None:
        """Fill in every option that was left to the model, the task, the objective or the device; not the ZeRO stage
        where memory decides. At most a card.json is read, and nvidia-smi asked."""
        for path, (embedded, real) in DEFAULTS_BY_MODEL.items():
            group, name = path.split(".")
            if getattr(getattr(self, group), name) is None:
                setattr(getattr(self, group), name, embedded if self.is_small else real)
        training, precision, objective = self.training, self.precision, self.objective
        if training.micro_batch_size is None and training.micro_batch_tokens is None:
            if self.is_small:
                training.micro_batch_size = 64
            else:
                training.micro_batch_tokens = max(16384, self.max_model_len)
        if self.sampling.vllm_sleep_level is None:
            level = 1 if self.lora.lora_sync == "adapter" else 2  # level 2 drops a base that adapters do not bring
            self.sampling.vllm_sleep_level = level if self.needs_memory_plan else 0
        if training.zero_stage is None and training.offload == "parameters":
            training.zero_stage = 3
        elif training.zero_stage is None and not self.needs_memory_plan:
            training.zero_stage = 1
        if training.learning_rate is None:
            whole, adapters = (5e-5, 1e-3) if self.is_small else (1e-6, 4e-5)
            training.learning_rate = adapters if self.lora.lora_rank > 0 else whole
        if self.lora.lora_alpha is None:
            self.lora.lora_alpha = 2.0 * self.lora.lora_rank
        precision.train_dtype = precision.train_dtype or precision.dtype
        precision.sample_dtype = precision.sample_dtype or precision.dtype
        self.output.export_dtype = self.output.export_dtype or precision.train_dtype
        if self.task.prompt_template is None:
            usual = TASKS[self.task.task].template(self.task.data)
            self.task.prompt_template = "no" if usual == "chat" and self.is_small else usual  # it knows no chat
        if self.sampling.max_sampling_rounds is None and self.sampling.dynamic_sampling:
            self.sampling.max_sampling_rounds = 10
        for name, default in defaults(objective.objective, objective.recipe, objective.reject).items():
            if getattr(objective, name) is None:
                setattr(objective, name, default)
        self.evaluation.eval_k = self.evaluation.eval_k or self.evaluation.eval_n
        if self.output.name is None:
            self.output.name = f"{self.origin.preset or self.task.task}-{objective.objective}-{precision.label}"

    def planned_launch(self) -> Launch | None:
        """The processes that ``--plan-gpus`` asks about, eight a machine; None without it."""
        count = self.memory.plan_gpus
        return None if count is None else Launch(world_size=count, local_world_size=min(count, 8))

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)
