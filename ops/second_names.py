"""Two people for what moves much money: the second is named, and is not the first."""

from ledger.names import is_same_person
from ops.failures import BadUsage
from ops.output import money


def require_two_people(*, operator: str, second_operator: str | None) -> None:
    """
    Refuse a second name that is the first one's, in whatever way it is written.

    Raises:
        BadUsage: it is.
    """
    if second_operator is not None and is_same_person(operator, second_operator):
        raise BadUsage("--second-operator must be another person than --operator")


def require_second_name(
    what: str, amount_minor: int, currency: str, *, second_operator: str | None, limit_minor: int
) -> None:
    """
    Refuse what is above the limit (minor units) and has one name only.

    Raises:
        BadUsage: a second name is missing.
    """
    if amount_minor > limit_minor and second_operator is None:
        raise BadUsage(f"{what} above {money(limit_minor, currency)} needs two names: give --second-operator")
