"""What can be wrong with money before it is written down."""


class LedgerError(Exception):
    """Root of the ledger's errors."""


class InvalidPosting(LedgerError, ValueError):
    """A posting that double entry does not allow; nothing was written."""


class ConflictingPosting(LedgerError):
    """A posting's id is known with other content; the first one stands."""
