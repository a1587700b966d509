"""Reading questions and references from a hub dataset, a local folder or a file."""

import csv
import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from tasks.answers.equality import ALTERNATIVES
from tasks.boxed import last_boxed
from tasks.errors import UsageError, first_line, require
from tasks.task import Example

HUB_PATIENCE_S = 3.0


def read_questions(
    source: str,
    input_key: str,
    output_key: str,
    split: str,
    flag: str,
    optional: bool = False,
    others: Sequence[tuple[str, str]] = (),
) -> list[Example]:
    """Read the two columns of a dataset as text.

    Args:
        source: a .jsonl, .json, .csv or .parquet file, a folder (saved by `datasets`, or of such files), or a name on
            the hub, with ":" and a configuration where it has several ("openai/gsm8k:main").
        input_key: column of the question, "outer.inner" for a field within one; a chat counts as its last user turn.
        output_key: column of the reference, likewise.
        split: which split to take where the source has several.
        flag: the option that named the source, for messages.
        optional: return [] where the source has no such split, instead of falling back on its only one.
        others: columns to take instead where it has no such two, the first that it has.

    Raises:
        UsageError: unreadable, empty, without the named columns, or with an empty question or reference.
    """
    if Path(source).is_file():
        rows = None if optional else _read_file(Path(source), flag)
    else:
        rows = _read_dataset(source, split, flag, optional)
    if rows is None:
        return []
    require(bool(rows), f"{flag} {source} holds no problem; name a dataset that does.")
    asked_for = (input_key, output_key)
    keys = next((keys for keys in (asked_for, *others) if all(_has(rows[0], key) for key in keys)), asked_for)
    columns = list(zip(keys, ("--input-key", "--output-key"), (question_text, reference_text), strict=True))
    for key, option, _ in columns:
        there = ", ".join(map(repr, rows[0]))
        require(_has(rows[0], key), f"{flag} {source} has no column {key!r} (it has {there}); set {option}.")
    texts = [[text_of(_field(row, key)) for row in rows] for key, _, text_of in columns]
    for (key, option, _), column in zip(columns, texts, strict=True):
        if "" in column:
            raise UsageError(
                f"{flag} {source}: {column.count('')} of {len(rows)} problems have an empty {key!r}, the first is "
                f"number {column.index('') + 1}; remove them, or name another column with {option}."
            )
    return [Example(question, reference) for question, reference in zip(*texts, strict=True)]


def _has(row: dict, key: str) -> bool:
    return _field(row, key, missing := object()) is not missing


def _field(row: dict, key: str, default=None):
    """Of a row; a dotted name is that of a field within a field."""
    if key in row:
        return row[key]
    outer, _, inner = key.partition(".")
    return _field(row[outer], inner, default) if inner and isinstance(row.get(outer), dict) else default


def question_text(question) -> str:
    """A question as text; of a chat, [{"role": ..., "content": ...}, ...], what the user said last."""
    if isinstance(question, (list, tuple)):
        said = [turn["content"] for turn in question if isinstance(turn, dict) and turn.get("role") == "user"]
        question = said[-1] if said else None
    return "" if question is None else str(question).strip()


def reference_text(answer) -> str:
    r"""A reference as text.

    A list holds answers any of which is right; they are joined by `tasks.answers.equality.ALTERNATIVES`. Whole floats
    lose their ".0", spaces and line ends are one space each. Of a worked solution the answer is taken: what follows
    "####" (GSM8K), or the last ``\boxed{}`` (MATH).

    Example: ``reference_text(["4\n"]) == "4"`` and ``reference_text(142.0) == "142"``.
    """
    if isinstance(answer, (list, tuple)):
        alternatives = dict.fromkeys(filter(None, map(reference_text, answer)))
        return ALTERNATIVES.join(alternatives)
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    text = "" if answer is None else str(answer)
    if "####" in text:
        text = text.rpartition("####")[2]
    elif (boxed := last_boxed(text)) is not None:
        text = boxed
    return re.sub(r"\s+", " ", text).strip()


def _read_file(path: Path, flag: str) -> list[dict]:
    require(
        path.suffix in (".jsonl", ".json", ".csv", ".parquet"),
        f"{flag} {path} is no .jsonl, .json, .csv or .parquet file; convert it to one.",
    )
    try:
        if path.suffix == ".jsonl":
            # Not splitlines: JSON strings may hold the other line ends that it knows.
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        elif path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        else:
            import pyarrow.parquet

            rows = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (OSError, ValueError) as error:
        raise UsageError(f"{flag} {path} cannot be read ({first_line(error)}); check the file.") from error
    require(
        isinstance(rows, list) and all(isinstance(row, dict) for row in rows),
        f"{flag} {path} does not hold one JSON object for each problem; convert it.",
    )
    return rows


def _read_dataset(source: str, split: str, flag: str, optional: bool) -> list[dict] | None:
    """None where ``optional`` and there is no such split."""
    name, _, configuration = source.partition(":")
    is_folder = Path(source).is_dir()
    if not is_folder:
        _require_on_hub(name, f"{flag} {source}")
    import datasets

    datasets.disable_progress_bars()
    try:
        if is_folder and any((Path(source) / file).exists() for file in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(source)
        else:
            loaded = datasets.load_dataset(source) if is_folder else datasets.load_dataset(name, configuration or None)
    except Exception as error:
        raise UsageError(
            f"{flag} {source} cannot be read as a dataset ({first_line(error)}); name another, or a file."
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


def _require_on_hub(name: str, given: str) -> None:
    """Ask the hub once, for `datasets` retries for minutes. In a thread, as looking up a host has no time limit."""
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or re.search(r"\.\w+$", name)
    require(not looks_like_a_path, f"{given} does not exist: it is neither a file, a folder nor a hub name; check it.")
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:  # what is in the local cache loads, and the rest fails at once
        return
    outcome: list[Exception | None] = [TimeoutError(f"no answer within {HUB_PATIENCE_S:g} s")]

    def ask() -> None:
        try:
            HfApi().dataset_info(name, timeout=HUB_PATIENCE_S)
            outcome[0] = None
        except Exception as error:
            outcome[0] = error

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_PATIENCE_S)
    if (error := outcome[0]) is not None:
        raise UsageError(
            f"{given} is neither a file, a folder nor a dataset that the hub gives ({first_line(error)}); check the "
            "name and the network, or use a local copy."
        ) from error
