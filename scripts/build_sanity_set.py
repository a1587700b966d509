"""The problems that a model neither always nor never solves, for the sanity test:

    python scripts/build_sanity_set.py --model M --task math --data D --samples 40 --low 0.2 --high 0.8
    python train.py --model M --task sanity --data DIR

Responses are stored as they come, and the same command goes on where it was stopped. A problem is left alone as soon
as its place is certain, which gives exactly the set that drawing all samples gives.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro

from actors.offline import OfflineOptions, check_sampling, settings_of
from actors.options import SamplingOptions
from learners.model.config_file import read_model_config
from learners.options.config import Config
from learners.options.groups import EMBEDDED, EvaluationOptions, ModelOptions
from scripts.parts.perfectible import Draws
from scripts.parts.program import run_program
from scripts.parts.response_store import ResponseStore
from scripts.parts.sanity_card import card, draw_histogram
from tasks.benchmarks import problem_ids
from tasks.errors import require
from tasks.options import TaskOptions
from tasks.prompts import Prompt, build_prompts, load_tokenizer
from tasks.registry import TASKS
from tasks.task import Example, Task

KEY = ("problem", "sample")


@dataclass
class Arguments:
    """Sample responses to every problem of a task, grade them, and keep the perfectible problems."""

    model: str = EMBEDDED
    """a Hugging Face model: local folder or hub id; "embedded" is the model of this repository"""
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """what to sample in"""
    samples: int = 40
    """responses to a problem"""
    low: float = 0.2
    """keep a problem when at least this share of its responses is right ..."""
    high: float = 0.8
    """... and at most this one"""
    early_stopping: bool = True
    """leave a problem alone as soon as its place is certain; False draws all samples, and keeps the same problems"""
    max_problems: int | None = None
    """only so many problems, the first ones"""
    trust_remote_code: bool = False
    """run Python code that comes with the model"""
    output_dir: Path | None = None
    """folder of the set (default: runs/sanity-<task>-<model>)"""
    task: TaskOptions = field(default_factory=lambda: TaskOptions(train_problems=512))
    sampling: OfflineOptions = field(default_factory=OfflineOptions)

    def resolve(self) -> Config:
        """Fill in what was left to the model. Returns the configuration of a training run with the same task."""
        config = Config(
            model=ModelOptions(model=self.model, trust_remote_code=self.trust_remote_code),
            task=self.task,
            sampling=SamplingOptions(generate_max_length=self.sampling.max_tokens),
            evaluation=EvaluationOptions(eval_steps=0),
        )
        config.resolve()
        self.sampling.max_tokens = config.sampling.generate_max_length
        self.output_dir = self.output_dir or Path("runs") / f"sanity-{self.task.task}-{Path(self.model).name}"
        return config

    def check(self, config: Config) -> None:
        """Refuse what cannot work. Raises UsageError with one sentence that says what to do."""
        require(self.samples > 0, f"--samples is {self.samples}; it must be greater than 0.")
        require(
            0 <= self.low <= self.high <= 1,
            f"--low {self.low:g} and --high {self.high:g} are shares: 0 <= low <= high <= 1.",
        )
        require(
            self.max_problems is None or self.max_problems > 0,
            f"--max-problems is {self.max_problems}; it must be greater than 0.",
        )
        require(self.sampling.temperature > 0, "--temperature 0 would sample the same greedy response again; raise it.")
        require(self.task.task != "sanity", "--task sanity is what this builds; name the task to build it from.")
        needs_data = TASKS[self.task.task].needs_data
        if needs_data is None:
            require(not self.task.data, f"--data is not used by --task {self.task.task}; add --task math to read it.")
        else:
            require(bool(self.task.data), f"--task {self.task.task} needs --data: {needs_data}.")
        check_sampling(self.sampling, self.task.prompt_max_length, read_model_config(config))


def load_prompts(arguments: Arguments, config: Config, task: Task) -> dict[str, Prompt]:
    """Problem id -> prompt; says how many were dropped as too long.

    Raises:
        UsageError: the data or the tokenizer will not do.
    """
    tokenizer = load_tokenizer(config.model_path, arguments.trust_remote_code)
    limit = arguments.task.prompt_max_length
    prompts, dropped = build_prompts(task.train[: arguments.max_problems], task.template, tokenizer, limit)
    if dropped:
        print(f"left out {dropped} problems whose prompt exceeds --prompt-max-length {limit}")
    ids = problem_ids([Example(prompt.question, prompt.reference) for prompt in prompts])
    return dict(zip(ids, prompts, strict=True))


def sample_all(arguments: Arguments, config: Config, task: Task, prompts, draws: Draws, store: ResponseStore) -> None:
    """Sample, grade and store until every problem is decided, under a progress bar."""
    from tqdm import tqdm

    from actors.offline import open_engine
    from learners.options.precision import TORCH_DTYPES

    print("loading vLLM (some 20 s) ...", flush=True)
    context = arguments.task.prompt_max_length + arguments.sampling.max_tokens
    dtype = TORCH_DTYPES[arguments.dtype]
    engine = open_engine(arguments.sampling, config.model_path, dtype, context, arguments.trust_remote_code)
    try:
        with tqdm(total=draws.remaining, desc="sample", unit="response", smoothing=0.05) as bar:
            for records in sampled_records(arguments, engine, task, prompts, draws):
                store.append(records)
                for record in records:
                    draws.record(record["problem"], record["sample"], record["reward"] == 1)
                bar.total = bar.n + len(records) + draws.remaining
                bar.set_postfix(kept=draws.num_kept, refresh=False)
                bar.update(len(records))
    finally:
        engine.close()


def sampled_records(
    arguments: Arguments, engine, task: Task, prompts: dict[str, Prompt], draws: Draws
) -> Iterator[list[dict]]:
    """Records of the responses that ``draws`` wants, as they are finished and graded."""
    from actors.offline import sampling_params
    from actors.responses import Request, grade_stream, response_seed, sample_stream

    options = arguments.sampling
    params = sampling_params(options, task.template.stop)

    def requests():
        for wanted in draws.wanted():
            if wanted is None:
                yield None
            else:
                prompt, seed = prompts[wanted[0]], response_seed(options.seed, *wanted)
                yield Request(wanted, prompt.token_ids, prompt.reference, seed)

    def grade(responses) -> list[float]:
        rewards = task.grade([r.text for r in responses], [r.request.reference for r in responses])
        return [0.0 if r.truncated else reward for r, reward in zip(responses, rewards, strict=True)]  # as in training

    while draws.remaining:  # more than once only if sampling ran dry before the last grades were known
        for graded in grade_stream(sample_stream(engine, requests(), params, options.max_num_seqs), grade):
            yield [record_of(response, reward) for response, reward in graded]


def record_of(response, reward: float) -> dict:
    """A line of responses.jsonl."""
    return dict(zip(KEY, response.request.key, strict=True)) | {
        "tokens": response.tokens,
        "truncated": response.truncated,
        "reward": reward,
        "response": response.text,
    }


def write_set(arguments: Arguments, prompts: dict[str, Prompt], draws: Draws, store: ResponseStore) -> dict:
    """problems.jsonl, card.json, the histogram and the README. Returns the counts."""
    folder = arguments.output_dir
    kept = draws.kept()
    with (folder / "problems.jsonl").open("w") as file:
        for problem in kept:
            prompt, right, drawn = prompts[problem], draws.right[problem], draws.drawn[problem]
            row = {"problem": prompt.question, "answer": prompt.reference, "right": right, "drawn": drawn}
            file.write(json.dumps(row) + "\n")
    asked_for = [(problem, sample) for problem in prompts for sample in range(arguments.samples)]
    sampled, full = sum(key in store.records for key in asked_for), len(asked_for)
    summary = {
        "problems": len(prompts),
        "kept": len(kept),
        "samples": arguments.samples,
        "low": arguments.low,
        "high": arguments.high,
        "early_stopping": arguments.early_stopping,
        "responses_sampled": sampled,
        "responses_of_all_samples": full,
        "saving": 1 - sampled / full,
    }
    (folder / "card.json").write_text(json.dumps(summary | store.settings, indent=2) + "\n")
    accuracies = [draws.right[problem] / draws.drawn[problem] for problem in draws.problems if draws.drawn[problem]]
    draw_histogram(accuracies, arguments.low, arguments.high, folder / "histogram.png")
    (folder / "README.md").write_text(card(summary, store.settings))
    return summary


def main(arguments: Arguments) -> int:
    """Sample what is missing and write the set. Returns the exit code."""
    config = arguments.resolve()
    arguments.check(config)
    task = TASKS[arguments.task.task].build(config)
    try:
        prompts = load_prompts(arguments, config, task)
        limit, template = arguments.task.prompt_max_length, arguments.task.prompt_template
        settings = settings_of(arguments.sampling, arguments.model, config.model_path, template, limit)
        settings |= {"dtype": arguments.dtype, "task": arguments.task.task, "data": list(arguments.task.data)}
        store = ResponseStore(arguments.output_dir, settings, KEY)
        draws = Draws(list(prompts), arguments.samples, arguments.low, arguments.high, arguments.early_stopping)
        if store.torn_bytes:
            print(f"the last line of {store.path} was cut off by a kill; its response is sampled again")
        for (problem, sample), record in store.records.items():
            if problem in prompts and sample < arguments.samples:
                draws.record(problem, sample, record["reward"] == 1)
        print(f"task {task.name}: {len(prompts)} problems; {len(store.records)} responses are stored already")
        store.open()
        if draws.remaining:
            sample_all(arguments, config, task, prompts, draws, store)
        summary = write_set(arguments, prompts, draws, store)
    finally:
        task.close()
    print(
        f"kept {summary['kept']} of {summary['problems']} problems; sampled {summary['responses_sampled']} responses "
        f"of {summary['responses_of_all_samples']}, {summary['saving']:.1%} fewer"
    )
    print(f"written to {arguments.output_dir}/: problems.jsonl card.json README.md histogram.png responses.jsonl")
    return 0


def parse(arguments: list[str] | None = None) -> Arguments:
    return tyro.cli(
        Annotated[Arguments, tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff],
        args=arguments,
        prog="build_sanity_set.py",
    )


if __name__ == "__main__":
    run_program(lambda: main(parse()), goes_on=True)
