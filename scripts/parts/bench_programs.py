"""The programs that scripts/bench.py times, each in a process of its own: this project's steps, vLLM alone, TRL.

Each takes a `Setting` and the number of steps, and returns seconds of every step after the first, by name.
"""

import os
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """What all programs do alike: so many prompts of the embedded task a step, updates on a quarter of the responses.

    Example: 64 prompts x 8 responses, in 4 updates of 128, in micro-batches of 64.
    """

    model: str
    prompts: int = 64
    samples: int = 8
    max_tokens: int = 24
    micro_batch: int = 64

    @property
    def update(self) -> int:
        """Responses of an update."""
        return self.prompts * self.samples // 4

    @property
    def options(self) -> list[str]:
        """Of train.py."""
        return [
            f"--model={self.model}", "--prompt-template=no", "--prompt-max-length=32",
            f"--generate-max-length={self.max_tokens}", f"--rollout-batch-size={self.prompts}",
            f"--num-samples={self.samples}", f"--train-batch-size={self.update}",
            f"--micro-batch-size={self.micro_batch}", "--learning-rate=1e-5", "--max-steps=100", "--wandb=disabled",
        ]  # fmt: skip


def ours(setting: Setting, steps: int, started: float, options: tuple[str, ...] = (), pairs: bool = False) -> dict:
    """This project's step and its parts, and how long the first token took.

    Args:
        started: when this process was started, `time.time()`.
        options: of train.py, beside the setting's.
        pairs: also the learner without pi_old over the learner with it.
    """
    import train
    from learners.command_line import parse
    from learners.record.run_log import NoLog

    config = parse([*setting.options, *options])
    task, prompts, eval_prompts = train.load_task(config)
    train.prepare(config)
    learner = train.build(config, task, prompts, eval_prompts, NoLog(Path(tempfile.gettempdir())))
    one_token = learner.actor.sampling_params.clone()
    one_token.n = one_token.max_tokens = 1
    learner.actor.engine.generate([prompts[0].token_ids], one_token)
    rows, first_token = [], time.time() - started
    for step in range(1, steps + 2):
        begun = time.perf_counter()
        sampled = learner.collect(step)
        times = {"actor": time.perf_counter() - begun}
        times["tokens"] = int(sampled.batch.response_mask.sum())
        times["sampled"] = times["tokens"] / times["actor"]
        begun = time.perf_counter()
        learner.learn(sampled)
        times["learn"] = time.perf_counter() - begun
        times["sync"] = learner.sync_params_to_actors()
        times["step"] = times["actor"] + times["learn"] + times["sync"]
        if pairs:
            times["without_pi_old"] = _share_without_pi_old(learner, sampled)
        rows.append(times)
    learner.close()
    task.close()
    return {name: [row[name] for row in rows[1:]] for name in rows[0]} | {"first_token": [first_token]}


def _share_without_pi_old(learner, step) -> float:
    """The learner's time with an objective that does not need pi_old, over its time with one that does, on the same
    responses, one right after the other."""
    from dataclasses import replace

    from learners.objectives import OBJECTIVES
    from learners.rollouts.step import Step

    seconds, kept = {}, (learner.updater.objective, learner.updater.thresholds)
    for name in ("pg-seq-is", "grpo"):
        learner.updater.objective, learner.updater.thresholds = OBJECTIVES[name], {}
        begun = time.perf_counter()
        learner.learn(Step(step.number, replace(step.batch, old_logp=None), times={}))
        seconds[name] = time.perf_counter() - begun
    learner.updater.objective, learner.updater.thresholds = kept
    return seconds["pg-seq-is"] / seconds["grpo"]


def vllm_alone(setting: Setting, steps: int, started: float, compiled: bool = False) -> dict:
    """vLLM as it is installed, FP32, on the prompts and with the parameters of our first step."""
    del started
    _quieten_vllm()
    import vllm

    from tasks.arithmetic.problems import generate

    llm = vllm.LLM(
        model=setting.model, dtype="float32", max_model_len=32 + setting.max_tokens, seed=0, disable_log_stats=True,
        max_num_seqs=setting.prompts * setting.samples, logprobs_mode="processed_logprobs", enforce_eager=not compiled,
    )  # fmt: skip
    tokenizer = llm.get_tokenizer()
    questions = [p.question for p in generate(2048, 0)[: setting.prompts]]
    prompts = [{"prompt_token_ids": tokenizer(question)["input_ids"]} for question in questions]
    rows = []
    for step in range(steps + 1):
        params = [
            vllm.SamplingParams(n=setting.samples, max_tokens=setting.max_tokens, logprobs=0, seed=1000 * step + place)
            for place in range(setting.prompts)
        ]
        begun = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begun
        rows.append(sum(len(made.token_ids) for output in outputs for made in output.outputs) / seconds)
    return {"sampled": rows[1:]}


def trl(setting: Setting, steps: int, started: float, with_vllm: bool) -> dict:
    """TRL's GRPO in FP32, its sampler vLLM in the same process or Hugging Face's generate."""
    del started
    _quieten_vllm()
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29471",
    }
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from actors.engine import keep_linear_weights_in_place
    from tasks.arithmetic.problems import generate
    from tasks.boxed import last_boxed

    problems = generate(2048, 0)
    data = datasets.Dataset.from_dict(
        {"prompt": [p.question for p in problems], "answer": [p.answer for p in problems]}
    )

    def reward(completions, answer, **_):
        return [float((last_boxed(c) or "").strip() == a) for c, a in zip(completions, answer, strict=True)]

    ends = [time.perf_counter()]

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(time.perf_counter())

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        keep_linear_weights_in_place()  # without it TRL cannot load new weights into vLLM on a CPU with AVX-512
    micro_batches = setting.update // setting.micro_batch
    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=not on_gpu, bf16=False, fp16=False, report_to="none",
        per_device_train_batch_size=setting.micro_batch, gradient_accumulation_steps=micro_batches,
        steps_per_generation=4 * micro_batches, num_generations=setting.samples,
        max_completion_length=setting.max_tokens, max_steps=4 * (steps + 1), learning_rate=1e-5, beta=0.0,
        loss_type="dr_grpo", temperature=1.0, use_vllm=with_vllm, vllm_mode="colocate", save_strategy="no",
        vllm_gpu_memory_utilization=0.3, logging_steps=1000, disable_tqdm=True, gradient_checkpointing=False,
        vllm_importance_sampling_correction=with_vllm, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(setting.model),
        reward_funcs=reward, args=arguments, train_dataset=data, callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return {"step": [end - begun for begun, end in pairwise(ends[4::4])]}  # a step of ours is four updates


def _quieten_vllm() -> None:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


PROGRAMS = {"ours": ours, "vllm": vllm_alone, "trl": trl}


def run(spec: dict) -> dict:
    """What `describe` described, run in this process."""
    return PROGRAMS[spec["program"]](Setting(**spec["setting"]), spec["steps"], spec["started"], **spec["more"])


def describe(program: str, setting: Setting, steps: int, **more) -> dict:
    """A program, its setting and its arguments as JSON takes them."""
    return {"program": program, "setting": asdict(setting), "steps": steps, "started": time.time(), "more": more}
