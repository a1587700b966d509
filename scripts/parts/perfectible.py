"""Which problems are perfectible: neither too hard nor too easy for a model, and how soon that is certain.

A problem is kept when c of N sampled responses are right with ``low <= c / N <= high``. Pure functions of counts.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache


@lru_cache
def band_counts(samples: int, low: float, high: float) -> tuple[int, int]:
    """The least and the greatest number of right responses, of ``samples``, inside the band, bounds included.

    The bounds are taken as the decimals they are written as, so that 0.2 of 40 is 8 and not a little more.

    Example: ``band_counts(40, 0.2, 0.8) == (8, 32)``.
    """
    least, most = (Fraction(str(bound)) * samples for bound in (low, high))
    return -(-least.numerator // least.denominator), most.numerator // most.denominator


def verdict(right: int, drawn: int, samples: int, low: float, high: float) -> bool | None:
    """Whether a problem will be kept, after ``drawn`` of its ``samples`` responses; None while that is open.

    The final number of right responses lies between ``right`` and ``right + samples - drawn``: the problem is decided
    as soon as this range is wholly inside the band or wholly outside it. So deciding early keeps exactly what drawing
    all would keep.

    Returns:
        True: kept, False: left out, None: go on drawing.
    """
    least, most = band_counts(samples, low, high)
    lowest, highest = right, right + samples - drawn
    if lowest > most or highest < least or least > most:
        return False
    return True if least <= lowest and highest <= most else None


def fewest_draws_left(right: int, drawn: int, samples: int, low: float, high: float) -> int:
    """How many more responses it takes to decide a problem, if they turn out as well for that as they can."""
    least, most = band_counts(samples, low, high)
    left = samples - drawn
    if verdict(right, drawn, samples, low, high) is not None:
        return 0
    too_easy = most - right + 1  # so many right ones in a row
    too_hard = right + left - least + 1  # so many wrong ones in a row
    inside = max(0, least - right) + max(0, right + left - most)
    return min(too_easy, too_hard, inside)


AHEAD = 2


class Draws:
    """Which responses a set of problems still needs, and what is known of each problem.

    A problem's responses count in their order: the second only when the first is known, whichever came first. So what
    is decided of a problem, and after how many responses, does not depend on when each of them came.

    Args:
        problems: their ids.
        samples, low, high: a problem is kept when, of so many responses, between these shares are right.
        early: leave a problem alone once it is decided; else draw all its responses.
    """

    def __init__(self, problems: Sequence[str], samples: int, low: float, high: float, early: bool = True):
        self.problems, self.samples, self.low, self.high, self.early = list(problems), samples, low, high, early
        self._known: dict[str, dict[int, bool]] = {problem: {} for problem in self.problems}
        self.drawn = dict.fromkeys(self.problems, 0)
        """responses that count: those before the first that is not known, up to the one that decides"""
        self.right = dict.fromkeys(self.problems, 0)
        """how many of them are right"""
        self._needed = {problem: self._count_needed(problem) for problem in self.problems}
        open_problems = [problem for problem in self.problems if not self.is_done(problem)]
        self.remaining = self.samples * len(open_problems)
        """how many more responses may be needed, at most"""
        self.num_kept = sum(bool(self.verdict(problem)) for problem in self.problems if self.is_done(problem))
        """problems that are certain to be kept, so far"""

    def record(self, problem: str, sample: int, correct: bool) -> None:
        """Take in the outcome of a problem's response number ``sample`` (from 0)."""
        known, was_done = self._known[problem], self.is_done(problem)
        assert sample not in known, (problem, sample)
        known[sample] = correct
        while not self.is_done(problem) and self.drawn[problem] in known:
            self.right[problem] += known[self.drawn[problem]]
            self.drawn[problem] += 1
            self._needed[problem] = self._count_needed(problem)
        if not was_done:
            self.remaining -= 1
            if self.is_done(problem):
                self.remaining -= self.samples - len(known)
                self.num_kept += bool(self.verdict(problem))

    def _count_needed(self, problem: str) -> int:
        """How many of the problem's responses are needed at least, those that were drawn included."""
        if not self.early:
            return self.samples
        right, drawn = self.right[problem], self.drawn[problem]
        return drawn + fewest_draws_left(right, drawn, self.samples, self.low, self.high)

    def verdict(self, problem: str) -> bool | None:
        """True: kept, False: left out, None: not decided yet."""
        return verdict(self.right[problem], self.drawn[problem], self.samples, self.low, self.high)

    def is_done(self, problem: str) -> bool:
        """Whether no further response to this problem is needed."""
        return self.drawn[problem] == self._needed[problem]

    def kept(self) -> list[str]:
        """The perfectible problems, in their order."""
        return [problem for problem in self.problems if self.verdict(problem)]

    def wanted(self) -> Iterator[tuple[str, int] | None]:
        """(problem, sample) of the responses to draw; heeds what `record` is told meanwhile.

        Problem after problem, and of each only the responses that it needs whatever those under way turn out to be;
        when there are no others left, up to `AHEAD` of those that it may need, so that whoever draws is not idle.
        None says that what is under way has to be known first.
        """
        following, untouched = dict.fromkeys(self.problems, 0), iter(self.problems)
        begun: list[str] = []
        beyond = lambda problem: following[problem] - self._needed[problem]
        while True:
            begun = [problem for problem in begun if not self.is_done(problem) and following[problem] < self.samples]
            problem = next((problem for problem in begun if beyond(problem) < 0), None)
            if problem is None and (fresh := next(untouched, None)) is not None:
                begun.append(fresh)
                continue
            if problem is None and begun:
                problem = min(begun, key=beyond)
            if problem is None:
                return
            if beyond(problem) >= AHEAD:
                yield None
            elif following[problem] in self._known[problem]:
                following[problem] += 1
            else:
                yield problem, following[problem]
                following[problem] += 1
