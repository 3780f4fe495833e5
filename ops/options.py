"""Options and arguments that several commands share, with the checks that make a wrong value bad usage."""

import getpass
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from infra.security.signatures import InvalidKey, Scheme, parse_ed25519_public, parse_hmac_secret
from ops.failures import BadUsage
from schemas.fields import EXTERNAL_ID_PATTERN, OWNER_ID_PATTERN

_STANDARD_INPUT = "-"
_MAX_KEY_CHARACTERS = 4096


def _matching(pattern: str, what: str) -> "object":
    import re  # noqa: PLC0415 - replaced below

    return re, pattern, what
