"""`holdfast keys`: Holdfast's own keys, and the key under which things rest."""

from enum import StrEnum
from typing import Annotated

import typer

from infra.postgres.key_store import find_own_public_keys, list_own_keys, rotate_own_key
from infra.postgres.reencryption import reencrypt
from infra.security.own_keys import KeyUse
from ops.environment import Environment, Need
from ops.failures import CommandFailed
from ops.options import JsonOption, OperatorOption, RequiredReasonOption
from ops.output import print_json, print_table, say
from ops.store.actions import Action, record_actions

_MAX_OVERLAP_HOURS = 10_000
_HOUR_SECONDS = 3_600

app = typer.Typer(help="Holdfast's own keys.", no_args_is_help=True)


class Use(StrEnum):
    """Which of our key pairs; as a JWK names it."""

    ENC = "enc"
    SIG = "sig"


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


@app.command("list")
def list_keys(*, json: JsonOption = False) -> None:
    """Show all keys that Holdfast ever had, and when they end; never a private part."""
    with Environment(Need.DATABASE).reading() as connection:
        keys = list_own_keys(connection)
    if json:
        print_json(keys)
    else:
        print_table(
            ("use", "kid", "made (UTC)", "good until (UTC)", "good"),
            [
                (
                    key["use"],
                    key["kid"],
                    key["created_at"],
                    key["not_after"] or "",
                    "yes" if key["good"] else "no",
                )
                for key in keys
            ],
        )


@app.command("rotate")
def rotate(
    why: RequiredReasonOption,
    operator: OperatorOption,
    *,
    use: Annotated[
        list[Use] | None, typer.Option(help="Only this one: enc opens what is sealed, sig signs our events.")
    ] = None,
    overlap_hours: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=_MAX_OVERLAP_HOURS,
            help="How long the old keys stay good; 0 ends them at once.",
            show_default="as long as a signed message is accepted",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """
    Make new keys of ours; the old ones are good until they expire.

    Until then what is sealed to an old key is still opened, and our events carry a signature by each
    key. Give shops the new set meanwhile.
    """
    environment = Environment(Need.DATABASE | Need.VAULT)
    overlap_seconds = (
        environment.settings.signature_max_age_seconds
        if overlap_hours is None
        else overlap_hours * _HOUR_SECONDS
    )
    uses = sorted({KeyUse(one.value) for one in use or Use})
    with environment.changing() as connection:
        rotations = {
            one.value: rotate_own_key(connection, environment.vault, one, overlap_seconds=overlap_seconds)
            for one in uses
        }
        record_actions(
            connection,
            [
                Action(
                    operator,
                    "own_key_rotated",
                    f"{name} {rotation.new_kid}",
                    why,
                    {"old": rotation.old_kids, "old_good_until": rotation.old_good_until},
                )
                for name, rotation in rotations.items()
            ],
        )
    if json:
        print_json(
            {
                name: {"kid": one.new_kid, "old": one.old_kids, "old_good_until": one.old_good_until}
                for name, one in rotations.items()
            }
        )
        return
    for name, rotation in rotations.items():
        old = ", ".join(rotation.old_kids) or "none"
        until = f"{rotation.old_good_until:%Y-%m-%d %H:%M}"
        say(f"{name}: new key {rotation.new_kid}; good until {until} UTC: {old}")
    say("give shops the new set: `holdfast keys public --json`")


@app.command("reencrypt")
def reencrypt_everything(
    why: RequiredReasonOption, operator: OperatorOption, *, json: JsonOption = False
) -> None:
    """Encrypt under HOLDFAST_ENCRYPTION_KEY what an old key encrypted; run it until it finds nothing."""
    environment = Environment(Need.DATABASE | Need.VAULT)
    with environment.engine() as engine:
        moved = list(reencrypt(engine, environment.vault))
        counts = {one.what: one.count for one in moved}
        with engine.begin() as connection:
            if any(counts.values()):
                record_actions(
                    connection, [Action(operator, "reencrypted", "what rests encrypted", why, counts)]
                )
    unreadable = [f"{one.what} {row}" for one in moved for row in one.unreadable]
    if json:
        print_json({"moved": counts, "unreadable": unreadable})
    else:
        for what, count in counts.items():
            say(f"{what}: {count} moved to the current key")
    if unreadable:
        raise CommandFailed(
            f"{len(unreadable)} rows open under none of the keys, such as {unreadable[0]}:"
            " add the key that they need to HOLDFAST_OLD_ENCRYPTION_KEYS and run this again"
        )
