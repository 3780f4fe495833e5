"""`holdfast recover`: what to decide after the database was restored to an earlier moment."""

from collections.abc import Iterator
from dataclasses import asdict

import typer
from sqlalchemy import Connection

from ops.bank_transfers import list_transfers
from ops.commands import adopt
from ops.environment import Environment, Need
from ops.failures import NO
from ops.options import JsonOption, OperatorOption, RequiredReasonOption
from ops.output import print_json, print_table, say
from ops.recovery import (
    Decision,
    compare_transfers,
    credits_without_orders,
    dump_of_another_server,
    may_be_old,
)
from ops.store import recovery as store
from ops.store.actions import Action, record_actions

app = typer.Typer(help="After the database was restored to an earlier moment.", no_args_is_help=True)
app.add_typer(adopt.app, name="adopt")


@app.command("report")
def report(*, json: JsonOption = False) -> None:
    """
    List what a restored database has forgotten and nothing mends by itself; exits 1 while there is any.

    Changes nothing. Compares all transfers that the bank was ever told with those that are known here.
    """
    environment = Environment(Need.DATABASE)
    # The bank first: what it has, we knew before it did, so none of it can be missing here by mistake.
    listed = list_transfers(environment.settings)
    with environment.reading() as connection:
        known = store.find_known_transfers(connection)
        others = list(_other_decisions(connection))
        last_heard = store.find_last_heard(connection)
    decisions = [*others, *compare_transfers(known, listed)]
    if any(map(may_be_old, decisions)):
        # Work goes on meanwhile, and what we have as ended, the bank has ended by now.
        now = {
            decision.subject for decision in compare_transfers(known, list_transfers(environment.settings))
        }
        decisions = [one for one in decisions if not may_be_old(one) or one.subject in now]
    if json:
        print_json(
            {
                "ok": not decisions,
                "decisions": [asdict(decision) for decision in decisions],
                "last_heard": last_heard,
            }
        )
    else:
        print_table(("sender", "last heard (UTC)"), [(source, at) for source, at in last_heard.items()])
        say("what these said later is forgotten: have each publish its events since then again")
        if decisions:
            print_table(
                ("to decide", "what", "found", "what to do"),
                [(one.what, one.subject, one.detail, one.remedy) for one in decisions],
            )
        else:
            say(f"nothing to decide: all {len(listed)} transfers of the bank are known as they ended")
    if decisions:
        raise typer.Exit(NO)


@app.command("reseal")
def reseal(why: RequiredReasonOption, operator: OperatorOption) -> None:
    """
    Make a ledger that was loaded from a dump this server's own, and sum it anew; no worker may run.

    The database keeps sums of all postings up to a transaction id, and those mean nothing on another server.
    """
    with Environment(Need.DATABASE).changing() as connection:
        if not store.belongs_to_another_server(connection):
            say("this server has given out every transaction id in the ledger: nothing is changed")
            return
        changed, sealed = store.reseal(connection)
        details = {"postings": changed, "sealed": sealed}
        record_actions(connection, [Action(operator, "ledger_resealed", "postings", why, details)])
    say(f"{changed} postings of another server's transactions are this server's now; run `holdfast audit`")


def _other_decisions(connection: Connection) -> Iterator[Decision]:
    if store.belongs_to_another_server(connection):
        yield dump_of_another_server()
    yield from credits_without_orders(store.find_open_credits(connection))
