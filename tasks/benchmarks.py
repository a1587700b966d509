"""The benchmarks of the paper's offline table, by name, and any file of questions and answers as a benchmark.

Hub datasets and their columns as their pages have them; each is the copy that most evaluation suites read.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tasks.datasets import read_questions
from tasks.errors import UsageError, require
from tasks.task import Example

# Name on the hub, column of the question, column of the answer; the test split, where there is one.
HUB_BENCHMARKS = {
    "aime24": ("HuggingFaceH4/aime_2024", "problem", "answer"),  # 30 problems, in a split called train
    "amc23": ("math-ai/amc23", "question", "answer"),  # 40
    "math500": ("HuggingFaceH4/MATH-500", "problem", "answer"),  # 500
    "minerva": ("math-ai/minervamath", "question", "answer"),  # 272
    "olympiad_bench": ("math-ai/olympiadbench", "question", "final_answer"),  # 674, text only
}
FILES = (".jsonl", ".json", ".parquet", ".csv")
EMBEDDED_BENCHMARK = "arithmetic"
EMBEDDED_PROBLEMS = 256


@dataclass(frozen=True)
class Benchmark:
    """Problems under a name, which is the column of the table."""

    name: str
    examples: list[Example]


def load_benchmark(asked_for: str, input_key: str, output_key: str) -> Benchmark:
    """A benchmark as the command line names it.

    Args:
        asked_for: a name of `HUB_BENCHMARKS`, "arithmetic", a file, a folder or a hub dataset, or ``NAME=`` and one of
            the last three.
        input_key, output_key: columns of a file or folder; a benchmark of `HUB_BENCHMARKS` has its own.

    Raises:
        UsageError: it cannot be had.
    """
    name, named, source = asked_for.rpartition("=")
    if not named and source == EMBEDDED_BENCHMARK:
        from tasks.arithmetic.problems import generate

        return Benchmark(source, [Example(p.question, p.answer) for p in generate(EMBEDDED_PROBLEMS, 0, "test")])
    require(name != EMBEDDED_BENCHMARK, f"--benchmark {asked_for}: this name is the embedded one's; take another.")
    if not named and source in HUB_BENCHMARKS and not Path(source).exists():
        try:
            return Benchmark(source, read_questions(*HUB_BENCHMARKS[source], "test", "--benchmark"))
        except UsageError as error:
            raise UsageError(f"{str(error).rstrip('.')}: --benchmark {source}=FILE.jsonl.") from error
    looks_like_a_name = "/" not in source and not Path(source).suffix and not Path(source).exists()
    is_missing_file = Path(source).suffix in FILES and not Path(source).exists()
    known = ", ".join([EMBEDDED_BENCHMARK, *HUB_BENCHMARKS])
    require(
        bool(source) and not looks_like_a_name and not is_missing_file,
        f"--benchmark {asked_for}: there is no file and no benchmark of that name; known are {known}.",
    )
    examples = read_questions(source, input_key, output_key, "test", "--benchmark")
    return Benchmark(name if named else Path(source).stem, examples)


def problem_ids(examples: list[Example]) -> list[str]:
    """A short name for each problem, made of its question and answer, so that it is the same wherever it stands.

    A problem that comes again is told apart by a number.

    Example: twice the same problem is like ``["5b2a7f013c1d", "5b2a7f013c1d-2"]``.
    """
    seen: dict[str, int] = {}
    ids = []
    for example in examples:
        name = hashlib.sha256(f"{example.question}\n{example.answer}".encode()).hexdigest()[:12]
        seen[name] = seen.get(name, 0) + 1
        ids.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return ids
