"""
Secrets that the tests plant, and the search for them in everywhere that they must not get.

Every seller of the tests has one of these passwords and this account; processes run with planted keys. Each
database is searched, in all tables, before it is dropped, and at the end of the run all logs and metrics; one
secret that is found anywhere fails the run.
"""

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path

import psycopg
from prometheus_client import generate_latest
from psycopg import sql

_SHORTEST = 8

_planted: set[str] = {
    "correct horse battery",
    "incorrect horse",
    "DE89370400440532013000",
}
found: list[str] = []


def plant(secret: str) -> str:
    """Watch for a secret from now on; returns it."""
    assert len(secret) >= _SHORTEST, "so short a text may stand anywhere by chance"
    _planted.add(secret)
    return secret


def spellings(secret: str) -> tuple[str, ...]:
    """Return how a secret would show: as it is, as bytea and as base64."""
    raw = secret.encode()
    return (secret, raw.hex(), base64.b64encode(raw).decode().rstrip("="))


def seen_in(text: str) -> Iterator[str]:
    """Yield which planted secrets a text shows."""
    for secret in sorted(_planted):
        if any(spelling in text for spelling in spellings(secret)):
            yield secret


def search_database(url: str) -> list[str]:
    """Search every column of every row; what a dump would hold. Returns what was found, and where."""
    wanted = [spelling for secret in sorted(_planted) for spelling in spellings(secret)]
    with psycopg.connect(url) as connection:
        tables = [
            name
            for (name,) in connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
            )
        ]
        return [
            f"table {table}: {secret}"
            for table in tables
            for (secret,) in connection.execute(
                sql.SQL(
                    "SELECT DISTINCT wanted FROM unnest(%s::text[]) AS wanted"
                    " JOIN {} AS t ON position(wanted IN CAST(t AS text)) > 0"
                ).format(sql.Identifier(table)),
                [wanted],
            )
        ]


def search_files(files: Iterable[Path]) -> list[str]:
    """Search files of text, as logs are."""
    return [
        f"{file}: {secret}"
        for file in files
        if file.is_file()
        for secret in seen_in(file.read_text(encoding="utf-8", errors="replace"))
    ]


def search_metrics() -> list[str]:
    """Search the metrics of this process, in which most handlers of the tests ran."""
    return [f"metrics: {secret}" for secret in seen_in(generate_latest().decode())]


def must_be_nowhere(places: Iterable[str]) -> None:
    """Remember what was found; the run fails for it at its end."""
    found.extend(places)
