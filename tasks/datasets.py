"""Reading questions and answers from a hub dataset, a local folder or a file."""

import csv
import json
from pathlib import Path

from tasks.errors import UsageError
from tasks.task import Example


def read_questions(
    source: str, input_key: str, output_key: str, split: str, flag: str, optional: bool = False
) -> list[Example]:
    """Read the two columns of a dataset as text.

    Args:
        source: a .jsonl, .json, .csv or .parquet file, a folder (saved by `datasets`, or of such files), or a name on
            the hub.
        input_key: column of the question.
        output_key: column of the reference.
        split: which split to take where the source has several.
        flag: the option that named the source, for messages.
        optional: return [] where the source has no such split, instead of falling back on its only one.

    Raises:
        UsageError: unreadable, empty, or without the named columns.
    """
    path = Path(source)
    rows = _read_file(path, flag) if path.is_file() else _read_dataset(source, split, flag, optional)
    if path.is_file() and optional:
        return []
    if rows is None:
        return []
    if not rows:
        raise UsageError(f"{flag} {source} holds no problem; name a dataset that does.")
    for key, option in ((input_key, "--input-key"), (output_key, "--output-key")):
        if key not in rows[0]:
            raise UsageError(
                f"{flag} {source} has no column {key!r} (it has {', '.join(map(repr, rows[0]))}); set {option}."
            )
    examples = [Example(str(row.get(input_key) or "").strip(), _as_text(row.get(output_key))) for row in rows]
    kept = [example for example in examples if example.question and example.answer]
    if not kept:
        raise UsageError(f"{flag} {source} has only empty questions or answers; check --input-key and --output-key.")
    return kept


def _as_text(answer) -> str:
    """A reference as text: one-element lists are opened, whole floats lose their ".0"."""
    if isinstance(answer, (list, tuple)) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    return "" if answer is None else str(answer).strip()


def _read_file(path: Path, flag: str) -> list[dict]:
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        if path.suffix == ".json":
            return list(json.loads(path.read_text()))
        if path.suffix == ".csv":
            with path.open(newline="") as file:
                return list(csv.DictReader(file))
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise UsageError(f"{flag} {path} cannot be read: {error}.") from error
    raise UsageError(f"{flag} {path} is no .jsonl, .json, .csv or .parquet file.")


def _read_dataset(source: str, split: str, flag: str, optional: bool) -> list[dict] | None:
    import datasets

    datasets.disable_progress_bars()
    try:
        is_saved = (Path(source) / "dataset_dict.json").exists() or (Path(source) / "state.json").exists()
        loaded = datasets.load_from_disk(source) if is_saved else datasets.load_dataset(source)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{flag} {source} is neither a file, a folder nor a dataset the hub gives ({reason})."
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            if optional:
                return None
            split = "train" if "train" in loaded else next(iter(loaded))
        loaded = loaded[split]
    elif optional:
        return None
    return loaded.to_list()
