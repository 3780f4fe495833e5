"""
The chart of accounts.

Every account belongs to one shop and one currency; some also to one seller of that shop. A posting
stays within one shop and one currency and touches at most one seller, so the key of both its accounts
is (shop, seller, currency) plus the two kinds below. See docs/accounts.md.
"""

from enum import StrEnum

# Credits of a bank that no order explains yet are nobody's. They lie in the books of the house, under a
# name that no shop can have (shop ids know no underscore), until a payment claims them.
HOUSE = "_house"

# The seller part of an account that belongs to the shop as a whole. No seller id is empty.
NO_SELLER = ""


class AccountKind(StrEnum):
    # Of the shop.
    INCOMING = "incoming"  # announced by the shop, not yet seen at the bank (asset)
    BANK_CASH = "bank_cash"  # at the bank (asset)
    SUSPENSE = "suspense"  # at the bank, but nobody knows what for (liability)
    RECEIVED = "received"  # taken from a buyer, not yet held for a seller (liability)
    FEES = "fees"  # earned at releases (income)
    RECOVERED = "recovered"  # claimed back from sellers for the shop's buyers (liability)
    SHOP_IN_PAYOUT = "shop_in_payout"  # fees or recovered money on its way to the shop's bank (liability)
    # Of a seller.
    HELD = "held"  # protected (liability)
    AVAILABLE = "available"  # withdrawable (liability)
    IN_PAYOUT = "in_payout"  # on its way to the seller's bank (liability)
    REFUNDABLE = "refundable"  # on its way back to the buyer (liability)
    RECEIVABLE = "receivable"  # owed by the seller after a claim (asset)


SELLER_KINDS = frozenset(
    {
        AccountKind.HELD,
        AccountKind.AVAILABLE,
        AccountKind.IN_PAYOUT,
        AccountKind.REFUNDABLE,
        AccountKind.RECEIVABLE,
    }
)

# Debit-normal accounts: their balance is debits minus credits, that of all others credits minus debits.
ASSET_KINDS = frozenset({AccountKind.INCOMING, AccountKind.BANK_CASH, AccountKind.RECEIVABLE})
