"""The formats of dumps, told apart by their content, each read into a `Part` (scripts/parts/dump.py).

Tables are parquet or JSON lines with a row a response; tensors are what torch.save wrote of them. A pickle of anything
else is refused: reading one runs what its writer pleased. Each framework's names are those of its source at the commit
that docs/dumps.md names.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pyarrow
import pyarrow.compute
import torch
from pyarrow import parquet

from scripts.parts.dump import TOKENS, TYPES, Part, Ragged, named_rows
from tasks.errors import UsageError, first_line, require

ENDINGS = {".parquet", ".jsonl", ".json", ".pt", ".pth", ".pkl"}
NOT_DUMPS = {"claims.json", "settings.json", "config.json", "summary.json", "metrics.jsonl", "samples.jsonl"}
WHERE = ("rollouts", "token_exports", "train_data")  # in a run's folder: this project's, prime-rl's, slime's
LONGEST_LINE = 2**28  # bytes of a row in JSON
OF_A_ROW = ("reward", "group", "step", "finished")
ASK = "docs/dumps.md has what each framework writes, and a ten-line writer for any trainer"

# Our names -> a framework's, in a table.
PLAIN = {name: name for name in (*TOKENS, "prompt_ids", *OF_A_ROW, "dtype")}
OWN = PLAIN | {"group": "prompt"}
PRIME_RL = {
    "response_ids": "token_ids", "log_mu": "inference_logprobs", "log_pi": "trainer_logprobs", "mask": "loss_mask",
    "step": "step",
}  # fmt: skip
FORMATS = ("plain", "analysis", "prime-rl", "slime", "verl", "skyrl", "trl")

# Columns by which a table is known that lacks log-probabilities, and what to do.
LACKING = (
    ({"prompt", "completion", "advantage"}, "TRL's logged completions, which hold no log-probability; start the run "
     "with scripts/dump_trl.py, which keeps them"),
    ({"input", "output", "gts", "score"}, "verl's rollout_data_dir, which holds text and no log-probability; add the "
     "line of docs/dumps.md that saves the batch"),
)  # fmt: skip


# --------------------------------------------------------------------------------------------------------- which files


def files_of(paths: list[Path]) -> list[Path]:
    """The dumps that files and folders name.

    Raises:
        UsageError: there is none, or they are larger than this machine's memory.
    """
    require(bool(paths), "no dump is named; give files or folders.")
    files = []
    for path in map(Path, paths):
        require(path.is_file() or path.is_dir(), f"{path} is no file or folder; name a dump.")
        found = [path] if path.is_file() else _inside(path)
        require(
            bool(found), f"{path} holds no dump ({', '.join(sorted(ENDINGS))}); name a folder that does, or a file."
        )
        files += found
    sizes = {file: file.stat().st_size for file in files}
    empty = next((file for file, size in sizes.items() if size == 0), None)
    require(empty is None, f"{empty} is empty; leave it out.")
    needed, free = sum(needed_memory(file) for file in files), free_memory()
    require(
        needed < free,
        f"{', '.join(map(str, paths))}: reading this takes about {needed / 2**30:.1f} GiB of memory, and "
        f"{free / 2**30:.1f} are free; give fewer files.",
    )
    return files


def _inside(folder: Path) -> list[Path]:
    folder = next((folder / name for name in WHERE if (folder / name).is_dir()), folder)
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in ENDINGS
        and path.is_file()
        and path.name not in NOT_DUMPS
        and not path.name.endswith(".claims.json")
        and not any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)
    )


def free_memory() -> int:
    """Bytes that this machine can give."""
    with open("/proc/meminfo") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))


def needed_memory(file: Path) -> int:
    """About how many bytes the arrays of a file take at most while it is read."""
    if _magic(file) != b"PAR1":
        return file.stat().st_size  # JSON has some ten characters for the four bytes of a number
    try:
        described = parquet.ParquetFile(file).metadata
    except (pyarrow.ArrowException, OSError):
        return 0  # the reader says what is wrong
    groups = [described.row_group(i) for i in range(described.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    names = {*PLAIN.values(), *OWN.values(), *PRIME_RL.values()}
    return 8 * sum(column.num_values for column in columns if column.path_in_schema.partition(".")[0] in names)


def _magic(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4)


def parts_of(file: Path, form: str | None) -> list[Part]:
    """A file's responses, in the format named or as its content tells.

    Raises:
        UsageError: it is damaged, or in no format that is known, or lacks log-probabilities.
    """
    require(form is None or form in FORMATS, f"{form} is no format that is known; they are {', '.join(FORMATS)}.")
    magic = _magic(file)
    try:
        if magic == b"PAR1":
            return [_read_parquet(file, form)]
        if magic[:2] == b"PK" or magic[:1] == b"\x80":
            return _read_torch(file, form)
        if magic.lstrip()[:1] in (b"{", b""):
            return [_read_lines(file, form)]
    except UsageError:
        raise
    except (pyarrow.ArrowException, OSError, MemoryError, ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise UsageError(f"{file} is damaged or no dump ({first_line(error)}); {ASK}.") from error
    raise UsageError(f"{file} is neither parquet nor JSON lines nor tensors of torch.save; {ASK}.")


def _names(columns: set[str], file: Path, form: str | None) -> dict[str, str]:
    """Our names -> those of a table with such columns.

    Raises:
        UsageError: what is needed is not there.
    """
    if form is None:
        if PRIME_RL["log_mu"] in columns or PRIME_RL["log_pi"] in columns:
            form = "prime-rl"
        else:
            form = "analysis" if {"dtype", "prompt", "sample"} <= columns else "plain"
    tables = {"plain": PLAIN, "analysis": OWN, "prime-rl": PRIME_RL}
    require(form in tables, f"{file} is a table, and {form} writes tensors; leave the format out.")
    names = tables[form]
    missing = [names[name] for name in ("response_ids", "log_mu", "log_pi") if names[name] not in columns]
    for known, what in LACKING:
        require(not (missing and known <= columns), f"{file} is {what}.")
    there = ", ".join(sorted(columns)[:12]) + (" ..." if len(columns) > 12 else "")
    require(not missing, f"{file} has no {' and no '.join(missing)} (it has: {there}); {ASK}.")
    return {ours: theirs for ours, theirs in names.items() if theirs in columns}


# -------------------------------------------------------------------------------------------------------------- tables


def _read_parquet(file: Path, form: str | None) -> Part:
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
            _add_of_rows(part, ours, column.to_pylist())
        else:
            is_list = pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type)
            require(is_list, f"{file}: {theirs} is a column of {column.type}; it holds a list of numbers a row.")
            absent = pyarrow.compute.is_null(column).to_numpy()
            if ours in ("response_ids", "log_mu", "log_pi"):
                missing |= absent
            elif absent.any():
                part.problems.append(f"{file.name}: {theirs} is left out, as it is missing in some rows")
                continue
            part.columns[ours] = _flat(column, TYPES.get(ours, np.float32))
    part.drop(missing, "they lack tokens or log-probabilities")
    return part


def _claims_of(file: Path, dtypes: list) -> dict:
    """Of an analysis, whose engines share a dtype and sample at temperature 1, unfiltered."""
    require(len(dtypes) == 1, f"{file} holds several dtypes ({', '.join(map(str, dtypes))}); keep one.")
    return {"sample_dtype": dtypes[0], "train_dtype": dtypes[0], "temperature": 1.0, "top_p": 1.0}


def _flat(column: pyarrow.ChunkedArray, dtype: type) -> Ragged:
    lengths = pyarrow.compute.fill_null(pyarrow.compute.list_value_length(column), 0).to_numpy().astype(np.int64)
    chunks = [chunk.flatten() for chunk in column.chunks]
    arrays = [chunk.to_numpy(zero_copy_only=False) for chunk in chunks]
    if any(array.dtype == object for array in arrays):
        raise ValueError(f"a column of {column.type} holds no numbers")
    return Ragged(
        lengths, np.concatenate([_as(array, dtype) for array in arrays]) if len(arrays) != 1 else _as(arrays[0], dtype)
    )


def _as(values: np.ndarray, dtype: type) -> np.ndarray:
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


def _add_of_rows(part: Part, name: str, values: list) -> None:
    """A column with a value a row; where some are missing, NaN, -1, or it is left out."""
    if all(value is None for value in values):
        return
    if name == "reward":
        part.columns[name] = np.array([np.nan if value is None else value for value in values], np.float64)
    elif name == "step":
        part.columns[name] = np.array([-1 if value is None else value for value in values], np.int64)
    elif any(value is None for value in values):
        part.problems.append(f"{part.file.name}: {name} is left out, as some rows have none")
    elif name == "finished":
        part.columns[name] = np.array(values, bool)
    else:  # labels of any kind
        part.columns[name] = np.array(["{}".format(value) for value in values], object)


Row = msgspec.defstruct(
    "Row",
    [(name, object, None) for name in sorted({*PLAIN.values(), *PRIME_RL.values()})],
    gc=False,
)


def _read_lines(file: Path, form: str | None) -> Part:
    """JSON lines, read one after the other; msgspec decodes, and the json module what msgspec does not take (NaN)."""
    decoder = msgspec.json.Decoder(Row)
    names: dict[str, str] = {}
    lists: dict[str, list[np.ndarray]] = {}
    of_rows: dict[str, list] = {}
    rows, damaged, lacking = [], [], []
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
            arrays = {ours: _list(value, TYPES.get(ours, np.float32)) for ours, value in values.items()}
        except UsageError:
            raise
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            damaged.append(number)
            why = why or first_line(error)
            require(number > 1 or len(line) < LONGEST_LINE, f"{file} is damaged or no dump ({why}); {ASK}.")
            continue
        for ours, array in arrays.items():
            lists[ours].append(array)
        for ours in of_rows:
            of_rows[ours].append(getattr(row, names[ours]))
        rows.append(number)
    require(bool(rows), f"{file} has no row that can be read{f' ({why})' if why else ''}; {ASK}.")
    part = Part(file, {}, np.array(rows))
    for ours in list(lists):
        part.columns[ours] = Ragged.of(lists.pop(ours))
    for ours, values in of_rows.items():
        _add_of_rows(part, ours, values)
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
        made = _as(np.array(value, None if value else dtype), dtype)
    if made.ndim != 1:
        raise ValueError("a list of numbers is wanted, and it holds lists")
    return made


# ------------------------------------------------------------------------------------------------------------- tensors


def _read_torch(file: Path, form: str | None) -> list[Part]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: whatever its bytes lead the restricted unpickler to
        raise UsageError(
            f"{file} is a pickle of more than tensors and plain values, which could run anything when it is read, and "
            "is not; convert it where it was written, with the line that docs/dumps.md has for it."
        ) from error
    require(isinstance(found, Mapping), f"{file} holds a {type(found).__name__}; a dictionary is wanted ({ASK}).")
    for name, (known, reader) in TENSORS.items():
        if form == name or (form is None and known <= found.keys()):
            missing = known - found.keys()
            require(not missing, f"{file} has no {' and no '.join(sorted(missing))}; {ASK}.")
            return [reader(file, found)]
    keys = ", ".join(sorted(map(str, found))[:12])
    if found.keys() & {"rollout_log_probs", "rollout_logprobs", "sampling_per_token_logps"}:
        raise UsageError(f"{file} has the sampler's log-probabilities and not the trainer's (it has: {keys}); {ASK}.")
    raise UsageError(f"{file} holds tensors in no form that is known (it has: {keys}); {ASK}.")


def _padded(file: Path, found: Mapping, names: Mapping[str, str], mask: torch.Tensor) -> Part:
    """Columns of (N, R) tensors, of which ``mask`` says what a policy sampled."""
    rows, sampled = len(mask), mask.bool()
    part = Part(file, {}, np.arange(1, rows + 1))
    lengths = sampled.sum(1).numpy()
    for ours, theirs in names.items():
        tensor = found[theirs]
        is_one = isinstance(tensor, torch.Tensor) and not tensor.is_nested and tensor.shape == mask.shape
        require(is_one, f"{file}: {theirs} is no tensor of {rows} rows of {mask.shape[1]}, as the mask is.")
        part.columns[ours] = Ragged(
            lengths,
            _as(
                tensor[sampled].float().numpy() if ours.startswith("log") else tensor[sampled].numpy(),
                TYPES.get(ours, np.float32),
            ),
        )
    number = re.search(r"(?:^|step[_-]?)(\d+)", file.stem)
    if number:
        part.columns["step"] = np.full(rows, int(number[1]))
    return part


def _rows_of(ids: torch.Tensor, mask: torch.Tensor) -> Ragged:
    return Ragged(mask.bool().sum(1).numpy(), _as(ids[mask.bool()].numpy(), np.int32))


def _tensor(file: Path, found: Mapping, name: str) -> torch.Tensor:
    tensor = found[name]
    is_one = isinstance(tensor, torch.Tensor) and not tensor.is_nested and tensor.dim() == 2
    require(is_one, f"{file}: {name} is no padded tensor of responses; {ASK}.")
    return tensor


def _add_rewards(part: Part, found: Mapping, *names: str) -> None:
    for name in names:
        if isinstance(found.get(name), torch.Tensor) and len(found[name]) == len(part.rows):
            scores = found[name].double()
            part.columns["reward"] = (scores.sum(1) if scores.dim() == 2 else scores).numpy()
            return


def _add_groups(part: Part, found: Mapping, name: str) -> None:
    labels = found.get(name)
    if isinstance(labels, list | tuple) and len(labels) == len(part.rows):
        _add_of_rows(part, "group", list(labels))


def _verl(file: Path, found: Mapping) -> Part:
    """`dict(batch.batch)` of a DataProto after old_log_probs were computed."""
    names = {"response_ids": "responses", "log_mu": "rollout_log_probs", "log_pi": "old_log_probs"}
    part = _padded(file, found, names, _tensor(file, found, "response_mask"))
    if "prompts" in found and "attention_mask" in found:
        prompts = _tensor(file, found, "prompts")
        part.columns["prompt_ids"] = _rows_of(prompts, found["attention_mask"][:, : prompts.shape[1]])
    _add_rewards(part, found, "token_level_scores", "rm_scores")
    _add_groups(part, found, "uid")
    return part


def _skyrl(file: Path, found: Mapping) -> Part:
    """A TrainingInputBatch as a dictionary: responses stand at the right end of what they are part of."""
    mask, ids = _tensor(file, found, "loss_mask"), _tensor(file, found, "sequences")
    width = mask.shape[1]
    names = {"response_ids": "sequences", "log_mu": "rollout_logprobs", "log_pi": "action_log_probs"}
    part = _padded(file, {**found, "sequences": ids[:, -width:]}, names, mask)
    if "attention_mask" in found and "response_mask" in found:
        prompt = _tensor(file, found, "attention_mask").bool().clone()
        prompt[:, -width:] &= ~_tensor(file, found, "response_mask").bool()
        part.columns["prompt_ids"] = _rows_of(ids, prompt)
    _add_rewards(part, found, "rewards")
    _add_groups(part, found, "uids")
    return part


def _trl(file: Path, found: Mapping) -> Part:
    """What GRPOTrainer's _generate_and_score_completions returns."""
    mask = _tensor(file, found, "completion_mask")
    if isinstance(found.get("tool_mask"), torch.Tensor):
        mask = mask * found["tool_mask"]
    names = {"response_ids": "completion_ids", "log_mu": "sampling_per_token_logps", "log_pi": "old_per_token_logps"}
    part = _padded(file, found, names, mask)
    if "prompt_ids" in found and "prompt_mask" in found:
        part.columns["prompt_ids"] = _rows_of(found["prompt_ids"], found["prompt_mask"])
    return part


def _slime(file: Path, found: Mapping) -> Part:
    """--save-debug-train-data: a dictionary a sample, with tensors of its response."""
    samples = found["samples"]
    require(bool(samples) and isinstance(samples[0], Mapping), f"{file} holds no samples; leave it out.")
    missing = [name for name in ("tokens", "rollout_log_probs", "log_probs") if samples[0].get(name) is None]
    require(
        not missing,
        f"{file} is slime's, without {' and '.join(missing)}; give what --save-debug-train-data wrote, of a run whose "
        "rollouts have log-probabilities.",
    )
    lists: dict[str, list] = {"prompt_ids": [], "response_ids": [], "log_mu": [], "log_pi": [], "mask": []}
    for sample in samples:
        log_pi, ids = np.asarray(sample["log_probs"], np.float32), np.asarray(sample["tokens"])
        length = len(log_pi)
        lists["log_pi"].append(log_pi)
        lists["log_mu"].append(np.asarray(sample["rollout_log_probs"], np.float32))
        lists["response_ids"].append(_as(ids[len(ids) - length :], np.int32))
        lists["prompt_ids"].append(_as(ids[: len(ids) - length], np.int32))
        mask = sample.get("loss_masks")
        lists["mask"].append(np.ones(length, bool) if mask is None else np.asarray(mask).astype(bool))
    part = Part(file, {ours: Ragged.of(arrays) for ours, arrays in lists.items()}, np.arange(1, len(samples) + 1))
    rewards = found.get("raw_reward") or [sample.get("rewards") for sample in samples]
    if len(rewards) == len(samples) and all(isinstance(reward, int | float) for reward in rewards):
        _add_of_rows(part, "reward", list(rewards))
    if all(sample.get("truncated") is not None for sample in samples):
        part.columns["finished"] = np.array([not sample["truncated"] for sample in samples])
    if isinstance(found.get("rollout_id"), int):
        part.columns["step"] = np.full(len(samples), found["rollout_id"])
    return part


# Which keys tell a framework's dictionary, and its reader.
TENSORS: dict[str, tuple[set[str], Callable[[Path, Mapping], Part]]] = {
    "slime": ({"samples"}, _slime),
    "verl": ({"responses", "response_mask", "rollout_log_probs", "old_log_probs"}, _verl),
    "skyrl": ({"sequences", "loss_mask", "rollout_logprobs", "action_log_probs"}, _skyrl),
    "trl": ({"completion_ids", "completion_mask", "sampling_per_token_logps", "old_per_token_logps"}, _trl),
}
