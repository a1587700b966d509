"""What the readers of dumps make of a file, before all files become one `learners.diagnosis.dump.Dump`.

Rows that cannot be used are dropped, with a word on it. Nothing in a dump is ever executed. docs/dumps.md describes the
formats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

DTYPES = {"float16": "fp16", "half": "fp16", "bfloat16": "bf16", "float32": "fp32", "float": "fp32"}
TOKENS = ("response_ids", "log_mu", "log_pi", "log_pi_again", "mask")  # columns with a value a token of the response
OF_A_ROW = {  # columns with a value a row -> what makes an array of their values
    "reward": lambda values: np.array([np.nan if value is None else float(_number(value)) for value in values]),
    "step": lambda values: np.array([-1 if value is None else int(_number(value)) for value in values], np.int64),
    "finished": lambda values: np.array([bool(_number(value)) for value in values]),
    "group": lambda values: np.array([str(_label(value)) for value in values], object),
}
TYPES = {"response_ids": np.int32, "prompt_ids": np.int32, "mask": np.bool_}  # FP32 where nothing is said
ASK = "docs/dumps.md has what each framework writes, and a ten-line writer for any trainer"


@dataclass
class Ragged(Sequence):
    """Lists of different lengths, laid end to end; read as a sequence of lists."""

    lengths: np.ndarray
    """(N,) int64"""
    values: np.ndarray
    """(sum of the lengths,)"""

    @classmethod
    def of(cls, lists: list[np.ndarray]) -> "Ragged":
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        return cls(lengths, np.concatenate(lists) if lists else np.empty(0, np.float32))

    def starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def select(self, rows: np.ndarray) -> "Ragged":
        """Those lists that ``rows``, (N,) bool, says."""
        return Ragged(self.lengths[rows], self.values[np.repeat(rows, self.lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> list[int]:
        if not hasattr(self, "_starts"):
            self._starts = self.starts()
        index = range(len(self))[index]
        return self.values[self._starts[index] : self._starts[index + 1]].tolist()


@dataclass
class Part:
    """What a reader makes of one file: columns by the names of `Dump`, and ``mask``, False for tokens that no policy
    sampled (a tool's answer, padding), which are left out. Columns of tokens are `Ragged`, the others arrays."""

    file: Path
    columns: dict[str, Ragged | np.ndarray]
    rows: np.ndarray
    """(N,) int64, the number of each row in the file, from 1"""
    problems: list[str] = field(default_factory=list)
    claims: dict = field(default_factory=dict)
    unequal: int = 0
    """rows that were dropped since their columns have unequal lengths"""

    def add(self, name: str, values: list) -> None:
        """Add a column of `OF_A_ROW`; where some are missing, NaN, -1, or it is left out. None is needed: one that
        holds something else is left out too, with a word on it."""
        if all(value is None for value in values):
            return
        try:
            made = OF_A_ROW[name](values)
        except (ValueError, TypeError, OverflowError):
            odd = next(i for i, value in enumerate(values) if not _fits(OF_A_ROW[name], value))
            what = (
                "some rows have none" if values[odd] is None else f"row {self.rows[odd]} has {str(values[odd])[:40]!r}"
            )
            self.problems.append(f"{self.file.name}: {name} is left out, as {what}")
        else:
            self.columns[name] = made

    def drop(self, rows: np.ndarray, why: str) -> None:
        """Leave out those that ``rows``, (N,) bool, says, and note it."""
        if not rows.any():
            return
        self.problems.append(f"{self.file.name}: {named_rows(self.rows[rows])} dropped, as {why}")
        self.columns = {
            name: column.select(~rows) if isinstance(column, Ragged) else column[~rows]
            for name, column in self.columns.items()
        }
        self.rows = self.rows[~rows]

    def clean(self) -> None:
        """Leave columns of tokens that have the same lengths, without what is masked, and no empty response."""
        there = [name for name in TOKENS if name in self.columns]
        lengths = np.stack([self.columns[name].lengths for name in there])
        unequal = (lengths != lengths[0]).any(0)
        self.unequal += int(unequal.sum())
        self.drop(unequal, f"{', '.join(there[:-1])} and {there[-1]} have unequal lengths")
        if (mask := self.columns.pop("mask", None)) is not None:
            if "prompt_ids" not in self.columns:
                self.columns["prompt_ids"] = self._before_the_first(mask)
            starts = mask.starts()
            sampled = np.concatenate([[0], np.cumsum(mask.values)])
            lengths = sampled[starts[1:]] - sampled[starts[:-1]]
            for name in there:
                if name != "mask":
                    self.columns[name] = Ragged(lengths, self.columns[name].values[mask.values])
        self.drop(self.columns["response_ids"].lengths == 0, "no token of theirs was sampled")

    def _before_the_first(self, mask: Ragged) -> Ragged:
        """The tokens in front of the first sampled one: the prompt, where ids are of both."""
        places = np.arange(len(mask.values))
        starts = mask.starts()
        first = np.append(np.flatnonzero(mask.values), len(mask.values))
        first = np.minimum(first[np.searchsorted(first, starts[:-1])], starts[1:])
        before = places < np.repeat(first, mask.lengths)
        return Ragged(first - starts[:-1], self.columns["response_ids"].values[before])


def _number(value: object) -> int | float:
    if not isinstance(value, int | float):
        raise TypeError("a number is wanted")
    return value


def _label(value: object) -> object:
    if value is None:
        raise TypeError("a label is wanted")
    return value


def _fits(make: Callable[[list], np.ndarray], value: object) -> bool:
    try:
        make([value])
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def as_type(values: np.ndarray, dtype: type) -> np.ndarray:
    """Numbers in another type.

    Raises:
        ValueError: they are none, or ids that are too large or missing.
    """
    values = np.asarray(values)
    if values.dtype == dtype:
        return values
    if values.dtype == object:  # Python numbers, and None for a NaN that JSON does not know
        values = np.array(values, dtype=np.float64)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"numbers are wanted, and here are {values.dtype}")
    if dtype == np.int32:
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int64)
        if (whole != values).any() or np.abs(whole).max(initial=0) >= 2**31:
            raise ValueError("token ids are whole numbers below 2^31")
        values = whole
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype)


def named_rows(rows: Sequence[int]) -> str:
    """Such as "rows 3, 9 and 12 more"; they have been or are to be dropped."""
    named = ", ".join(map(str, rows[:5]))
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"row {named} is" if len(rows) == 1 else f"rows {named}{more} are"


def slices(starts: np.ndarray) -> list[slice]:
    """Of every response, into the flat arrays."""
    return [slice(first, last) for first, last in pairwise(starts.tolist())]
