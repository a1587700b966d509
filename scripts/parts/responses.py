"""Sampled responses with both engines' log-probabilities, on disk in chunks, so that an analysis can be taken up again.

A chunk is sampled, then scored, and each state is a file that appears whole or not at all. When all is done,
`pandas.read_parquet("<folder>")` gives one row a response.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet


@dataclass
class Response:
    """One sampled response. It has what `RolloutBatch.from_transitions` reads of a transition."""

    prompt: int
    """index of its prompt"""
    sample: int
    """which of the prompt's responses"""
    prompt_ids: list[int]
    response_ids: list[int]
    log_mu: list[float]
    """of each response token, as the sampler reported it"""
    finished: bool
    """False if it was cut at --max-tokens"""
    log_pi: list[float] | None = None
    """of each response token, from the trainer's model; None until it is scored"""

    @property
    def response_logprobs(self) -> list[float]:
        return self.log_mu

    @property
    def rewards(self) -> tuple[float]:
        return (0.0,)  # nothing is graded here

    @property
    def loss_mask(self) -> bool:
        return True

    def __len__(self) -> int:
        """Tokens of prompt and response together."""
        return len(self.prompt_ids) + len(self.response_ids)


SCHEMA = pyarrow.schema(
    [
        ("dtype", pyarrow.string()),
        ("prompt", pyarrow.int32()),
        ("sample", pyarrow.int32()),
        ("prompt_ids", pyarrow.list_(pyarrow.int32())),
        ("response_ids", pyarrow.list_(pyarrow.int32())),
        ("log_mu", pyarrow.list_(pyarrow.float32())),
        ("finished", pyarrow.bool_()),
        ("log_pi", pyarrow.list_(pyarrow.float32())),
    ]
)
COLUMNS = [field.name for field in fields(Response)]


class Chunks:
    """The responses of one dtype, in files.

    Args:
        folder: of the final files; what is sampled and not yet scored lies in a sub-folder, ``_sampled`` (a name that
            readers of parquet folders pass over).
        dtype: name, as in --dtype.
        count: how many chunks there will be.
    """

    def __init__(self, folder: Path, dtype: str, count: int):
        self.folder, self.dtype, self.count = folder, dtype, count

    def not_sampled(self) -> list[int]:
        return [i for i in range(self.count) if not (self._scored(i).exists() or self._sampled(i).exists())]

    def not_scored(self) -> list[int]:
        return [i for i in range(self.count) if not self._scored(i).exists()]

    def write_sampled(self, index: int, responses: Sequence[Response]) -> None:
        self._write(self._sampled(index), responses)

    def write_scored(self, index: int, responses: Sequence[Response]) -> None:
        self._write(self._scored(index), responses)
        self._sampled(index).unlink(missing_ok=True)

    def read_sampled(self, index: int) -> list[Response]:
        return _read(self._sampled(index))

    def scored(self) -> Iterator[list[Response]]:
        """Every chunk, in order; all of them must have been scored."""
        return (_read(self._scored(i)) for i in range(self.count))

    def _scored(self, index: int) -> Path:
        return self.folder / f"{self.dtype}-{index:05d}.parquet"

    def _sampled(self, index: int) -> Path:
        return self.folder / "_sampled" / f"{self.dtype}-{index:05d}.parquet"

    def _write(self, file: Path, responses: Sequence[Response]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        table = pyarrow.Table.from_pylist([asdict(r) | {"dtype": self.dtype} for r in responses], schema=SCHEMA)
        unfinished = file.with_name(f"_{file.name}")
        parquet.write_table(table, unfinished)
        os.replace(unfinished, file)


def _read(file: Path) -> list[Response]:
    return [Response(**row) for row in parquet.read_table(file, columns=COLUMNS, partitioning=None).to_pylist()]
