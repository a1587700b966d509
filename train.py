"""Fine-tune a language model with RL: `python train.py --dtype fp16`.

The way of the data: command line -> config -> task (prompts, reward), actor (vLLM samples), learner (DeepSpeed trains)
-> learner.run(). Everything that a user can get wrong is refused before an engine is imported or a file is written.
"""

import math
import sys
import time

STARTED = time.perf_counter()

from actors.launch import Launch, is_first
from actors.startup import importing, let_threads_sleep
from learners.command_line import parse
from learners.options.config import Config
from learners.options.presets import table
from tasks.errors import NonFiniteError, UsageError, require

let_threads_sleep()


def main(arguments: list[str] | None = None) -> int:
    """Run as told; returns the exit code: 0 done or stopped in good order, 2 refused, 130 interrupted, 1 failed."""
    if "--list-presets" in (sys.argv[1:] if arguments is None else arguments):
        print(table())
        return 0
    try:
        config = parse(arguments)
        if config.needs_memory_plan:
            from learners.memory import advice

            plan, sentence = advice.plan_for(config, config.planned_launch() or Launch.from_environment())
            if config.memory.plan:
                if is_first():
                    print(advice.table(plan), flush=True)
                require(not sentence, sentence)
                return 0
            require(not sentence, f"{sentence.removesuffix('.')} (--plan True shows the sum).")
        task, prompts, eval_prompts = load_task(config)
    except UsageError as error:
        return refuse(error)
    try:
        return train(config, task, prompts, eval_prompts)
    except UsageError as error:
        return refuse(error)
    finally:
        task.close()


def refuse(error: UsageError) -> int:
    if is_first():
        sys.stdout.flush()
        print(f"train.py: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(3)  # a launcher ends all processes with the first that leaves: let that one have spoken
    return 2


def load_task(config: Config):
    """The task, and its prompts tokenized for the model. No engine is needed for either.

    Raises:
        UsageError: the data or the tokenizer will not do.
    """
    with importing():
        from tasks.prompts import PromptStream, build_prompts, load_tokenizer
        from tasks.registry import TASKS

    task = TASKS[config.task.task].build(config)
    tokenizer = load_tokenizer(config.model_path, config.model.trust_remote_code)
    limit = config.task.prompt_max_length
    prompts, dropped = build_prompts(task.train, task.template, tokenizer, limit)
    eval_prompts, eval_dropped = build_prompts(task.test, task.template, tokenizer, limit)
    PromptStream(prompts, config.sampling.rollout_batch_size, config.training.seed)  # enough of them?
    say = print if is_first() else lambda *_, **__: None
    say(f"task {task.name}: {len(prompts)} training prompts, {len(eval_prompts)} held out", end="")
    say(f"; dropped {dropped} + {eval_dropped} longer than {limit} tokens" if dropped + eval_dropped else "")
    return task, prompts, eval_prompts


def train(config: Config, task, prompts, eval_prompts) -> int:
    """Bring both engines up, train, and leave a summary whatever happens. Returns the exit code."""
    if is_first():
        print("loading vLLM and DeepSpeed (some 10 s) ...", flush=True)
    marks = {"command line and task": time.perf_counter()}
    prepare(config)
    from actors import runtime
    from learners.checkpoints.interruption import Stopped

    log, checkpoint = open_log(config, {"train_prompts": len(prompts), "eval_prompts": len(eval_prompts)})
    status, learner = "failed", None
    try:
        learner = build(config, task, prompts, eval_prompts, log, marks)
        if checkpoint is not None:
            learner.resume(checkpoint)
        learner.interruption.listen()
        log.started_up(STARTED, marks)
        learner.run()
        status = "finished"
    except Stopped as stopped:
        log.say(f"train.py: {stopped}")
        status = "stopped"
    except KeyboardInterrupt:
        status = "interrupted"
    except NonFiniteError as error:  # of several processes, perhaps this one's alone
        log.say(f"train.py: {error}")
        if not is_first():
            print(f"train.py: {error}", file=sys.stderr, flush=True)
    finally:
        log.finish(status, learner.skipped_updates if learner else 0)
    if learner is not None and (status != "failed" or learner.processes.world_size == 1):
        # A process that failed alone leaves at once, for its launcher to end the others: they wait for it.
        learner.close()
        runtime.leave_process_group()
    return {"finished": 0, "stopped": 0, "interrupted": 130, "failed": 1}[status]


def open_log(config: Config, notes: dict):
    """The run's record (on the first process; a silent one on the others) and the checkpoint it goes on from, if any.

    Raises:
        UsageError: the checkpoint that ``--resume`` names is damaged.
    """
    from actors.processes import from_first
    from learners.checkpoints.folders import find_checkpoint
    from learners.checkpoints.training_state import log_state
    from learners.record.run_log import NoLog, RunLog, default_folder

    folder = from_first(default_folder(config))
    checkpoint, complaints = find_checkpoint(folder, config.output.resume)
    if not is_first():
        return NoLog(folder), checkpoint
    log = RunLog(config, folder, notes, resumed=log_state(checkpoint) if checkpoint else None)
    for complaint in complaints:
        log.say(f"WARNING: {complaint}")
    if checkpoint is not None:
        log.say(f"going on from {checkpoint}")
    return log, checkpoint


def prepare(config: Config) -> None:
    """Make the engines importable on this device, in this precision, and join the other processes; before `build`.

    Raises:
        UsageError: an option needs a GPU and there is none.
    """
    with importing():
        from actors import runtime
        from learners.options.precision import Precision

        precision = Precision.of(config.precision)
        runtime.prepare({precision.train, precision.sample}, config.precision.cpu_half)
    for option, asked in (
        ("--offload", config.training.offload != "none"),
        ("--vllm-sleep-level", config.sampling.vllm_sleep_level > 0),
    ):
        require(
            not asked or runtime.device().type == "cuda",
            f"{option} moves memory between a GPU and its host, and there is no GPU here; leave it out.",
        )
    runtime.init_process_group()


def build(config: Config, task, prompts, eval_prompts, log, marks: dict | None = None):
    """The learner with its actor attached, both on the same weights, ready to `run`; ``marks`` takes the times at which
    modules were loaded, and learner and sampler stood (perf_counter)."""
    with importing():
        from actors.engine import SamplingEngine
        from actors.math_actor import MathActor
        from actors.processes import Processes
        from learners.options.oat_args import to_oat_args
        from learners.options.precision import Precision
        from learners.policy_learner import PolicyLearner

    marks = {} if marks is None else marks
    marks["imports"] = time.perf_counter()
    precision, args, sampling = Precision.of(config.precision), to_oat_args(config), config.sampling
    launch = Launch.from_environment()
    processes = Processes(launch.rank, launch.world_size, sampling.tensor_parallel)
    learner = PolicyLearner(config, args, precision, prompts, eval_prompts, log, processes)
    marks["learner"] = time.perf_counter()
    engine = SamplingEngine(
        config.model_path,
        precision.sample,
        max_model_len=config.max_model_len,
        max_num_seqs=sequences_at_once(config, len(eval_prompts), processes.engines),
        seed=config.training.seed,
        gpu_memory_utilization=sampling.vllm_gpu_ratio,
        enforce_eager=sampling.enforce_eager,
        sleep_level=sampling.vllm_sleep_level,
        tensor_parallel=sampling.tensor_parallel,
        lora_rank=config.lora.lora_rank if config.lora.lora_sync == "adapter" else 0,
        enable_prefix_caching=sampling.enable_prefix_caching,
        trust_remote_code=config.model.trust_remote_code,
    )
    learner.attach(MathActor(args, engine, task.grade, task.template.stop, task.timeouts))
    marks["sampler"] = time.perf_counter()
    return learner


def sequences_at_once(config: Config, eval_prompts: int, engines: int) -> int:
    """How many an engine decodes at once, at most 512: its part of a step, or of an evaluation where that is more."""
    evaluated = eval_prompts * config.evaluation.eval_n if config.evaluation.eval_steps > 0 else 0
    return min(math.ceil(max(config.sequences_per_step, evaluated) / engines), 512)


if __name__ == "__main__":
    sys.exit(main())
