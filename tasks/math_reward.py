"""The reward of a mathematical answer: 1 if it says what the reference says, else 0.

Where the answer is found: tasks/boxed.py. What counts as the same: tasks/answers/. The comparison runs in processes of
its own with a time limit for each answer: tasks/grading_pool.py.
"""

import math
from collections import ChainMap
from collections.abc import Callable
from functools import partial

from tasks.answers.equality import grade_answer
from tasks.boxed import extract_answer
from tasks.grading_pool import GradingPool

TIME_LIMIT_S = 2.0
LONGEST_ANSWER = 400  # characters; no reference of the maths sets comes near it, and the parser's time grows with it
REMEMBERED = 50_000  # pairs


class ResponseGrader:
    """Finds the answers in responses and compares them, in other processes, with their references.

    Args:
        compare: (answer, reference) -> reward from 0 to 1; a function of a module.
        answer_in: where the answer is read, see `extract_answer`.
        workers: processes, which start at once (default: one a core, at most 8).
        time_limit: seconds for one comparison, after which the answer is wrong.
        longest_answer: characters; a longer answer is wrong without a look.
    """

    def __init__(
        self,
        compare: Callable[[str, str], float],
        answer_in: str = "boxed",
        workers: int | None = None,
        time_limit: float = TIME_LIMIT_S,
        longest_answer: int = LONGEST_ANSWER,
    ):
        self.answer_in, self.longest_answer = answer_in, longest_answer
        self.timeouts = 0
        """answers so far whose comparison ran out of time, or brought its process down"""
        self._pool = GradingPool(compare, workers, time_limit)
        self._known: dict[tuple[str, str], float] = {}

    def grade(self, responses: list[str], references: list[str]) -> list[float]:
        """Rewards, in order. What is asked twice is compared once, unless it ran out of time."""
        answers = [extract_answer(response, self.answer_in) for response in responses]
        pairs = [
            (answer, reference) if answer and len(answer) <= self.longest_answer else None
            for answer, reference in zip(answers, references, strict=True)
        ]
        asked = [pair for pair in dict.fromkeys(pairs) if pair is not None and pair not in self._known]
        found = dict(zip(asked, self._pool.map(asked), strict=True)) if asked else {}
        rewards = [*map(ChainMap(found, self._known, {None: 0.0}).__getitem__, pairs)]
        self.timeouts += sum(map(math.isnan, rewards))
        if len(self._known) + len(found) > REMEMBERED:
            self._known.clear()
        self._known |= {pair: reward for pair, reward in found.items() if not math.isnan(reward)}
        return [0.0 if math.isnan(reward) else reward for reward in rewards]

    def close(self) -> None:
        """End the processes."""
        self._pool.close()


MathGrader = partial(ResponseGrader, grade_answer)
"""a `ResponseGrader` by mathematical equality"""
