"""Why a demonstration ends early."""


class DemoFailed(Exception):
    """Something is off; the sentence says what, in words that a first-time user understands."""
