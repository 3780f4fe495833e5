"""What `holdfast shop limits` and `holdfast seller limits` share."""

from dataclasses import replace
from typing import Annotated

import typer
from sqlalchemy import Connection

from ops.failures import BadUsage
from ops.options import currency_code
from ops.output import money, print_json, print_table, say
from ops.store.actions import Action, record_actions
from ops.store.sellers import LimitKey, delete_limits, find_limits, write_limits
from schemas.fields import MAX_AMOUNT_MINOR
from workers.payout.decisions import Limits

_NONE = "none"
_MAX_PER_HOUR = 1_000_000


def _amount(value: str | None) -> str | None:
    return _number(value, MAX_AMOUNT_MINOR, "minor units")


def _count(value: str | None) -> str | None:
    return _number(value, _MAX_PER_HOUR, "a number")


def _number(value: str | None, highest: int, what: str) -> str | None:
    if value is None or value == _NONE:
        return value
    if not (value.isascii() and value.isdecimal()) or int(value) > highest:
        raise typer.BadParameter(f"{what} from 0 to {highest}, or '{_NONE}'")
    return value


CurrencyOption = Annotated[
    str | None,
    typer.Option("--currency", help="The limits of this currency (ISO 4217).", callback=currency_code),
]
PerWithdrawalOption = Annotated[
    str | None,
    typer.Option("--per-withdrawal", help="Most in one, in minor units; or none.", callback=_amount),
]
PerDayOption = Annotated[
    str | None,
    typer.Option("--per-day", help="Most in one day of UTC, in minor units; or none.", callback=_amount),
]
PerHourOption = Annotated[
    str | None, typer.Option("--per-hour", help="Most withdrawals within an hour; or none.", callback=_count)
]
ClearOption = Annotated[bool, typer.Option("--clear", help="Delete the limits of this currency.")]


def change_limits(
    connection: Connection,
    key: LimitKey,
    *,
    currency: str | None,
    given: tuple[str | None, str | None, str | None],
    clear: bool,
    operator: str,
    why: str,
) -> dict[str, Limits]:
    """
    Change the limits of one currency if anything is given; return all that stand then, by currency.

    Raises:
        BadUsage: something to change without a currency, or both a limit and --clear.
    """
    changes = any(value is not None for value in given)
    if (changes or clear) and currency is None:
        raise BadUsage("limits are per currency: give --currency")
    if changes and clear:
        raise BadUsage("give limits, or --clear")
    before = find_limits(connection, key)
    if currency is not None and (changes or clear):
        old = before.get(currency)
        if clear:
            delete_limits(connection, key, currency)
            new = None
        else:
            new = _changed(old or Limits(), given)
            write_limits(connection, key, currency, new)
        if new != old:
            record_actions(
                connection,
                [
                    Action(
                        operator,
                        "withdrawal_limits_changed",
                        _whose(key),
                        why,
                        {
                            "currency": currency,
                            "before": old and _as_details(old),
                            "after": new and _as_details(new),
                        },
                    )
                ],
            )
    return find_limits(connection, key)


def _changed(limits: Limits, given: tuple[str | None, str | None, str | None]) -> Limits:
    for name, value in zip(("per_withdrawal_minor", "per_day_minor", "per_hour_count"), given, strict=True):
        if value is not None:
            limits = replace(limits, **{name: None if value == _NONE else int(value)})
    return limits


def print_limits(key: LimitKey, limits: dict[str, Limits], *, json: bool) -> None:
    """Show the limits that stand; a JSON null is no limit."""
    if json:
        print_json(
            {
                "shop": key.shop_id,
                "of": key.scope,
                "seller": key.seller_id or None,
                "limits": {currency: _as_details(one) for currency, one in limits.items()},
            }
        )
        return
    if not limits:
        say(f"{_whose(key)}: no limits")
        return
    print_table(
        ("currency", "per withdrawal#", "per day#", "per hour#"),
        [
            (
                currency,
                _shown(one.per_withdrawal_minor, currency),
                _shown(one.per_day_minor, currency),
                _NONE if one.per_hour_count is None else one.per_hour_count,
            )
            for currency, one in limits.items()
        ],
        title=_whose(key),
    )


def _shown(amount_minor: int | None, currency: str) -> str:
    return _NONE if amount_minor is None else money(amount_minor, currency)


def _whose(key: LimitKey) -> str:
    match key.scope:
        case "shop":
            return f"shop {key.shop_id} as a whole"
        case "sellers":
            return f"each seller of {key.shop_id}"
        case _:
            return f"seller {key.shop_id}/{key.seller_id}"


def _as_details(limits: Limits) -> dict[str, int | None]:
    return {
        "per_withdrawal": limits.per_withdrawal_minor,
        "per_day": limits.per_day_minor,
        "per_hour": limits.per_hour_count,
    }
