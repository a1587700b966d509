"""Files and folders of any framework as one dump, with what is claimed of it."""

import json
from pathlib import Path

import numpy as np

from learners.diagnosis.dump import CLAIMS, Dump
from scripts.parts.dump import DTYPES, TOKENS, Part, Ragged
from scripts.parts.dump_formats import files_of, parts_of
from tasks.errors import UsageError, first_line, require

# What a claim may be; -1 is how vLLM says that there is no top-k.
RANGES = {"temperature": (1e-3, 1e3), "top_p": (1e-9, 1.0), "top_k": (-1, 1e9), "min_p": (0.0, 1.0)}


def read(paths: list[Path], claims: dict, form: str | None = None) -> Dump:
    """Read files and folders into one dump.

    Args:
        paths: files, or folders of files.
        claims: what the user says; it wins over what lies beside the files (``<file>.claims.json``, or claims.json in
            the folder).
        form: the format's name (`dump_formats.FORMATS`); None: by content.

    Raises:
        UsageError: a path is missing, empty, damaged, or in no format that is known; or a claim is.
    """
    files = files_of(paths)
    parts = [part for file in files for part in parts_of(file, form)]
    problems, unequal = [problem for part in parts for problem in part.problems], sum(part.unequal for part in parts)
    parts = [part for part in parts if len(part.rows)]
    why = f" ({problems[0]}{' ...' if len(problems) > 1 else ''})" if problems else ""
    require(bool(parts), f"{', '.join(map(str, paths))}: no response is left to look at{why}.")
    dump = _together(parts, problems)
    dump.unequal = unequal
    beside = [_beside(file, problems) for file in files]
    said = [(part.file.name, part.claims) for part in parts] + beside
    dump.claims = _agreed(said, problems) | checked_claims(claims, "what was given")
    if np.array_equal(dump.log_mu, dump.log_pi):
        problems.append(
            "log_mu and log_pi are the same numbers in every place: one was written for the other (verl's bypass mode "
            "does so), and there is nothing to compare"
        )
    return dump


def _together(parts: list[Part], problems: list[str]) -> Dump:
    """One dump of several parts; a column that only some have is left out. The parts are used up."""
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    made = {}
    for name in names:
        columns = [part.columns.pop(name, None) for part in parts]
        if any(column is None for column in columns):
            lacking = next(part.file.name for part, column in zip(parts, columns, strict=True) if column is None)
            problems.append(f"{name} is left out, as {lacking} has none")
        elif isinstance(columns[0], Ragged):
            lengths = np.concatenate([column.lengths for column in columns])
            values = [column.values for column in columns]
            del columns
            made[name] = Ragged(lengths, values[0] if len(values) == 1 else np.concatenate(values))
        else:
            made[name] = np.concatenate(columns)
    if "group" in made:
        made["group"] = _numbered(made["group"])
    starts = made["response_ids"].starts()
    flat = {name: made[name].values for name in TOKENS if name in made}
    others = {name: column for name, column in made.items() if name not in flat}
    return Dump(starts, **flat, **others, problems=problems)


def _numbered(labels: np.ndarray) -> np.ndarray:
    numbers: dict = {}
    return np.fromiter((numbers.setdefault(label, len(numbers)) for label in labels.tolist()), np.int64, len(labels))


def checked_claims(claims: dict, where: str) -> dict:
    """Claims with dtypes by their short names.

    Raises:
        UsageError: a name is not one of `CLAIMS`, a number is none or out of its range, or a dtype is unknown.
    """
    made = {}
    for name, value in claims.items():
        require(name in CLAIMS, f"{where}: {name!r} is no claim that is known; they are {', '.join(CLAIMS)}.")
        if value is None:
            continue
        if name.endswith("dtype"):
            require(isinstance(value, str), f"{where}: {name} is {value!r:.40}; name a dtype, such as bf16.")
            value = value.removeprefix("torch.").lower()
            value = DTYPES.get(value, value)
            known = sorted(set(DTYPES.values()))
            require(value in known, f"{where}: {name} is {value!r:.40}; it is one of {', '.join(known)}.")
        elif name == "lora":
            require(isinstance(value, bool), f"{where}: lora is {value!r:.40}; it is true or false.")
        elif name == "rollout_quantization":
            require(isinstance(value, str), f"{where}: rollout_quantization is {value!r:.40}; name one, such as fp8.")
        else:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            require(is_number and abs(value) < 1e9, f"{where}: {name} is {value!r:.40}; a number is wanted.")
            low, high = RANGES[name]
            require(low <= value <= high, f"{where}: {name} is {value:g}; it is from {low:g} to {high:g}.")
        made[name] = value
    return made


def _beside(file: Path, problems: list[str]) -> tuple[str, dict]:
    """The claims that lie beside a file."""
    for sidecar in (file.with_name(file.name + ".claims.json"), file.with_name("claims.json")):
        if sidecar.is_file():
            try:
                found = json.loads(sidecar.read_text())
            except (OSError, ValueError, RecursionError) as error:
                raise UsageError(f"{sidecar} is no JSON ({first_line(error)}); mend it or remove it.") from error
            require(isinstance(found, dict), f"{sidecar} is no JSON object; mend it or remove it.")
            unknown = sorted(found.keys() - set(CLAIMS))
            note = f"{sidecar.name}: {', '.join(unknown)} is no claim that is known, and passed over"
            if unknown and note not in problems:
                problems.append(note)
            known = {name: value for name, value in found.items() if name in CLAIMS}
            return sidecar.name, checked_claims(known, str(sidecar))
    return "", {}


def _agreed(said: list[tuple[str, dict]], problems: list[str]) -> dict:
    """What all files that say something agree on."""
    found: dict[str, dict] = {}
    for where, own in said:
        for name, value in own.items():
            found.setdefault(name, {}).setdefault(value, where)
    for name, values in found.items():
        if len(values) > 1:
            by = ", ".join(f"{value} by {where}" for value, where in values.items())
            problems.append(f"{name} is {by}, and left open")
    return {name: next(iter(values)) for name, values in found.items() if len(values) == 1}
