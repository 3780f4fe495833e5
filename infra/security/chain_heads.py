"""
Signed heads of the ledger's hash chain, and the files in which they leave the database.

One JSON object a line. Whoever keeps the files can prove that a database, also one whose owner is not to be
trusted, still has the past that Holdfast signed.
"""

import base64
import binascii
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from infra.security.own_keys import OwnKey, decode_base64url

EXPORT_FILE: Final = "chain-heads.jsonl"


@dataclass(frozen=True, slots=True)
class Head:
    """The newest link at some moment: what is signed. `total_postings` counts the whole chain."""

    link_id: int
    hash: bytes
    total_postings: int


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A head, and Holdfast's signature over it."""

    head: Head
    signed_at: datetime
    kid: str
    signature: bytes


class BadHeadFile(ValueError):
    """A line of a file of heads is not one; the sentence says which and why."""


def sign_head(key: OwnKey, head: Head, now: datetime) -> SignedHead:
    """Sign a head with a key of ours whose use is `sig`."""
    private = Ed25519PrivateKey.from_private_bytes(decode_base64url(key.private_jwk["d"]))
    return SignedHead(head, now, key.kid, private.sign(_signed_content(head, now)))


def is_signed_by(signed: SignedHead, public_jwks: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether the key that a head names, of those given by `kid`, has signed it."""
    jwk = public_jwks.get(signed.kid)
    if jwk is None:
        return False
    public = Ed25519PublicKey.from_public_bytes(decode_base64url(jwk["x"]))
    try:
        public.verify(signed.signature, _signed_content(signed.head, signed.signed_at))
    except InvalidSignature:
        return False
    return True


def _signed_content(head: Head, now: datetime) -> bytes:
    # The first words keep this signature apart from those over events.
    parts = ("holdfast-chain-head-1", head.link_id, head.hash.hex(), head.total_postings, now.isoformat())
    return "|".join(map(str, parts)).encode()


def write_line(signed: SignedHead) -> str:
    return json.dumps(
        {
            "link": signed.head.link_id,
            "hash": signed.head.hash.hex(),
            "total_postings": signed.head.total_postings,
            "signed_at": signed.signed_at.isoformat(),
            "kid": signed.kid,
            "signature": base64.b64encode(signed.signature).decode("ascii"),
        }
    )


def read_lines(lines: Iterable[str]) -> list[SignedHead]:
    """
    Read what `write_line` wrote; empty lines are skipped.

    Raises:
        BadHeadFile: a line is something else.
    """
    return [_read(line, number) for number, line in enumerate(lines, 1) if line.strip()]


def _read(line: str, number: int) -> SignedHead:
    try:
        given = json.loads(line)
        return SignedHead(
            Head(int(given["link"]), bytes.fromhex(given["hash"]), int(given["total_postings"])),
            datetime.fromisoformat(given["signed_at"]),
            str(given["kid"]),
            base64.b64decode(given["signature"], validate=True),
        )
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise BadHeadFile(f"line {number} is no signed head ({type(error).__name__})") from None


def export_heads(folder: Path, find_above: Callable[[SignedHead | None], Sequence[SignedHead]]) -> int:
    """
    Add heads to the folder's file and wait until they are on the disk; return how many.

    `find_above` is told the last head of the file, and returns those that come after it. Several relays may
    share a folder.

    Raises:
        BadHeadFile: the file holds something else; it is left as it is.
        OSError: the folder can't be written.
    """
    with (folder / EXPORT_FILE).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        # A process may have died in the middle of a line; whole lines end.
        whole = b"".join(line for line in file if line.endswith(b"\n"))
        kept = read_lines(whole.decode("utf-8").splitlines())
        heads = find_above(kept[-1] if kept else None)
        if heads:
            file.truncate(len(whole))
            file.write("".join(write_line(signed) + "\n" for signed in heads).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        return len(heads)
