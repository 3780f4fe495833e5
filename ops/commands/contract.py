"""`holdfast contract`: the contract with shops and banks, for programs."""

from pathlib import Path
from typing import Annotated

import typer

from ops.contract_files import asyncapi, contract_files
from ops.failures import CommandFailed
from ops.options import JsonOption
from ops.output import print_json, print_table, say
from schemas.asyncapi import signer
from schemas.inbound import INBOUND
from schemas.json_schemas import SEALED, event_schema, sealed_schema
from schemas.outgoing import OUTGOING

app = typer.Typer(help="The contract with shops and banks, for programs.", no_args_is_help=True)


def _known_type(value: str) -> str:
    if value not in INBOUND and value not in OUTGOING:
        raise typer.BadParameter("no such type; `holdfast contract events` lists them")
    return value


def _complete_type(incomplete: str) -> list[str]:
    return [type_ for type_ in (*INBOUND, *OUTGOING) if type_.startswith(incomplete)]


@app.command("events")
def list_events(*, json: JsonOption = False) -> None:
    """List every type of event, who signs it and which way it goes."""
    rows = [
        {
            "type": type_,
            "direction": "to holdfast" if type_ in INBOUND else "from holdfast",
            "signed_by": signer(type_),
        }
        for type_ in (*INBOUND, *OUTGOING)
    ]
    if json:
        print_json(rows)
    else:
        print_table(("type", "direction", "signed by"), [tuple(row.values()) for row in rows])


@app.command("schema")
def show_schema(
    type_: Annotated[
        str,
        typer.Argument(
            metavar="TYPE",
            help="An event's type, such as order.paid.",
            callback=_known_type,
            autocompletion=_complete_type,
        ),
    ],
    *,
    sealed: Annotated[bool, typer.Option("--sealed", help="Of what is inside `sealed`.")] = False,
    json: JsonOption = False,  # noqa: ARG001 - it is JSON either way; scripts may say so
) -> None:
    """Print the JSON Schema of a type of event."""
    if sealed and type_ not in SEALED:
        raise CommandFailed(f"{type_} seals nothing; {', '.join(SEALED)} do")
    print_json(sealed_schema(type_) if sealed else event_schema(type_))


@app.command("asyncapi")
def show_asyncapi(*, json: JsonOption = False) -> None:  # noqa: ARG001 - it is JSON either way
    """Print the AsyncAPI 3 document: where to publish and read, and every message."""
    print_json(asyncapi())


@app.command("write")
def write_files(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to; it is made if missing.")],
) -> None:
    """Write all schemas, the AsyncAPI document and the page of events into a folder."""
    files = contract_files()
    try:
        (folder / "schemas").mkdir(parents=True, exist_ok=True)
        for stale in {path.name for path in (folder / "schemas").glob("*.json")} - {
            Path(name).name for name in files
        }:
            (folder / "schemas" / stale).unlink()
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"{folder} can't be written: {error.strerror}") from error
    say(f"{len(files)} files written to {folder}")
