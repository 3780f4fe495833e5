"""Passwords of RabbitMQ's users, as operators hand them over: from a file or standard input only."""

from collections.abc import Collection
from typing import Annotated

import typer

from ops.failures import BadUsage
from ops.options import read_text_file

MIN_PASSWORD_CHARACTERS = 16
DEFAULT_VHOST = "holdfast"

VhostOption = Annotated[str, typer.Option("--vhost", help="The virtual host that everything lies in.")]

PasswordsOption = Annotated[
    str | None,
    typer.Option(
        "--passwords-file",
        metavar="FILE",
        help="A file with one `user:password` a line; - reads standard input. Printed as salted hashes.",
    ),
]
PasswordFileOption = Annotated[
    str,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="A file that holds the user's password; - reads standard input. Printed as a salted hash.",
    ),
]


def read_passwords(path: str | None, users: Collection[str]) -> dict[str, str]:
    """
    Read passwords by user.

    Raises:
        BadUsage: an unreadable file, a line of another form, a user that is none, or a short password. Never
            repeats a password.
    """
    if path is None:
        return {}
    passwords: dict[str, str] = {}
    for number, line in enumerate(read_text_file(path).splitlines(), start=1):
        if not line.strip():
            continue
        user, separator, password = line.partition(":")
        if not separator or user not in users or user in passwords:
            raise BadUsage(f"line {number} is not user:password, once for one of {', '.join(sorted(users))}")
        passwords[user] = _checked(password.strip(), f"the password of {user}")
    return passwords


def read_password(path: str) -> str:
    """
    Read one password, the file's only line.

    Raises:
        BadUsage: an unreadable file, or a short password.
    """
    return _checked(read_text_file(path).strip(), "the password")


def _checked(password: str, what: str) -> str:
    if len(password) < MIN_PASSWORD_CHARACTERS or not password.isprintable():
        raise BadUsage(f"{what} must be one line of {MIN_PASSWORD_CHARACTERS} characters or more")
    return password
