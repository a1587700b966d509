"""``--task reasoning-gym``: problems and scores of a generator of reasoning-gym (Apache-2.0, an optional extra).

``--data`` names the generator. Its own scorer gives the reward, which may lie between 0 and 1; it runs in the grading
processes. Generators whose scorer evaluates an answer as Python code are refused.
"""

import inspect
import json
import re
import sys
import warnings
from functools import lru_cache

from tasks.errors import UsageError, require
from tasks.task import Example, Task, register
from tasks.templates import TEMPLATES

TEST_SEED = 2**31 - 1
"""of the held-out problems, one set for every --seed; training seeds are below it"""
TIME_LIMIT_S = 10.0  # the first answer also waits for its generator
LONGEST_ANSWER = 4000  # characters; some answers are whole boards


@register("reasoning-gym", template="r1", needs_data="a generator of reasoning-gym, such as simple_equations")
def build(config) -> Task:
    """Generated problems; none is in both splits."""
    from tasks.math_reward import ResponseGrader

    options = config.task
    require(len(options.data) == 1, "--task reasoning-gym takes one generator; give --data one name.")
    require(options.eval_data is None, "--eval-data is not used by --task reasoning-gym; leave it out.")
    name = options.data[0]
    check_generator(name)
    train = problems(name, options.train_problems, config.training.seed % TEST_SEED)
    test = []
    if config.evaluation.eval_steps > 0:
        seen = {example.question for example in train}
        held_out = problems(name, config.evaluation.max_eval, TEST_SEED)
        test = [example for example in held_out if example.question not in seen]
    template = TEMPLATES[options.prompt_template]
    grader = ResponseGrader(score, template.answer_in, time_limit=TIME_LIMIT_S, longest_answer=LONGEST_ANSWER)
    return Task("reasoning-gym", train, test, template, grader.grade, grader.close, lambda: grader.timeouts)


def check_generator(name: str) -> None:
    """Refuse what cannot be trained on.

    Raises:
        UsageError: the extra is not installed, there is no such generator, or its scorer runs answers as code.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # a dependency of it compares with "is"
            from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UsageError(
            f"--task reasoning-gym needs an optional package ({error}); run bash scripts/install.sh reasoning-gym."
        ) from error
    safe = sorted(known for known in DATASETS if not evaluates_answers(known))
    require(name in DATASETS, f"--data {name} is no generator of reasoning-gym; it has {', '.join(safe)}.")
    require(
        name in safe,
        f"--data {name} is refused: its scorer evaluates the model's answer as Python code; choose another generator.",
    )


def evaluates_answers(name: str) -> bool:
    """Whether the module of a generator calls eval or SymPy's parser, which is eval, on an answer."""
    from reasoning_gym.factory import DATASETS

    source = inspect.getsource(sys.modules[DATASETS[name][0].__module__])
    return re.search(r"\b(eval|exec|parse_expr|sympify)\((str\()?answer\b", source) is not None


def problems(name: str, size: int, seed: int) -> list[Example]:
    """Problems of a generator; each reference tells which one it is of, and its answer for the reader of samples."""
    return [
        Example(
            entry["question"],
            json.dumps({"generator": name, "size": size, "seed": seed, "index": index, "answer": str(entry["answer"])}),
        )
        for index, entry in enumerate(_generated(name, size, seed))
    ]


@lru_cache(4)
def _generated(name: str, size: int, seed: int):
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(name, size=size, seed=seed)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--data {name} generates nothing by its name alone ({reason}); choose another.") from error


def warm_up() -> None:
    """Import the package, in a grading process, before any answer's time runs."""
    import reasoning_gym  # noqa: F401


@lru_cache(4096)
def _entry(name: str, size: int, seed: int, index: int) -> dict:
    return _generated(name, size, seed)[index]


def score(answer: str, reference: str) -> float:
    """The generator's own score of an answer, from 0 to 1."""
    of = json.loads(reference)
    data = _generated(of["generator"], of["size"], of["seed"])
    entry = _entry(of["generator"], of["size"], of["seed"], of["index"])
    return min(1.0, max(0.0, float(data.score_answer(answer, entry))))
