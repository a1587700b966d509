"""The embedded task: additions of two integers, with seeds, levels of difficulty and a held-out split.

A problem is text, ``"47+385="``; its reference is the sum, ``"432"``; a right response carries it in ``\\boxed{432}``.
Nothing is stored: a problem is drawn from (seed, index), and belongs to the test split when a checksum of its text
says so, so that no training problem is ever a test problem whatever the seeds are.
"""

import random
import zlib
from dataclasses import dataclass

# Digits of the two operands, by level. The level is the difficulty: each adds a digit, hence a carry to get wrong.
LEVELS = {0: (1, 1), 1: (2, 2), 2: (3, 2), 3: (3, 3)}
EMBEDDED_LEVELS = (1, 2, 3)  # what the embedded model was made on
TEST_SHARE = 10  # one problem in ten is held out


@dataclass(frozen=True)
class Problem:
    """One addition. Example: ``Problem("47+385=", "432", level=2)``."""

    question: str
    answer: str
    level: int


def is_held_out(question: str) -> bool:
    """Whether a question belongs to the test split; a property of its text alone."""
    return zlib.crc32(question.encode()) % TEST_SHARE == 0


def draw(rng: random.Random, level: int) -> Problem:
    """Draw one addition of the given level, from either split."""
    first, second = (rng.randrange(10 ** (digits - 1), 10**digits) for digits in LEVELS[level])
    if rng.random() < 0.5:
        first, second = second, first
    return Problem(f"{first}+{second}=", str(first + second), level)


def generate(count: int, seed: int, split: str = "train", levels: tuple[int, ...] = EMBEDDED_LEVELS) -> list[Problem]:
    """Generate ``count`` different problems of one split, the levels in equal shares.

    Args:
        count: number of problems.
        seed: problems are a function of (seed, split, levels, count) and of nothing else.
        split: ``"train"`` or ``"test"``; the two never share a problem, whatever their seeds.
        levels: which of `LEVELS` to draw from.

    Raises:
        ValueError: unknown split or level, or more problems asked for than there are.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is 'train' or 'test', not {split!r}")
    if unknown := set(levels) - set(LEVELS):
        raise ValueError(f"no such level: {sorted(unknown)}; there are {sorted(LEVELS)}")
    too_many = f"the levels {levels} hold fewer than {count} different {split} problems; ask for fewer"
    each = [81 * 10 ** (sum(LEVELS[level]) - 2) * len(set(LEVELS[level])) for level in levels]  # different questions
    if count > len(levels) * min(each):  # said at once: drawing would go on for hours
        raise ValueError(too_many)
    rng = random.Random(f"{seed}/{split}")
    problems: dict[str, Problem] = {}
    draws = 0
    while len(problems) < count:
        problem = draw(rng, levels[len(problems) % len(levels)])
        if is_held_out(problem.question) == (split == "test"):
            problems.setdefault(problem.question, problem)
        draws += 1
        if draws > 100 * count + 1000:
            raise ValueError(too_many)
    return list(problems.values())
