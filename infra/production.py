"""
What an installation that moves real money must not run with.

Pure: URLs and flags in, sentences out. Each sentence starts with the variable that is wrong and never repeats
its value, because URLs carry passwords.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qs, unquote, urlsplit

# What installers, images and examples ship with, and what people type when they mean to change it later.
_WELL_KNOWN_PASSWORDS = frozenset(
    {"admin", "changeme", "default", "example", "guest", "holdfast", "password", "postgres", "rabbitmq"}
    | {"root", "secret", "test", "123456", "change-me"}
)
_MIN_PASSWORD_CHARACTERS = 12


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host never leaves the machine; a path is a Unix socket."""
    host = host.strip("[]")
    if host == "localhost" or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def broker_problems(url: str) -> Iterator[str]:
    """Say what is wrong with HOLDFAST_BROKER_URL in production."""
    parts = urlsplit(url)
    if set(parse_qs(parts.query, keep_blank_values=True)) - {"cacertfile"}:
        yield "HOLDFAST_BROKER_URL may carry no parameter but cacertfile in production"
    if parts.scheme != "amqps" and not is_loopback(parts.hostname or ""):
        yield "HOLDFAST_BROKER_URL must be amqps:// in production, unless RabbitMQ is on this machine"
    user = unquote(parts.username or "")
    if user in {"", "guest"}:
        yield "HOLDFAST_BROKER_URL must name a user of ours in production, not guest"
    yield from _password_problems("HOLDFAST_BROKER_URL", user, unquote(parts.password or ""))


def database_problems(url: str) -> Iterator[str]:
    """Say what is wrong with HOLDFAST_DATABASE_URL in production."""
    parts = urlsplit(url)
    given = parse_qs(parts.query, keep_blank_values=True)
    if given.keys() & {"service", "servicefile"}:
        # What a service file adds has been looked at by nobody.
        yield "HOLDFAST_DATABASE_URL must not name a service file's entry in production: say all in the URL"
    hosts = _database_hosts(parts.netloc, given)
    if not hosts:
        # libpq would take PGHOST, which nobody has checked.
        yield "HOLDFAST_DATABASE_URL must name its host in production"
    remote = [host for host in hosts if not is_loopback(host)]
    if remote and given.get("sslmode") != ["verify-full"]:
        yield (
            "HOLDFAST_DATABASE_URL must have sslmode=verify-full in production, unless PostgreSQL is on this"
            " machine"
        )
    user = unquote(parts.username or "") or "".join(given.get("user", []))
    password = unquote(parts.password or "") or "".join(given.get("password", []))
    # A socket's peer, a client certificate and a password file are not passwords in an environment.
    by_other_means = given.keys() & {"passfile", "sslcert"} or all(host.startswith("/") for host in hosts)
    if password or not by_other_means:
        yield from _password_problems("HOLDFAST_DATABASE_URL", user, password)


def libpq_problems(environment: Mapping[str, str]) -> Iterator[str]:
    """Say which of libpq's own variables would lead a connection past what the URL says."""
    # With PGHOSTADDR libpq connects there, also where the URL says localhost and therefore needs no TLS.
    for name in ("PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE"):
        if environment.get(name):
            yield f"{name} must not be set in production: HOLDFAST_DATABASE_URL says where PostgreSQL is"


def http_problems(variable: str, url: str) -> Iterator[str]:
    """Say what is wrong with the URL of an HTTP interface in production."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        yield f"{variable} must be https in production"


def encryption_key_problems(variable: str, raw: bytes) -> Iterator[str]:
    """Say what is wrong with an encryption key: nobody draws 32 equal bytes by chance."""
    if len(set(raw)) == 1:
        yield f"{variable} must be random: it is one byte over and over"


def _database_hosts(netloc: str, given: dict[str, list[str]]) -> list[str]:
    """Every place that libpq might connect to; parameters override what stands before the path."""
    hosts = [
        host
        for name in ("host", "hostaddr")
        for value in given.get(name, [])
        for host in value.split(",")
        if host
    ]
    for part in netloc.rpartition("@")[2].split(","):
        host = part[: part.index("]") + 1] if part.startswith("[") else part.partition(":")[0]
        if host:
            hosts.append(unquote(host))
    return hosts


def _password_problems(variable: str, user: str, password: str) -> Iterator[str]:
    if not password:
        yield f"{variable} must carry a password in production"
    elif password.lower() in _WELL_KNOWN_PASSWORDS or password == user:
        yield f"{variable} carries a well-known password"
    elif len(password) < _MIN_PASSWORD_CHARACTERS:
        yield f"{variable} carries a password of fewer than {_MIN_PASSWORD_CHARACTERS} characters"
