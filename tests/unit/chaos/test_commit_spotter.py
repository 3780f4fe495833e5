"""The chaos proxy reads PostgreSQL's protocol: it must find a COMMIT however the bytes are cut up."""

import struct

import pytest
from chaos.cables import CommitSpotter


def message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("!I", len(content) + 4) + content


def untyped(code: int, content: bytes = b"") -> bytes:
    return struct.pack("!II", len(content) + 8, code) + content


OPENING = untyped(80877103) + untyped(3 << 16, b"user\0holdfast\0\0")
INSERT = message(b"Q", b"INSERT INTO t VALUES ('COMMIT')\0")
COMMIT = message(b"Q", b"COMMIT\0")
PARSED = (
    message(b"P", b"\0COMMIT\0\0\0")
    + message(b"B", b"\0" * 8)
    + message(b"E", b"\0" * 5)
    + message(b"S", b"")
)


@pytest.mark.parametrize("commit", [COMMIT, PARSED], ids=["simple", "parsed"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 1_000])
def test_a_commit_is_found_at_its_last_byte(commit: bytes, chunk: int) -> None:
    sent = OPENING + INSERT + commit + INSERT
    spotter, found = CommitSpotter(), []
    for start in range(0, len(sent), chunk):
        end = spotter.feed(sent[start : start + chunk])
        if end is not None:
            found.append(start + end)
    assert found == [len(OPENING + INSERT + commit)]


def test_what_only_mentions_a_commit_is_none() -> None:
    spotter = CommitSpotter()
    other = (
        INSERT
        + message(b"Q", b"COMMIT PREPARED 'x'\0")
        + message(b"P", b"\0SELECT 1\0\0\0")
        + message(b"S", b"")
    )
    assert spotter.feed(OPENING + other) is None
