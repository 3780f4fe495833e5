"""`holdfast keys`: Holdfast's own keys."""

import typer

from infra.postgres.key_store import find_own_public_keys
from ops.environment import Environment, Need
from ops.options import JsonOption
from ops.output import print_json, print_table

app = typer.Typer(help="Holdfast's own keys.", no_args_is_help=True)


@app.callback()
def _keys() -> None:
    """Keep `public` a command of a group, however few there are."""


@app.command("public")
def public_keys(*, json: JsonOption = False) -> None:
    """Show the public keys: to verify our events with, and to seal passwords to."""
    with Environment(Need.DATABASE).reading() as connection:
        jwk_set = find_own_public_keys(connection)
    if json:
        print_json(jwk_set)
    else:
        print_table(
            ("use", "kid", "curve", "x"),
            [(key["use"], key["kid"], key["crv"], key["x"]) for key in jwk_set["keys"]],
        )
