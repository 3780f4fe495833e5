"""
How a payout destination is shown to people: enough to recognise it, too little to use it.

The whole of it exists only encrypted; this form may stand in tables, logs and answers.
"""

import json
from collections.abc import Mapping
from typing import Final

_ELLIPSIS: Final = "…"
_SHOWN_AT_EACH_END: Final = 4
# Of a short account number at most this part is shown, so that the rest can't be guessed.
_SHOWN_PART: Final = 3


def destination_context(shop_id: str, seller_id: str, destination_id: str) -> str:
    """Bind encrypted details to their row: they can't be moved under another seller."""
    return json.dumps(["destination", shop_id, seller_id, destination_id])


def mask_destination(destination: Mapping[str, object]) -> str:
    """
    Return `DE89…3000` for an IBAN, `US …6789` for another account; never the holder's name.

    Args:
        destination: `type` is `iban` (then `iban`) or `bank_account` (then `country`, `account_number`).

    Raises:
        ValueError: another type.
    """
    match destination.get("type"):
        case "iban":
            return mask_iban(str(destination["iban"]))
        case "bank_account":
            return f"{destination['country']} {mask_account(str(destination['account_number']))}"
        case _:
            raise ValueError("a destination is an iban or a bank_account")


def mask_iban(iban: str) -> str:
    """Return country, check digits and the last four: `DE89…3000`. The shortest IBAN has 15 characters."""
    compact = "".join(iban.split()).upper()
    if len(compact) <= _SHOWN_PART * _SHOWN_AT_EACH_END:
        return mask_account(compact)
    return f"{compact[:_SHOWN_AT_EACH_END]}{_ELLIPSIS}{compact[-_SHOWN_AT_EACH_END:]}"


def mask_account(number: str) -> str:
    """Return the end of an account number, never more than a third of it: `…6789`."""
    compact = "".join(number.split())
    shown = min(_SHOWN_AT_EACH_END, len(compact) // _SHOWN_PART)
    return _ELLIPSIS + (compact[-shown:] if shown else "")
