"""`holdfast chain`: the signed heads of the ledger's hash chain, and the proof against those kept outside."""

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from infra.postgres.chain import find_links, find_signed_heads
from infra.postgres.key_store import find_all_public_signing_keys
from infra.security.chain_heads import BadHeadFile, SignedHead, is_signed_by, read_lines, write_line
from ops.environment import Environment, Need
from ops.failures import NO, BadUsage
from ops.options import JsonOption
from ops.output import print_json, print_table, say

app = typer.Typer(help="The hash chain over the ledger.", no_args_is_help=True)


@app.command("heads")
def show_heads(*, json: JsonOption = False) -> None:
    """Show the signed heads; as JSON an array of what `chain verify --against` reads, one a line."""
    with Environment(Need.DATABASE).reading() as connection:
        heads = find_signed_heads(connection)
    if json:
        print_json([json_format.loads(write_line(signed)) for signed in heads])
        return
    print_table(
        ("link#", "postings#", "hash", "signed (UTC)", "kid"),
        [
            (
                str(signed.head.link_id),
                f"{signed.head.total_postings:,}",
                signed.head.hash.hex(),
                f"{signed.signed_at:%Y-%m-%d %H:%M:%S}",
                signed.kid,
            )
            for signed in heads
        ],
    )


@app.command("verify")
def verify(
    *,
    against: Annotated[
        Path,
        typer.Option(
            "--against", help="Signed heads that were kept outside the database, one a line; - for stdin."
        ),
    ],
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            help="A JWK Set that was kept outside too (`holdfast keys public --json`), instead of the"
            " database's own.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Prove that this database has the past that Holdfast signed; exits 1 if not. Run `audit` as well."""
    heads = _read_heads(against)
    with Environment(Need.DATABASE).reading() as connection:
        public = find_all_public_signing_keys(connection) if keys is None else _read_keys(keys)
        problems = _problems(connection, heads, public)
    if json:
        print_json({"ok": not problems, "heads": len(heads), "problems": problems})
    elif problems:
        for problem in problems:
            say(f"link {problem['link']}: {problem['problem']}")
    else:
        say(f"the database has all {len(heads)} signed heads; now run `holdfast audit`")
    if problems:
        raise typer.Exit(NO)


def _problems(
    connection: Connection, heads: list[SignedHead], public: dict[str, dict[str, str]]
) -> list[dict[str, Any]]:
    links = find_links(connection, [signed.head.link_id for signed in heads])
    problems: list[dict[str, Any]] = []
    last_good = 0
    for signed in sorted(heads, key=lambda one: one.head.link_id):
        link_id = signed.head.link_id
        if not is_signed_by(signed, public):
            problems.append({"link": link_id, "problem": f"its signature is not that of key {signed.kid}"})
        elif link_id not in links:
            problems.append(
                {"link": link_id, "problem": f"is gone, and what came behind link {last_good} with it"}
            )
        elif links[link_id] != signed.head:
            problems.append(
                {
                    "link": link_id,
                    "problem": f"was signed at {signed.signed_at.isoformat()} with hash"
                    f" {signed.head.hash.hex()}, and has {links[link_id].hash.hex()} now: something was"
                    f" rewritten behind link {last_good}",
                }
            )
        else:
            last_good = link_id
    return problems


def _read_heads(path: Path) -> list[SignedHead]:
    try:
        content = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        heads = read_lines(content.splitlines())
    except (OSError, UnicodeDecodeError, BadHeadFile) as error:
        raise BadUsage(f"--against {path}: {error}") from None
    if not heads:
        raise BadUsage(f"--against {path}: holds no head, which proves nothing")
    return heads


def _read_keys(path: Path) -> dict[str, dict[str, str]]:
    try:
        listed = json_format.loads(path.read_text(encoding="utf-8"))["keys"]
        return {key["kid"]: key for key in listed if key["use"] == "sig"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadUsage(f"--keys {path}: is no JWK Set ({type(error).__name__})") from None
