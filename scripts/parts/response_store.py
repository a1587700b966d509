"""Responses on disk: a file of JSON lines that only grows, so that whatever ends a run, the next goes on from it."""

import fcntl
import json
import os
from pathlib import Path

from tasks.errors import UsageError, require


class ResponseStore:
    """The responses of a folder, ``responses.jsonl``, with the settings they were made with, ``settings.json``.

    A record is a JSON object; its key is made of the fields ``key_fields``. Nothing is written before `open`.

    Args:
        folder: may not exist yet.
        settings: what a response depends on besides its key; plain JSON values.
        key_fields: which fields of a record tell it from all others.

    Raises:
        UsageError: the folder holds responses made with other settings, or something else.
    """

    def __init__(self, folder: Path, settings: dict, key_fields: tuple[str, ...]):
        self.folder, self.settings, self.key_fields = folder, settings, key_fields
        self.records: dict[tuple, dict] = {}
        self.torn_bytes = 0
        """length of a last line that a kill cut off; it is dropped, and removed from the file by `open`"""
        self._file = None
        require(not folder.exists() or folder.is_dir(), f"--output-dir {folder} is a file; name a folder.")
        if folder.exists():
            self._check_settings()
            self._read()

    @property
    def path(self) -> Path:
        return self.folder / "responses.jsonl"

    def _check_settings(self) -> None:
        manifest = self.folder / "settings.json"
        if not manifest.exists():
            stranger = next((entry.name for entry in sorted(self.folder.iterdir())), None)
            require(
                stranger is None, f"--output-dir {self.folder} holds something else ({stranger}); name a new folder."
            )
            return
        try:
            stored = json.loads(manifest.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{manifest} cannot be read ({error}); name a new --output-dir.") from error
        for name in sorted(stored.keys() | self.settings.keys()):
            was, now = stored.get(name), self.settings.get(name)
            require(
                was == now,
                f"--output-dir {self.folder} holds responses made with {name} {was}, and this command asks for {now}; "
                "name a new folder.",
            )

    def _read(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole, _, torn = content.rpartition(b"\n")
        self.torn_bytes = len(torn)
        self.records.clear()
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                self.records.setdefault(self.key(record), record)
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"{self.path}, line {number} is no record of this program's; remove the line or name a new folder."
                ) from error

    def key(self, record: dict) -> tuple:
        return tuple(record[field] for field in self.key_fields)

    def open(self) -> None:
        """Make the folder if it is new, and the file ready to be appended to by this process alone.

        Raises:
            UsageError: another process is writing to it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise UsageError(f"Another process is writing to {self.folder}; wait for it, or end it.") from error
        self._read()  # again, now that nobody else writes
        if self.torn_bytes:
            self._file.truncate(self.path.stat().st_size - self.torn_bytes)
        manifest = self.folder / "settings.json"
        if not manifest.exists():
            partial = manifest.with_suffix(".partial")
            partial.write_text(json.dumps(self.settings, indent=2) + "\n")
            os.replace(partial, manifest)

    def append(self, records: list[dict]) -> None:
        """Add records and see to it that they are in the file, whatever becomes of this process."""
        for record in records:
            self.records[self.key(record)] = record
        self._file.write("".join(json.dumps(record) + "\n" for record in records).encode())
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
