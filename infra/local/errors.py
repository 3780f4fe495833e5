"""What can go wrong while local services are set up, started or stopped."""


class LocalServiceError(Exception):
    """A local service can't run here; the sentence says what to do about it."""
