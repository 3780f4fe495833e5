"""Two people for what moves much money: the second is named, and is not the first."""

from ops.failures import BadUsage
from ops.output import money


def require_second_name(
    what: str,
    amount_minor: int,
    currency: str,
    *,
    operator: str,
    second_operator: str | None,
    limit_minor: int,
) -> None:
    """
    Refuse what is above the limit (minor units) and has one name only.

    Raises:
        BadUsage: a second name is missing, or is the first one's.
    """
    if amount_minor > limit_minor and not second_operator:
        raise BadUsage(f"{what} above {money(limit_minor, currency)} needs two names: give --second-operator")
    if second_operator is not None and second_operator.strip().casefold() in {"", operator.casefold()}:
        raise BadUsage("--second-operator must be another name than --operator")
