"""The relay's part in the hash chain: extend it, sign its head, bring signed heads out of the database."""

from collections.abc import Sequence
from datetime import UTC, timedelta

import structlog
from sqlalchemy import text

from infra.postgres.chain import (
    POSTINGS_AT_ONCE,
    chain_postings,
    find_links,
    find_signed_heads,
    find_unsigned_head,
    write_signed_head,
)
from infra.postgres.key_store import find_own_keys
from infra.security.chain_heads import BadHeadFile, SignedHead, export_heads, sign_head
from infra.security.own_keys import KeyUse
from workers.process import WorkerProcess

log = structlog.get_logger(__name__)


def extend_chain(process: WorkerProcess) -> bool:
    """Put new postings into the chain; return whether there may be more."""
    with process.engine.begin() as connection:
        chained = chain_postings(connection)
    return chained >= POSTINGS_AT_ONCE


def sign_and_export_head(process: WorkerProcess) -> None:
    """
    Sign the newest link, if it is time, and write signed heads to the export folder, if there is one.

    A database that no longer has a link that was exported is told of and gets no further signature: it was
    rewritten, or restored to an earlier moment.
    """
    folder = process.settings.chain_export_folder
    if folder is not None and not _bring_out(process):
        return
    with process.engine.begin() as connection:
        pause = timedelta(seconds=process.settings.chain_head_seconds)
        head = find_unsigned_head(connection, older_than=pause)
        keys = find_own_keys(connection, process.vault, KeyUse.SIGN) if head is not None else []
        if head is None or not keys:
            return
        now = connection.execute(text("SELECT clock_timestamp()")).scalar_one().astimezone(UTC)
        signed = sign_head(keys[0], head, now)
        write_signed_head(connection, signed)
    log.info(
        "chain_head_signed",
        link=head.link_id,
        hash=head.hash.hex(),
        total_postings=head.total_postings,
        kid=signed.kid,
    )
    if folder is not None:
        _bring_out(process)


def _bring_out(process: WorkerProcess) -> bool:
    """Export what was not exported yet; return whether the database still has what was."""
    folder = process.settings.chain_export_folder
    assert folder is not None  # noqa: S101 - the callers have looked
    rewritten = False

    def find_above(last: SignedHead | None) -> Sequence[SignedHead]:
        nonlocal rewritten
        with process.engine.connect() as connection:
            if last is None:
                return find_signed_heads(connection)
            link = find_links(connection, [last.head.link_id]).get(last.head.link_id)
            if link != last.head:
                rewritten = True
                log.critical("chain_rewritten", link=last.head.link_id, signed_hash=last.head.hash.hex())
                return []
            return find_signed_heads(connection, above=last.head.link_id)

    try:
        export_heads(folder, find_above)
    except BadHeadFile as error:
        log.critical("chain_export_damaged", folder=str(folder), problem=str(error))
        return False
    return not rewritten
