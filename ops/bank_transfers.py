"""All transfers that the bank was ever told: only a recovery asks for them."""

from infra.settings import Settings
from ops.failures import BadUsage, CommandFailed
from workers.payout.bank import BankUnavailable, HttpBank
from workers.payout.transfers import ListedTransfer

_PAGE = 500


def list_transfers(settings: Settings) -> list[ListedTransfer]:
    """
    Read the bank's list from its beginning, the oldest first.

    Raises:
        BadUsage: no bank is set.
        CommandFailed: it gives no readable answer.
    """
    if settings.bank_url is None:
        raise BadUsage("set HOLDFAST_BANK_URL: only the bank knows what it was told")
    bank = HttpBank(str(settings.bank_url), timeout_s=settings.bank_timeout_seconds)
    listed: list[ListedTransfer] = []
    try:
        while page := bank.transfers_after(listed[-1].position if listed else 0, _PAGE):
            listed += page
    except BankUnavailable as error:
        raise CommandFailed(f"{error}: start the bank's connector, or mend HOLDFAST_BANK_URL") from error
    finally:
        bank.close()
    return listed
