"""Which files are dumps, and in what format each is, told by its content.

Tables are parquet or JSON lines with a row a response (scripts/parts/dump_tables.py); tensors are what torch.save wrote
of them (scripts/parts/dump_tensors.py). A pickle of anything else is refused: reading one runs what its writer pleased.
Each framework's names are those of its source at the commit that docs/dumps.md names.
"""

from pathlib import Path

import pyarrow
from pyarrow import parquet

from scripts.parts.dump import ASK, Part
from scripts.parts.dump_tables import COLUMNS, TABLES, read_lines, read_parquet
from scripts.parts.dump_tensors import TENSORS, read_torch
from tasks.errors import UsageError, first_line, require

FORMATS = (*TABLES, *TENSORS)
ENDINGS = {".parquet", ".jsonl", ".json", ".pt", ".pth", ".pkl"}
NOT_DUMPS = {"claims.json", "settings.json", "config.json", "summary.json", "metrics.jsonl", "samples.jsonl"}
SPOILT = (
    pyarrow.ArrowException, OSError, MemoryError, ValueError, TypeError, OverflowError, RuntimeError, LookupError,
    AttributeError,
)  # fmt: skip
"""what reading a file raises whose content is not what it says"""
WHERE = ("rollouts", "token_exports", "train_data")  # in a run's folder: this project's, prime-rl's, slime's


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
    is_run = (folder / "metrics.jsonl").is_file()
    kept = any((folder / name).is_dir() for name in WHERE)
    require(kept or not is_run, f"{folder} is a run that kept no rollouts; train it with --log-rollouts 64.")
    folder = next((folder / name for name in WHERE if (folder / name).is_dir()), folder)
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in ENDINGS
        and path.is_file()
        and path.name not in NOT_DUMPS
        and not path.name.endswith(".claims.json")
        and not (path.suffix == ".pkl" and path.with_suffix(".pt").is_file())  # SkyRL's, which was converted
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
    except SPOILT:
        return 0  # the reader says what is wrong
    groups = [described.row_group(i) for i in range(described.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return 8 * sum(column.num_values for column in columns if column.path_in_schema.partition(".")[0] in COLUMNS)


def _magic(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4)


def parts_of(file: Path, form: str | None) -> list[Part]:
    """A file's responses that can be used, in the format named or as its content tells.

    Raises:
        UsageError: it is damaged, or in no format that is known, or lacks log-probabilities.
    """
    require(form is None or form in FORMATS, f"{form} is no format that is known; they are {', '.join(FORMATS)}.")
    magic = _magic(file)
    try:
        if magic == b"PAR1":
            parts = [read_parquet(file, form)]
        elif magic[:2] == b"PK" or magic[:1] == b"\x80":
            parts = read_torch(file, form)
        elif magic.lstrip()[:1] in (b"{", b""):
            parts = [read_lines(file, form)]
        else:
            raise UsageError(f"{file} is neither parquet nor JSON lines nor tensors of torch.save; {ASK}.")
        for part in parts:
            part.clean()
    except UsageError:
        raise
    except SPOILT as error:
        raise UsageError(f"{file} is damaged or no dump ({first_line(error)}); {ASK}.") from error
    return parts
