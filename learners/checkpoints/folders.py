"""Checkpoints as folders: written whole or not at all, known by their checksums, the oldest removed.

Files alone; what is in them is learners/checkpoints/training_state.py's matter. A checkpoint is written under a
temporary name, every file flushed to the disk and its checksum noted in manifest.json, and the folder then gets its
name. So one that has its name is complete unless something damaged it later, and then the manifest tells.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from actors.processes import from_first, gather, place
from learners.record.run_files import CHECKPOINTS, MANIFEST
from tasks.errors import require

UNFINISHED = ".unfinished"


def name_of(steps: int, updates: int = 0) -> str:
    """Of the checkpoint after so many steps, and so many updates of the next one; sorts by age."""
    return f"step-{steps:06d}" + (f"-update-{updates:04d}" if updates else "")


class Checkpoints:
    """The checkpoints of a run. Every process calls `write` and `newest_whole` together.

    Args:
        folder: where they lie; made when the first is written.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def __iter__(self):
        """Newest first; also those that are damaged, not those that were never finished."""
        found = [path for path in self.folder.glob("step-*") if not path.name.endswith(UNFINISHED)]
        return iter(sorted(found, key=lambda path: path.name, reverse=True))

    def newest_whole(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is as it was written, and a sentence on each newer one that is not."""
        complaints = []
        for path in from_first(list(self)):
            if (damage := _damage(path)) is None:
                return path, complaints
            complaints.append(damage)
        return None, complaints

    def write(self, name: str, write_files: Callable[[Path], list[Path]]) -> str | None:
        """Write a checkpoint.

        Args:
            name: from `name_of`.
            write_files: writes this process's files into the folder it is given, and returns their paths.

        Returns:
            None, or why it could not be written (a full disk, say); what was there before is untouched then.
        """
        target = self.folder / name
        unfinished = self.folder / (name + UNFINISHED)
        first = place()[0] == 0
        problem = from_first(_attempt(lambda: self._begin(unfinished)) if first else None)
        if problem is None:
            sums: dict[str, dict] = {}
            here = _attempt(lambda: sums.update({path.name: _flush_and_sum(path) for path in write_files(unfinished)}))
            parts = gather((here, sums))
            problem = next((problem for problem, _ in parts if problem is not None), None)
        if problem is None:
            everything = {file: what for _, made in parts for file, what in made.items()}
            problem = from_first(_attempt(lambda: self._finish(unfinished, target, everything)) if first else None)
        if problem is not None and first:
            shutil.rmtree(unfinished, ignore_errors=True)
        return problem

    def _begin(self, unfinished: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"*{UNFINISHED}"):  # of a process that was killed while writing
            shutil.rmtree(left)
        unfinished.mkdir()

    def _finish(self, unfinished: Path, target: Path, sums: dict[str, dict]) -> None:
        manifest = unfinished / MANIFEST
        manifest.write_text(json.dumps({"files": sums}, indent=1) + "\n")
        _flush(manifest)
        _flush(unfinished)
        replaced = None
        if target.exists():
            replaced = target.with_name(target.name + ".replaced" + UNFINISHED)
            target.rename(replaced)
        unfinished.rename(target)
        _flush(self.folder)
        if replaced is not None:
            shutil.rmtree(replaced)
        for old in list(self)[self.keep :]:
            shutil.rmtree(old)


def find_checkpoint(run: Path, resume: str) -> tuple[Path | None, list[str]]:
    """The checkpoint that a run goes on from, and a sentence on each that was passed over because it is damaged.

    Args:
        run: the run's folder.
        resume: "auto" (the newest whole one of the run, if any), "never", or the path of one.

    Raises:
        UsageError: the one that was named is damaged.
    """
    if resume == "never":
        return None, []
    if resume == "auto":
        return Checkpoints(run / CHECKPOINTS, keep=1).newest_whole()
    damage = _damage(Path(resume))
    require(damage is None, f"{damage} Name another with --resume.")
    return Path(resume), []


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None; the processes look together, each at its share of the files."""
    return next(filter(None, gather(verify(checkpoint, *place()))), None)


def verify(checkpoint: Path, part: int = 0, parts: int = 1) -> str | None:
    """What makes a checkpoint another than its manifest says (a file is missing, of another size, or has another
    checksum), as a sentence; None if nothing does.

    Args:
        part: which of ``parts`` shares of its files; all shares together are all files, the largest spread evenly.
    """
    where = f"Checkpoint {checkpoint}"
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
        by_size = sorted(files.items(), key=lambda file: -file[1]["bytes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{where} is incomplete: {MANIFEST} cannot be read ({type(error).__name__})."
    for name, what in by_size[part::parts]:
        path = checkpoint / name
        if not path.is_file():
            return f"{where} is incomplete: {name} is missing."
        if path.stat().st_size != what["bytes"]:
            return f"{where} is damaged: {name} has {path.stat().st_size} bytes instead of {what['bytes']}."
        if _sum(path) != what["sha256"]:
            return f"{where} is damaged: {name} is not what was written (its checksum differs)."
    return None


def _attempt(action: Callable[[], object]) -> str | None:
    """Run it; None, or what went wrong with the files."""
    from safetensors import SafetensorError  # how safetensors says that it could not write

    try:
        action()
        return None
    except (OSError, SafetensorError) as error:
        return getattr(error, "strerror", None) or str(error)


def _flush_and_sum(path: Path) -> dict:
    _flush(path)
    return {"bytes": path.stat().st_size, "sha256": _sum(path)}


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
