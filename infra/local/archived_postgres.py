"""A private PostgreSQL that is backed up as production should be: a base backup and every WAL segment."""

import os
import shutil
import subprocess
import time
from datetime import datetime
from pathlib import Path

import psycopg

from infra.local.errors import LocalServiceError
from infra.local.postgres import PrivatePostgres, find_postgres_programs

_POLL_SECONDS = 0.05
_ARCHIVE_SECONDS = 60.0


class ArchivedPostgres(PrivatePostgres):
    """One PostgreSQL server that archives its WAL, and can go back to any moment after its base backup."""

    def __init__(self, folder: Path) -> None:
        """Describe the server; nothing runs or is written before `start`."""
        super().__init__(folder)
        self._archive = self.folder / "archive"
        self._base = self.folder / "base"
        self.settings = {
            "archive_mode": "on",
            # Never over a segment that is there: a server of another time line must not replace it.
            "archive_command": f'test ! -f "{self._archive}/%f" && cp "%p" "{self._archive}/%f"',
        }

    def start(self) -> None:
        """Start the server without waiting for it."""
        self._belongs_to_server(self._archive)
        super().start()

    def back_up(self) -> None:
        """
        Take a base backup while the server works.

        Raises:
            LocalServiceError: `pg_basebackup` failed.
        """
        programs = find_postgres_programs()
        if programs is None:
            raise LocalServiceError("PostgreSQL's programs are gone")
        self._belongs_to_server(self._base)
        done = subprocess.run(  # noqa: S603 - the command is ours, no shell is involved
            [
                *self._as_server_user(),
                programs / "pg_basebackup",
                f"--dbname={self.url('postgres')}",
                "--checkpoint=fast",
                # The archive has what the backup needs beside it.
                "--wal-method=none",
                f"--pgdata={self._base}",
            ],
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            cwd="/",
        )
        if done.returncode != 0:
            raise LocalServiceError(f"pg_basebackup failed: {done.stderr.strip()[-2000:]}")

    def archive_all(self) -> None:
        """Return when everything committed so far lies in the archive."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            # A commit after the moment to restore is what recovery stops at.
            connection.execute("SELECT pg_catalog.txid_current()")
            row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
        segment = self._archive / str(row[0] if row else "")
        deadline = time.monotonic() + _ARCHIVE_SECONDS
        while not segment.exists():
            if time.monotonic() > deadline:
                raise LocalServiceError(f"{segment.name} was not archived, see {self.log}")
            time.sleep(_POLL_SECONDS)

    def restore(self, moment: datetime) -> None:
        """
        Go back: replace all data by what had been committed at a moment, and run from there.

        Raises:
            LocalServiceError: the server does not come up.
        """
        self.stop()
        shutil.rmtree(self._data)
        shutil.copytree(self._base, self._data, symlinks=True)
        (self._data / "recovery.signal").touch()
        for path in (self._data, *self._data.rglob("*")):
            self._give_to_server(path)
        archiving = self.settings
        self.settings = archiving | {
            "restore_command": f'cp "{self._archive}/%f" "%p"',
            "recovery_target_time": moment.isoformat(),
            "recovery_target_action": "promote",
        }
        self.start()
        self.wait_until_ready()
        self._wait_until_recovered()
        self.settings = archiving

    def _wait_until_recovered(self) -> None:
        deadline = time.monotonic() + _ARCHIVE_SECONDS
        while True:
            with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
                row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
            if row == (False,):
                return
            if time.monotonic() > deadline:
                raise LocalServiceError(f"PostgreSQL did not end its recovery, see {self.log}")
            time.sleep(_POLL_SECONDS)

    def _belongs_to_server(self, folder: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True, mode=0o700)
        self._give_to_server(folder)
