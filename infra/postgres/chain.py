"""
The hash chain over postings, and its signed heads.

A link fixes the content of up to 5,000 postings and the hash of the link before it, so nothing that is in the
chain can be changed, taken out or put in without changing every hash that follows. What the last hash was is
signed with Holdfast's own key, which the database's owner does not have, and leaves the database: see
`infra.security.chain_heads` and docs/adr/0017.

Only postings that are certain to be committed go in: those below the xmin of the snapshot. Postings and links
are matched by id, never by transaction id, because a restore on another server gives other transaction ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Final

from sqlalchemy import Connection, text

from infra.security.chain_heads import Head, SignedHead

# Any number; the same one for every relay, so that one of them writes the chain.
_CHAIN_LOCK = 6_640_225_917
_POSTINGS_A_LINK: Final = 5_000
POSTINGS_AT_ONCE: Final = 50_000
# Above all that any server gives out: whoever reads it as progress looks for what is missing by id.
_LARGEST_XID8: Final = 2**64 - 1

# What a posting says, in one unambiguous line: no column can hold the separator. Left out is `xact`, which
# belongs to a server and not to a posting.
ROW_HASH: Final = """
    sha256(convert_to(concat_ws(chr(31), posting_id, kind, cause_id, shop_id, seller_id, currency, debit,
                                credit, amount_minor, extract(epoch FROM booked_at)), 'UTF8'))
"""


def link_hash(previous: str, link_id: str, digest: str, total: str, sealed_at: str) -> str:
    """SQL for the hash of a link, of SQL expressions."""
    return (
        f"sha256(convert_to(concat_ws('|', 'holdfast-chain-1', encode({previous}, 'hex'), {link_id},"
        f" encode({digest}, 'hex'), {total}, extract(epoch FROM {sealed_at})), 'UTF8'))"
    )


_GENESIS: Final = "sha256(convert_to('holdfast-chain-1', 'UTF8'))"

_NEXT_HASH: Final = link_hash(
    "c.hash", "c.link_id + 1", "b.digest", "c.total_postings + b.postings", "sealed_at"
)
_WRITE_LINKS: Final = f"""
    WITH RECURSIVE last AS (
        (SELECT link_id, hash, total_postings FROM chain_links ORDER BY link_id DESC LIMIT 1)
        UNION ALL
        SELECT 0, {_GENESIS}, 0 WHERE NOT EXISTS (SELECT FROM chain_links)
    ),
    numbered AS (
        SELECT posting_id, {ROW_HASH} AS row_hash,
               (row_number() OVER () - 1) / {_POSTINGS_A_LINK} + 1 AS block
        FROM postings
        WHERE {{chosen}}
    ),
    -- In no order: a link says in which order it took them, and the three aggregates read the same rows.
    blocks AS MATERIALIZED (
        SELECT block, count(*) AS postings, array_agg(posting_id) AS posting_ids,
               array_agg(row_hash) AS row_hashes, sha256(string_agg(row_hash, '')) AS digest
        FROM numbered GROUP BY block
    ),
    moment AS MATERIALIZED (SELECT clock_timestamp() AS sealed_at),
    chained AS (
        SELECT CAST(0 AS bigint) AS block, CAST(link_id AS bigint) AS link_id,
               CAST(NULL AS bytea) AS previous_hash, hash, CAST(total_postings AS bigint) AS total_postings
        FROM last
        UNION ALL
        SELECT b.block, c.link_id + 1, c.hash,
               {_NEXT_HASH},
               c.total_postings + b.postings
        FROM chained AS c JOIN blocks AS b ON b.block = c.block + 1 CROSS JOIN moment
    ),
    written AS (
        INSERT INTO chain_links (link_id, previous_hash, digest, total_postings, sealed_at, hash,
                                 posting_ids, row_hashes)
        SELECT c.link_id, c.previous_hash, b.digest, c.total_postings, m.sealed_at, c.hash,
               b.posting_ids, b.row_hashes
        FROM chained AS c JOIN blocks AS b ON b.block = c.block CROSS JOIN moment AS m
    )
    SELECT coalesce(sum(postings), 0) FROM blocks
"""
_NEW: Final = "xact >= CAST(CAST(:low AS text) AS xid8) AND xact < CAST(CAST(:high AS text) AS xid8)"
_UNCHAINED: Final = """
    xact < CAST(CAST(:high AS text) AS xid8) AND NOT EXISTS (
        SELECT FROM (SELECT unnest(posting_ids) AS posting_id FROM chain_links) AS member
        WHERE member.posting_id = postings.posting_id)
    LIMIT :at_most
"""


def chain_postings(connection: Connection, *, at_most: int = POSTINGS_AT_ONCE) -> int:
    """
    Put what is certain to be committed into the chain, in the caller's transaction; return how many.

    One writer at a time; whoever comes second does nothing. At most about `at_most` postings, so that a long
    backlog takes several transactions instead of much memory.
    """
    if not connection.execute(
        text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _CHAIN_LOCK}
    ).scalar_one():
        return 0
    # A new statement, so that its snapshot was taken behind the lock and sees what the last writer did.
    low, high = connection.execute(
        text("""
            SELECT CAST(CAST(chained_below AS text) AS numeric),
                   CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS numeric)
            FROM chain_progress
        """)
    ).one()
    if low > high:
        return _chain_after_restore(connection, int(high), at_most)
    # All postings of a transaction go in together, and it may have more than `at_most`.
    last = connection.execute(
        text("""
            -- A row that OFFSET passes over is computed like any, so the casts stand outside.
            SELECT CAST(CAST(xact AS text) AS numeric) FROM (
                SELECT xact FROM postings
                WHERE xact >= CAST(CAST(:low AS text) AS xid8) AND xact < CAST(CAST(:high AS text) AS xid8)
                ORDER BY xact OFFSET :before LIMIT 1
            ) AS last
        """),
        {"low": low, "high": high, "before": at_most - 1},
    ).scalar_one_or_none()
    end = int(high) if last is None else int(last) + 1
    chained = connection.execute(
        text(_WRITE_LINKS.format(chosen=_NEW)), {"low": int(low), "high": end}
    ).scalar_one()
    if end > low:
        _set_progress(connection, end)
    return int(chained)


def _chain_after_restore(connection: Connection, high: int, at_most: int) -> int:
    """
    Go on behind a restore on a server that gives out lower transaction ids than the last one.

    They tell nothing of what is in the chain, so what is not in it is looked for by id, until all is.
    """
    chained = connection.execute(
        text(_WRITE_LINKS.format(chosen=_UNCHAINED)), {"high": high, "at_most": at_most}
    ).scalar_one()
    if chained < at_most:
        _set_progress(connection, high)
    return int(chained)


def look_by_id_next(connection: Connection) -> None:
    """
    Let the next round look for what is missing by id, whatever transaction ids there are by then.

    For a ledger that came from another server. Its progress could be seen to be foreign only until this
    server has given out as many transaction ids; what was posted by then would stay out of it for ever.
    """
    _set_progress(connection, _LARGEST_XID8)


def is_progress_foreign(connection: Connection) -> bool:
    """Whether the chain's progress is another server's, and nobody has said so yet."""
    return bool(
        connection.execute(
            text("""
                SELECT chained_below > pg_snapshot_xmax(pg_current_snapshot())
                       AND chained_below < CAST(CAST(:largest AS text) AS xid8)
                FROM chain_progress
            """),
            {"largest": _LARGEST_XID8},
        ).scalar_one()
    )


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the ledger the chain proves; `judged` is False where postings are still matched by id."""

    postings: int
    chained: int
    signed: int
    links: int
    judged: bool


def read_coverage(connection: Connection) -> Coverage:
    """Count, in one snapshot, what is in the ledger, in the chain, and below its last signed head."""
    row = connection.execute(
        text("""
            SELECT (SELECT count(*) FROM postings) AS postings,
                   coalesce((SELECT max(total_postings) FROM chain_links), 0) AS chained,
                   coalesce((SELECT max(total_postings) FROM chain_heads), 0) AS signed,
                   coalesce((SELECT max(link_id) FROM chain_links), 0) AS links,
                   (SELECT chained_below <= pg_snapshot_xmin(pg_current_snapshot())
                    FROM chain_progress) AS judged
        """)
    ).one()
    return Coverage(row.postings, row.chained, row.signed, row.links, row.judged)


def _set_progress(connection: Connection, chained_below: int) -> None:
    connection.execute(
        text("UPDATE chain_progress SET chained_below = CAST(CAST(:below AS text) AS xid8)"),
        {"below": chained_below},
    )


def find_unsigned_head(connection: Connection, *, older_than: timedelta) -> Head | None:
    """Return the newest link if nobody has signed it, and the last signature is older than that."""
    row = connection.execute(
        text("""
            SELECT link_id, hash, total_postings FROM chain_links
            WHERE link_id > (SELECT coalesce(max(link_id), 0) FROM chain_heads)
              AND NOT EXISTS (SELECT FROM chain_heads WHERE signed_at > clock_timestamp() - :pause)
            ORDER BY link_id DESC LIMIT 1
        """),
        {"pause": older_than},
    ).one_or_none()
    return None if row is None else Head(row.link_id, bytes(row.hash), row.total_postings)


def write_signed_head(connection: Connection, signed: SignedHead) -> None:
    connection.execute(
        text("""
            INSERT INTO chain_heads (link_id, hash, total_postings, signed_at, kid, signature)
            VALUES (:link_id, :hash, :total_postings, :signed_at, :kid, :signature)
            ON CONFLICT DO NOTHING
        """),
        {
            "link_id": signed.head.link_id,
            "hash": signed.head.hash,
            "total_postings": signed.head.total_postings,
            "signed_at": signed.signed_at,
            "kid": signed.kid,
            "signature": signed.signature,
        },
    )


def find_signed_heads(connection: Connection, *, above: int = 0) -> list[SignedHead]:
    """Return signed heads whose link is above a number, oldest first."""
    return [
        SignedHead(
            Head(row.link_id, bytes(row.hash), row.total_postings),
            row.signed_at.astimezone(UTC),
            row.kid,
            bytes(row.signature),
        )
        for row in connection.execute(
            text("""
                SELECT link_id, hash, total_postings, signed_at, kid, signature FROM chain_heads
                WHERE link_id > :above ORDER BY link_id
            """),
            {"above": above},
        )
    ]


def find_links(connection: Connection, link_ids: Sequence[int]) -> dict[int, Head]:
    """Return links by number; one that does not exist is left out."""
    return {
        row.link_id: Head(row.link_id, bytes(row.hash), row.total_postings)
        for row in connection.execute(
            text("""
                SELECT link_id, hash, total_postings FROM chain_links
                WHERE link_id = ANY(CAST(:ids AS bigint[]))
            """),
            {"ids": list(link_ids)},
        )
    }


# --- what the audit proves ---

LINKS_FOLLOW_EACH_OTHER: Final = f"""
    SELECT 'link ' || link_id AS example,
           link_id <> coalesce(lag(link_id) OVER chain, 0) + 1
           OR previous_hash <> coalesce(lag(hash) OVER chain, {_GENESIS})
           OR total_postings <> coalesce(lag(total_postings) OVER chain, 0) + cardinality(posting_ids)
           OR digest <> (SELECT sha256(string_agg(row_hash, '' ORDER BY place))
                         FROM unnest(row_hashes) WITH ORDINALITY AS member(row_hash, place))
           OR hash <> {link_hash("previous_hash", "link_id", "digest", "total_postings", "sealed_at")}
           AS broken
    FROM chain_links WINDOW chain AS (ORDER BY link_id)
    UNION ALL
    SELECT 'signed link ' || h.link_id, l.hash IS DISTINCT FROM h.hash
    FROM chain_heads AS h LEFT JOIN chain_links AS l USING (link_id)
"""

# One row for each posting that is in the chain: gone, changed, or in it twice.
CHAINED_POSTINGS_ARE_UNCHANGED: Final = f"""
    SELECT 'posting ' || member.posting_id || ' of link ' || link_id
           || CASE WHEN p.posting_id IS NULL THEN ' is gone' ELSE ' was changed' END AS example,
           p.posting_id IS NULL OR member.row_hash <> p.now_hash AS broken
    FROM chain_links
    CROSS JOIN LATERAL unnest(posting_ids, row_hashes) AS member(posting_id, row_hash)
    LEFT JOIN (SELECT posting_id, {ROW_HASH} AS now_hash FROM postings) AS p
        ON p.posting_id = member.posting_id
"""

# Between a restore on another server and the relay's first round, transaction ids tell nothing: not judged.
PAST_POSTINGS_ARE_CHAINED: Final = """
    SELECT 'posting ' || p.posting_id || ' was put in' AS example, member.posting_id IS NULL AS broken
    FROM chain_progress
    JOIN postings AS p ON p.xact < chained_below AND chained_below <= pg_snapshot_xmin(pg_current_snapshot())
    LEFT JOIN (SELECT unnest(posting_ids) AS posting_id FROM chain_links) AS member
        ON member.posting_id = p.posting_id
"""
