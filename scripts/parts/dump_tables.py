"""Dumps that are tables with a row a response: parquet, read by columns, and JSON lines."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow
import pyarrow.compute
from pyarrow import parquet

from scripts.parts.dump import ASK, OF_A_ROW, TOKENS, TYPES, Part, Ragged, as_type, named_rows
from tasks.errors import UsageError, first_line, require

LONGEST_LINE = 2**28  # bytes of a row in JSON

# Our names -> a format's.
PLAIN = {name: name for name in (*TOKENS, "prompt_ids", *OF_A_ROW)}
TABLES = {
    "plain": PLAIN,
    "analysis": PLAIN | {"group": "prompt", "dtype": "dtype"},
    "prime-rl": {
        "response_ids": "token_ids", "log_mu": "inference_logprobs", "log_pi": "trainer_logprobs", "mask": "loss_mask",
        "step": "step",
    },
}  # fmt: skip
NEEDED = ("response_ids", "log_mu", "log_pi")
COLUMNS = {theirs for names in TABLES.values() for theirs in names.values()}

# Columns by which a table is known that lacks log-probabilities, and what to do.
LACKING = (
    ({"prompt", "completion", "advantage"}, "TRL's logged completions, which hold no log-probability; start the run "
     "with scripts/dump_trl.py, which keeps them"),
    ({"input", "output", "gts", "score"}, "verl's rollout_data_dir, which holds text and no log-probability; add the "
     "line of docs/dumps.md that saves the batch"),
)  # fmt: skip


def _names(columns: set[str], file: Path, form: str | None) -> dict[str, str]:
    """Our names -> those of a table with such columns.

    Raises:
        UsageError: what is needed is not there.
    """
    if form is None:
        of_prime_rl = columns & {"inference_logprobs", "trainer_logprobs"}
        form = "prime-rl" if of_prime_rl else "analysis" if {"dtype", "prompt", "sample"} <= columns else "plain"
    require(form in TABLES, f"{file} is a table, and {form} writes tensors; leave the format out.")
    names = TABLES[form]
    missing = [names[name] for name in NEEDED if names[name] not in columns]
    for known, what in LACKING:
        require(not (missing and known <= columns), f"{file} is {what}.")
    there = ", ".join(sorted(columns)[:12]) + (" ..." if len(columns) > 12 else "")
    require(not missing, f"{file} has no {' and no '.join(missing)} (it has: {there}); {ASK}.")
    return {ours: theirs for ours, theirs in names.items() if theirs in columns}


def read_parquet(file: Path, form: str | None) -> Part:
    """Column by column, so that no more than one is there twice."""
    opened = parquet.ParquetFile(file)
    names = _names(set(opened.schema_arrow.names), file, form)
    part = Part(file, {}, np.arange(1, opened.metadata.num_rows + 1))
    require(len(part.rows) > 0, f"{file} has no rows; leave it out.")
    missing = np.zeros(len(part.rows), bool)
    for ours, theirs in names.items():
        column = opened.read(columns=[theirs]).column(0)
        if ours == "dtype":
            part.claims = _claims_of(file, column.unique().to_pylist())
        elif ours in OF_A_ROW:
            part.add(ours, column.to_pylist())
        else:
            absent = pyarrow.compute.is_null(column).to_numpy()
            if ours in NEEDED:
                missing |= absent
            elif absent.any():
                part.problems.append(f"{file.name}: {theirs} is left out, as it is missing in some rows")
                continue
            try:
                part.columns[ours] = _flat(column, TYPES.get(ours, np.float32))
            except (ValueError, TypeError, pyarrow.ArrowException) as error:
                why = f"is a column of {column.type} ({first_line(error)})"
                require(ours not in (*NEEDED, "mask"), f"{file}: {theirs} {why}; a list of numbers a row is wanted.")
                part.problems.append(f"{file.name}: {theirs} is left out, as it {why}")
    part.drop(missing, "they lack tokens or log-probabilities")
    return part


def _claims_of(file: Path, dtypes: list) -> dict:
    """Of an analysis, whose engines share a dtype and sample at temperature 1, unfiltered."""
    require(len(dtypes) == 1, f"{file} holds several dtypes ({', '.join(map(str, dtypes))}); keep one.")
    return {"sample_dtype": dtypes[0], "train_dtype": dtypes[0], "temperature": 1.0, "top_p": 1.0}


def _flat(column: pyarrow.ChunkedArray, dtype: type) -> Ragged:
    if not isinstance(column.type, pyarrow.ListType | pyarrow.LargeListType | pyarrow.FixedSizeListType):
        raise ValueError("it holds no lists")
    lengths = pyarrow.compute.fill_null(pyarrow.compute.list_value_length(column), 0).to_numpy().astype(np.int64)
    arrays = [as_type(chunk.flatten().to_numpy(zero_copy_only=False), dtype) for chunk in column.chunks]
    return Ragged(lengths, arrays[0] if len(arrays) == 1 else np.concatenate(arrays))


Row = msgspec.defstruct("Row", [(name, object, None) for name in sorted(COLUMNS)], gc=False)


def read_lines(file: Path, form: str | None) -> Part:
    """JSON lines, read one after the other; msgspec decodes, and the json module what msgspec does not take (NaN)."""
    decoder = msgspec.json.Decoder(Row)
    names: dict[str, str] = {}
    lists: dict[str, list[np.ndarray]] = {}
    of_rows: dict[str, list] = {}
    rows, damaged, lacking = [], [], []
    spoilt: dict[str, str] = {}  # columns that are not needed -> why they are left out
    why = ""
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            if not names:
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise ValueError("a row is no JSON object")
                names = _names(set(found), file, form)
                tokens = {ours: theirs for ours, theirs in names.items() if ours in (*TOKENS, "prompt_ids")}
                lists, of_rows = {ours: [] for ours in tokens}, {ours: [] for ours in names if ours in OF_A_ROW}
            row = _decoded(decoder, line)
            values = {ours: getattr(row, theirs) for ours, theirs in tokens.items()}
            if any(value is None for value in values.values()):
                lacking.append(number)
                continue
            arrays = {}
            for ours, value in values.items():
                try:
                    arrays[ours] = _list(value, TYPES.get(ours, np.float32))
                except (ValueError, TypeError, OverflowError) as error:
                    if ours in (*NEEDED, "mask"):
                        raise
                    spoilt.setdefault(ours, f"in row {number} it cannot be read ({first_line(error)})")
        except UsageError:
            raise
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            damaged.append(number)
            why = why or first_line(error)
            continue
        for ours in spoilt.keys() & lists.keys():
            del lists[ours], tokens[ours]
        for ours, array in arrays.items():
            if ours in lists:
                lists[ours].append(array)
        for ours in of_rows:
            of_rows[ours].append(getattr(row, names[ours]))
        rows.append(number)
    require(bool(rows), f"{file} has no row that can be read{f' ({why})' if why else ''}; {ASK}.")
    part = Part(file, {}, np.array(rows))
    for ours in list(lists):
        part.columns[ours] = Ragged.of(lists.pop(ours))
    for ours, values in of_rows.items():
        part.add(ours, values)
    part.problems += [f"{file.name}: {names[ours]} is left out, as {told}" for ours, told in spoilt.items()]
    if damaged:
        part.problems.append(f"{file.name}: {named_rows(damaged)} dropped, as they cannot be read ({why})")
    if lacking:
        part.problems.append(
            f"{file.name}: {named_rows(lacking)} dropped, as columns of the first row are missing there"
        )
    return part


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while line := opened.readline(LONGEST_LINE):
            require(
                len(line) < LONGEST_LINE, f"{file} has a line of more than {LONGEST_LINE >> 20} MiB; it is no dump."
            )
            yield line


def _decoded(decoder: msgspec.json.Decoder, line: bytes):
    try:
        return decoder.decode(line)
    except msgspec.DecodeError:  # NaN and Infinity, as Python's json writes them, or damage
        found = json.loads(line)
        if not isinstance(found, dict):
            raise ValueError("a row is no JSON object") from None
        return Row(**{name: value for name, value in found.items() if name in Row.__struct_fields__})


def _list(value: object, dtype: type) -> np.ndarray:
    if not isinstance(value, list):
        raise ValueError("a list of numbers is wanted")
    if dtype == np.float32:
        with np.errstate(over="ignore"):
            made = np.array(value, np.float32)
    else:
        made = as_type(np.array(value, None if value else dtype), dtype)
    if made.ndim != 1:
        raise ValueError("a list of numbers is wanted, and it holds lists")
    return made
