"""Files that survive a kill and a full disk: one that appears whole, and one of a JSON object a line."""

import contextlib
import json
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it: whoever reads sees what was there before or all of the content."""
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(content)
    beside.replace(path)


class JsonLines:
    """Appends records. What cannot be written, because the disk is full, is kept and written when there is room.

    Args:
        path: of the file; a last line that a kill cut off is dropped.
        keep: tells of each record that is there whether it stays; the others are removed.
    """

    def __init__(self, path: Path, keep=lambda record: True):
        self.path, self._waiting = path, b""
        self.records = [record for record in read(path) if keep(record)] if path.exists() else []
        lines = b"".join(_line(record) for record in self.records)
        if path.exists() and path.read_bytes() != lines:
            write_whole(path, lines)
        self._size = len(lines)

    def append(self, record: dict) -> str | None:
        """Write a record. Returns None, or why it has to wait."""
        self._waiting += _line(record)
        try:
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                file.seek(self._size)
                file.write(self._waiting)
        except OSError as error:
            return error.strerror or str(error)
        self._size += len(self._waiting)
        self._waiting = b""
        return None


def read(path: Path) -> list[dict]:
    """The records of a file; a last line that is cut off is left out.

    Raises:
        ValueError: another line is no JSON.
    """
    lines = path.read_bytes().split(b"\n")
    records = [json.loads(line) for line in lines[:-1] if line.strip()]
    with contextlib.suppress(ValueError):  # nothing, or what was cut off
        records.append(json.loads(lines[-1]))
    return records


def _line(record: dict) -> bytes:
    return json.dumps(record).encode() + b"\n"
