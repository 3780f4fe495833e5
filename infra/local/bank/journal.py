"""
The bank's memory: a file that is only ever appended to, and read once at the start.

Each line is a JSON array of the entries that became true together. What `append` returned for is on
disk; a line that a crash cut short was never answered for and is dropped.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.local.errors import LocalServiceError

Entry = Mapping[str, Any]

_OWNER_ONLY = 0o600


class JournalFailed(Exception):
    """A write did not reach the disk; nothing more is done until a restart has read what is there."""


class Journal:
    """One process's journal in a folder; a second process is refused. Callers take turns."""

    def __init__(self, folder: Path) -> None:
        """
        Open the journal, or start one.

        Raises:
            LocalServiceError: another process has it open, or a line before the last is damaged.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = folder / "journal.jsonl"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _OWNER_ONLY)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise LocalServiceError(f"another bank has {self.path} open") from None
        _sync_folder(folder)
        self._size = self._drop_torn_line()
        self._next_seq = 1
        self._failed = False

    def replay(self) -> Iterator[Entry]:
        """Yield every entry from the beginning; must be read to its end before the first append."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    entries = json.loads(line)
                    for entry in entries:
                        self._next_seq = entry["seq"] + 1
                        yield entry
                except (ValueError, TypeError, KeyError) as error:
                    raise LocalServiceError(f"{self.path}, line {number} is damaged: {error}") from error

    def append(self, entries: Sequence[Entry]) -> list[Entry]:
        """
        Write entries that become true together, and return them numbered and dated once they are on disk.

        Raises:
            JournalFailed: now, and for every later call.
        """
        if self._failed:
            raise JournalFailed("an earlier write failed")
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        numbered = [
            {"seq": seq, "at": at, **entry} for seq, entry in enumerate(entries, start=self._next_seq)
        ]
        line = json.dumps(numbered, separators=(",", ":")).encode() + b"\n"
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(f"{written} of {len(line)} bytes written")  # noqa: TRY301 - one way to fail
            os.fdatasync(self._file)
        except OSError as error:
            # After a failed fsync nobody knows what the disk holds; trying again would only hide it.
            self._failed = True
            raise JournalFailed(str(error)) from error
        self._next_seq += len(numbered)
        self._size += len(line)
        return list(numbered)

    def read_json_array(self) -> Iterator[bytes]:
        """Yield all that is on disk by now as one JSON array, without holding it in memory."""
        left = self._size
        yield b"["
        separator = b""
        with self.path.open("rb") as file:
            while left > 0:
                line = file.readline()
                left -= len(line)
                # Each line is an array of its own; together they are one.
                yield separator + line.strip()[1:-1]
                separator = b",\n"
        yield b"]"

    def close(self) -> None:
        os.close(self._file)

    def _drop_torn_line(self) -> int:
        size = os.fstat(self._file).st_size
        whole = _end_of_last_line(self._file, size)
        if whole != size:
            os.ftruncate(self._file, whole)
        # What a killed process wrote may still be in memory only; from here on it counts.
        os.fsync(self._file)
        return whole


def _end_of_last_line(file: int, size: int) -> int:
    chunk = 64 * 1024
    end = size
    while end > 0:
        start = max(0, end - chunk)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
