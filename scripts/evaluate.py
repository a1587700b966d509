"""Accuracy on benchmarks by dtype, the paper's offline table, by one command:

    python scripts/evaluate.py --model M --dtype bf16 fp16 fp32 --benchmark aime24 amc23 mine=FILE.jsonl --n 32

Every response is stored as it comes. The same command goes on where it was stopped, and ends with the same table.
"""

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro

from actors.offline import OfflineOptions, check_sampling, settings_of
from learners.model.config_file import read_model_config
from learners.options.config import DEFAULTS_BY_MODEL, Config
from learners.options.groups import EMBEDDED, ModelOptions
from scripts.parts.evaluation_tables import Cell, Results, as_csv, as_latex, as_text
from scripts.parts.program import run_program
from scripts.parts.response_store import ResponseStore
from tasks.accuracy import Accuracy
from tasks.benchmarks import EMBEDDED_BENCHMARK, load_benchmark, problem_ids
from tasks.errors import require
from tasks.prompts import Prompt, build_prompts, load_tokenizer
from tasks.templates import TEMPLATES

KEY = ("dtype", "benchmark", "problem", "sample")
LONGEST_DEFAULT_K = 8


@dataclass
class Arguments:
    """Sample n responses to every problem of every benchmark in every dtype, and make one table of it."""

    model: str = EMBEDDED
    """a Hugging Face model: local folder or hub id; "embedded" is the model of this repository"""
    dtype: tuple[Literal["fp16", "bf16", "fp32"], ...] = ("bf16", "fp16", "fp32")
    """what to sample in, one after the other: the rows"""
    benchmark: tuple[str, ...] = ()
    """the columns: aime24, amc23, math500, minerva, olympiad_bench (from the hub), arithmetic (embedded), a .jsonl,
    .json, .parquet or .csv file, a folder, or NAME=FILE"""
    n: int = 32
    """responses to a problem"""
    k: int | None = None
    """of pass@k (default: 8, at most n)"""
    max_problems: int | None = None
    """only so many problems of each benchmark, the first ones"""
    input_key: str = "problem"
    """files and folders: column of the question"""
    output_key: str = "answer"
    """files and folders: column of the reference answer"""
    prompt_template: Literal[tuple(TEMPLATES)] | None = None
    """how a question becomes a prompt (embedded model: no, else chat)"""
    prompt_max_length: int | None = None
    """a longer prompt is refused; tokens (embedded model: 32, else 1024)"""
    trust_remote_code: bool = False
    """run Python code that comes with the model"""
    output_dir: Path | None = None
    """folder of responses and tables (default: runs/evaluation-<model>)"""
    sampling: OfflineOptions = field(default_factory=lambda: OfflineOptions(temperature=0.6, top_p=0.95))

    @property
    def model_path(self) -> str:
        return Config(model=ModelOptions(model=self.model)).model_path

    def resolve(self) -> None:
        """Fill in what was left to the model."""
        embedded = self.model == EMBEDDED
        place = 0 if embedded else 1
        if self.sampling.max_tokens is None:
            self.sampling.max_tokens = DEFAULTS_BY_MODEL["sampling.generate_max_length"][place]
        if self.prompt_max_length is None:
            self.prompt_max_length = DEFAULTS_BY_MODEL["task.prompt_max_length"][place]
        self.prompt_template = self.prompt_template or ("no" if embedded else "chat")
        if embedded and not self.benchmark:
            self.benchmark = (EMBEDDED_BENCHMARK,)
        self.k = min(LONGEST_DEFAULT_K, self.n) if self.k is None else self.k
        self.output_dir = self.output_dir or Path("runs") / f"evaluation-{Path(self.model).name}"

    def check(self) -> None:
        """Refuse what cannot work. Raises UsageError with one sentence that says what to do."""
        require(bool(self.benchmark), "Name a --benchmark: aime24, amc23, math500, minerva, olympiad_bench or a file.")
        require(bool(self.dtype), "Name a --dtype: bf16, fp16 or fp32.")
        require(len(set(self.dtype)) == len(self.dtype), "--dtype names a dtype twice; name each once.")
        require(self.n > 0, f"--n is {self.n}; it must be greater than 0.")
        require(1 <= self.k <= self.n, f"--k is {self.k}; it must lie between 1 and --n {self.n}.")
        require(
            self.max_problems is None or self.max_problems > 0,
            f"--max-problems is {self.max_problems}; it must be greater than 0.",
        )
        require(
            self.sampling.temperature > 0 or self.n == 1,
            "--n above 1 at --temperature 0 would sample the same greedy response again; set a temperature.",
        )
        model_config = read_model_config(Config(model=ModelOptions(model=self.model)))
        check_sampling(self.sampling, self.prompt_max_length, model_config)


Problems = dict[str, dict[str, Prompt]]
"""benchmark -> problem id -> prompt"""


def load_problems(arguments: Arguments) -> Problems:
    """Every benchmark's problems, tokenized.

    Raises:
        UsageError: a benchmark cannot be had, two have one name, or a prompt is too long.
    """
    tokenizer = load_tokenizer(arguments.model_path, arguments.trust_remote_code)
    problems: Problems = {}
    for asked_for in arguments.benchmark:
        benchmark = load_benchmark(asked_for, arguments.input_key, arguments.output_key)
        require(benchmark.name not in problems, f"Two benchmarks are called {benchmark.name}; name one NAME=FILE.")
        examples = benchmark.examples[: arguments.max_problems]
        limit = arguments.prompt_max_length
        prompts, dropped = build_prompts(examples, TEMPLATES[arguments.prompt_template], tokenizer, limit)
        require(
            dropped == 0,
            f"{dropped} of the prompts of {benchmark.name} exceed --prompt-max-length {limit}; raise it.",
        )
        problems[benchmark.name] = dict(zip(problem_ids(examples), prompts, strict=True))
    return problems


def missing_keys(arguments: Arguments, problems: Problems, dtype: str, store: ResponseStore) -> list[tuple]:
    """The keys of the responses in this dtype that are not stored yet: every problem's first, every second, ..."""
    keys = (
        (dtype, benchmark, problem, sample)
        for benchmark, prompts in problems.items()
        for sample in range(arguments.n)
        for problem in prompts
    )
    return [key for key in keys if key not in store.records]


# ------------------------------------------------------------------------------------ sampling, in a process of its own


def sample_missing(arguments: Arguments, problems: Problems, dtype: str, settings: dict) -> None:
    """What a dtype's process does: build the engine, sample what is missing, grade it, store it. Ends the process."""
    die_with_parent()
    store = ResponseStore(arguments.output_dir, settings, KEY)

    def sample() -> int:
        try:
            store.open()
            for records in sampled_records(arguments, problems, dtype, store):
                store.append(records)
        except KeyboardInterrupt:  # the process that started this one speaks for both
            return 130
        finally:
            store.close()
        return 0

    run_program(sample)


def sampled_records(arguments: Arguments, problems: Problems, dtype: str, store: ResponseStore) -> Iterator[list[dict]]:
    """Records of the missing responses, as they are finished and graded, under a progress bar."""
    from tqdm import tqdm

    from actors.offline import open_engine, sampling_params
    from learners.options.precision import TORCH_DTYPES
    from tasks.math_reward import MathGrader

    keys = missing_keys(arguments, problems, dtype, store)
    options, template = arguments.sampling, TEMPLATES[arguments.prompt_template]
    print(f"{dtype}: {len(keys)} responses to sample; loading vLLM (some 20 s) ...", flush=True)
    context = arguments.prompt_max_length + options.max_tokens
    engine = open_engine(options, arguments.model_path, TORCH_DTYPES[dtype], context, arguments.trust_remote_code)
    from actors.responses import Request, grade_stream, response_seed, sample_stream

    requests = []
    for key in keys:
        _, benchmark, problem, sample = key
        prompt = problems[benchmark][problem]
        seed = response_seed(options.seed, problem, sample)
        requests.append(Request(key, prompt.token_ids, prompt.reference, seed))
    grader = MathGrader(answer_in=template.answer_in)

    def grade(responses) -> list[float]:  # on the text, also where it was cut: is the answer there?
        return grader.grade([r.text for r in responses], [r.request.reference for r in responses])

    try:
        stream = sample_stream(engine, requests, sampling_params(options, template.stop), options.max_num_seqs)
        with tqdm(total=len(keys), desc=dtype, unit="response", smoothing=0.05) as bar:
            for graded in grade_stream(stream, grade):
                yield [record_of(response, reward) for response, reward in graded]
                bar.update(len(graded))
    finally:
        grader.close()
        engine.close()


def record_of(response, reward: float) -> dict:
    """A line of responses.jsonl."""
    return dict(zip(KEY, response.request.key, strict=True)) | {
        "tokens": response.tokens,
        "truncated": response.truncated,
        "reward": reward,
        "reference": response.request.reference,
        "response": response.text,
    }


def die_with_parent() -> None:
    """On Linux, have this process killed when the one that started it is, so that none goes on sampling unseen."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if not multiprocessing.parent_process().is_alive():  # it went before it could be told
            sys.exit(1)


# ------------------------------------------------------------------------------------------------------ the command


def tabulate(arguments: Arguments, problems: Problems, store: ResponseStore) -> Results:
    """The statistics of the stored responses; all that were asked for are there."""
    results: Results = {}
    for dtype in arguments.dtype:
        results[dtype] = {}
        for benchmark, prompts in problems.items():
            records = [
                [store.records[dtype, benchmark, problem, sample] for sample in range(arguments.n)]
                for problem in prompts
            ]
            flat = [record for row in records for record in row]
            results[dtype][benchmark] = Cell(
                Accuracy.of([[record["reward"] == 1 for record in row] for row in records], arguments.k),
                problems=len(prompts),
                mean_length=sum(record["tokens"] for record in flat) / len(flat),
                truncated=sum(record["truncated"] for record in flat) / len(flat),
            )
    return results


def main(arguments: Arguments) -> int:
    """Sample what is missing, dtype by dtype, and write the tables. Returns the exit code."""
    arguments.resolve()
    arguments.check()
    problems = load_problems(arguments)
    settings = settings_of(
        arguments.sampling,
        arguments.model,
        arguments.model_path,
        arguments.prompt_template,
        arguments.prompt_max_length,
    )
    store = ResponseStore(arguments.output_dir, settings, KEY)
    if store.torn_bytes:
        print(f"the last line of {store.path} was cut off by a kill; its response is sampled again")
    counts = ", ".join(f"{name} {len(prompts)}" for name, prompts in problems.items())
    print(f"problems: {counts}; {len(store.records)} responses are stored already")
    spawn = multiprocessing.get_context("spawn")  # a process for each dtype: all its memory is given back, GPUs' too
    for dtype in arguments.dtype:
        if missing_keys(arguments, problems, dtype, store):
            process = spawn.Process(target=sample_missing, args=(arguments, problems, dtype, settings))
            process.start()
            process.join()
            if process.exitcode:
                return process.exitcode if process.exitcode > 0 else 1
    store = ResponseStore(arguments.output_dir, settings, KEY)
    results = tabulate(arguments, problems, store)
    text = as_text(results, arguments.n)
    for name, content in (
        ("table.txt", text + "\n"),
        ("table.csv", as_csv(results, arguments.n)),
        ("table.tex", as_latex(results, arguments.n)),
    ):
        (arguments.output_dir / name).write_text(content)
    print(text)
    print(f"written to {arguments.output_dir}/: table.txt table.csv table.tex responses.jsonl")
    return 0


def parse(arguments: list[str] | None = None) -> Arguments:
    return tyro.cli(
        Annotated[Arguments, tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff], args=arguments, prog="evaluate.py"
    )


if __name__ == "__main__":
    run_program(lambda: main(parse()), goes_on=True)
