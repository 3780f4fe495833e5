"""`holdfast events`: what shops have been told, once more."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from infra.postgres.key_store import KeyStore
from infra.postgres.outbox import group_events
from infra.rabbitmq.messages import PublishOutcome
from infra.rabbitmq.outbox_publisher import compose_events
from ops.commands.sender_keys import unknown
from ops.environment import Environment, Need
from ops.failures import CommandFailed, broker_place
from ops.options import JsonOption, OperatorOption, ShopOption, SinceOption, WhyOption
from ops.output import print_json, say
from ops.store.actions import Action, record_actions
from ops.store.event_log import begin_span, count_events, read_pages
from ops.store.senders import is_shop
from schemas.fields import format_rfc3339

_PAGE = 1000

app = typer.Typer(help="What shops have been told.", no_args_is_help=True)


@app.callback()
def _events() -> None:
    """Keep `replay` a command of a group, however few there are."""


@app.command("replay")
def replay_events(
    shop: ShopOption,
    since: SinceOption,
    operator: OperatorOption,
    *,
    why: WhyOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    json: JsonOption = False,
) -> None:
    """
    Publish a shop's events again, ids unchanged, signed anew.

    Whoever reads them knows them by their ids; nothing else happens again.
    """
    environment = Environment(Need.DATABASE | Need.BROKER | Need.VAULT)
    with environment.engine() as engine:
        with engine.begin() as connection:
            if not is_shop(connection, shop):
                raise unknown("shop", shop)
            span = begin_span(connection, shop, since)
            found = count_events(connection, span)
            if not dry_run:
                details = {"since": since, "until": span.until, "events": found}
                record_actions(connection, [Action(operator, "events_replayed", shop, why, details)])
        published = 0
        if not dry_run and found:
            keys = KeyStore(engine, environment.vault, cache_seconds=environment.settings.key_cache_seconds)
            with environment.publisher() as publisher:
                for page in read_pages(engine, span, size=_PAGE):
                    rows = list(group_events(page))
                    now = datetime.now(UTC)
                    outcomes = publisher.publish(
                        [compose_events(row, keys.signer(), now) for row in rows],
                        timeout_s=environment.settings.publish_timeout_seconds,
                    )
                    refused = next((o for o in outcomes if o is not PublishOutcome.CONFIRMED), None)
                    if refused is not None:
                        raise CommandFailed(
                            f"the broker at {broker_place(environment.settings)} did not take them all"
                            f" ({_why_not(refused, shop)}); {published} are published, go on with"
                            f" --since {format_rfc3339(page[0].occurred_at)}"
                        )
                    published += len(page)
    if json:
        print_json(
            {"shop": shop, "since": since, "until": span.until, "events": found, "published": published}
        )
    elif dry_run:
        say(f"{found} events of shop {shop} would be published again")
    else:
        say(f"{published} events of shop {shop} are published again")


def _why_not(outcome: PublishOutcome, shop: str) -> str:
    match outcome:
        case PublishOutcome.REFUSED:
            return f"events.{shop} is full: let the shop read first"
        case PublishOutcome.UNROUTABLE:
            return f"events.{shop} is missing: `holdfast shop add {shop}` declares it"
        case _:
            return "no confirm in time"
