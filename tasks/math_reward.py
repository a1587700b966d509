"""The reward of a mathematical answer: 1 if it equals the reference, else 0.

The comparison is math-verify's (https://github.com/huggingface/Math-Verify). A comparison may run for ever (an answer
of 9^9^9^9 is enough), and math-verify's own limit is a signal, which works only on a main thread; so each comparison
runs in a worker process with a hard time limit, after which the worker is replaced and the answer earns 0.
"""

import multiprocessing
import os
from concurrent.futures import TimeoutError
from functools import partial

from pebble import ProcessPool

from tasks.boxed import last_boxed

TIME_LIMIT_S = 5.0
LONGEST_ANSWER = 400  # characters; no reference of the maths sets comes near it, and the parser's time grows with it


def extract_answer(response: str, answer_in: str = "boxed") -> str | None:
    """The answer a response gives, as text, or None.

    Args:
        response: text.
        answer_in: "boxed" reads the last \\boxed{}; "answer-tag" reads the last <answer>...</answer>, and within it
            the last \\boxed{} if there is one.
    """
    if answer_in == "answer-tag":
        _, opened, tail = response.rpartition("<answer>")
        content, closed, _ = tail.partition("</answer>")
        if not (opened and closed):
            return None
        return last_boxed(content) or content.strip()
    return last_boxed(response)


def is_equal(answer: str, reference: str) -> bool:
    """Whether two answers are the same number, set, interval or expression. May not return; see `MathGrader`."""
    from math_verify import parse, verify

    if answer.strip() == reference.strip():
        return True
    gold, given = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (reference, answer))
    return bool(verify(gold, given, timeout_seconds=None))


def grade_one(pair: tuple[str, str], answer_in: str) -> float:
    """The reward of one (response, reference); anything the comparison raises is a wrong answer."""
    response, reference = pair
    answer = extract_answer(response, answer_in)
    if answer is None or len(answer) > LONGEST_ANSWER:
        return 0.0
    try:
        return float(is_equal(answer, reference))
    except Exception:  # the answer is the model's: whatever it breaks in the parser, it is not the right one
        return 0.0


class MathGrader:
    """Grades responses in worker processes. Use `close` when done.

    Args:
        answer_in: see `extract_answer`.
        workers: processes; started when the first answer comes.
        time_limit: seconds for one comparison, after which it is wrong.
    """

    def __init__(self, answer_in: str = "boxed", workers: int | None = None, time_limit: float = TIME_LIMIT_S):
        self.answer_in = answer_in
        self.time_limit = time_limit
        self.timeouts = 0
        # Spawned, not forked: the parent holds the threads and locks of two engines.
        self._pool = ProcessPool(
            max_workers=workers or min(8, os.cpu_count() or 1), context=multiprocessing.get_context("spawn")
        )

    def grade(self, responses: list[str], references: list[str]) -> list[float]:
        """Rewards, in order. A comparison that runs out of time earns 0 and is counted in ``timeouts``."""
        pairs = list(zip(responses, references, strict=True))
        future = self._pool.map(partial(grade_one, answer_in=self.answer_in), pairs, timeout=self.time_limit)
        results, rewards = future.result(), []
        for _ in pairs:
            try:
                rewards.append(next(results))
            except TimeoutError:
                self.timeouts += 1
                rewards.append(0.0)
        return rewards

    def close(self) -> None:
        self._pool.stop()
        self._pool.join(timeout=10)
