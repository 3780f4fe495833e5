"""Settings of every Holdfast process, read once from `HOLDFAST_*` environment variables."""

import base64
import binascii
import os
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    AmqpDsn,
    DirectoryPath,
    Field,
    HttpUrl,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PostgresDsn,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra import production
from infra.security.peppers import BadPeppers, Peppers, parse_peppers

DAY_SECONDS = 86_400
ENCRYPTION_KEY_BYTES = 32


class Environment(StrEnum):
    DEVELOPMENT = "development"
    PRODUCTION = "production"


class SettingsError(Exception):
    """The environment does not make a valid configuration; the sentence names each variable."""


def _is_encryption_key(value: SecretStr) -> SecretStr:
    try:
        raw = base64.b64decode(value.get_secret_value(), validate=True)
    except binascii.Error as error:
        raise ValueError("must be standard base64") from error
    if len(raw) != ENCRYPTION_KEY_BYTES:
        raise ValueError(f"must be {ENCRYPTION_KEY_BYTES} bytes in base64, is {len(raw)}")
    return value


def _are_encryption_keys(value: SecretStr) -> SecretStr:
    for key in _listed(value):
        _is_encryption_key(key)
    return value


def _are_peppers(value: SecretStr) -> SecretStr:
    try:
        parse_peppers(value.get_secret_value())
    except BadPeppers as error:
        raise ValueError(str(error)) from None
    return value


def _listed(value: SecretStr) -> list[SecretStr]:
    return [SecretStr(part.strip()) for part in value.get_secret_value().split(",")]


def _names_its_user(value: HttpUrl) -> HttpUrl:
    if not value.username or not value.password:
        raise ValueError("must name a user and password of the broker: https://user:password@host:15671")
    return value


class Settings(BaseSettings):
    """
    Everything that differs between installations.

    Units stand last in the names. Secrets never appear in `repr` or in errors.
    """

    model_config = SettingsConfigDict(env_prefix="HOLDFAST_", frozen=True, hide_input_in_errors=True)

    environment: Environment = Environment.DEVELOPMENT
    broker_url: AmqpDsn = Field(repr=False)
    # RabbitMQ's management API, with user and password; only `topology verify` and `doctor` read it.
    broker_management_url: Annotated[HttpUrl, AfterValidator(_names_its_user)] | None = Field(
        default=None, repr=False
    )
    database_url: PostgresDsn = Field(repr=False)
    bank_url: HttpUrl | None = None
    # Encrypts private keys, HMAC secrets and payout destinations at rest (AES-256-GCM).
    encryption_key: Annotated[SecretStr, AfterValidator(_is_encryption_key)]
    # Earlier ones, separated by commas: they decrypt what `holdfast keys reencrypt` has not reached yet.
    old_encryption_keys: Annotated[SecretStr, AfterValidator(_are_encryption_keys)] | None = None
    # Go into every password hash; `version:base64`, separated by commas, the highest version for new hashes.
    password_peppers: Annotated[SecretStr, AfterValidator(_are_peppers)] | None = None

    protection_day_seconds: PositiveInt = DAY_SECONDS
    signature_max_age_seconds: PositiveInt = 30 * DAY_SECONDS
    signature_max_ahead_seconds: PositiveInt = 300
    # A revocation is promised to take effect within a second: reading the keys and judging a message take
    # their part of it.
    key_cache_seconds: Annotated[PositiveFloat, Field(le=1.0)] = 0.5

    worker_threads: PositiveInt = 2
    batch_bound: PositiveInt = 2048
    max_attempts: PositiveInt = 8
    drain_seconds: PositiveFloat = 25.0
    publish_timeout_seconds: PositiveFloat = 10.0
    statement_timeout_ms: PositiveInt = 30_000
    lock_timeout_ms: PositiveInt = 10_000
    database_pool_size: PositiveInt = 4

    # The relay takes over rows that their own process did not publish within this time.
    outbox_grace_seconds: PositiveFloat = 2.0
    outbox_retention_seconds: PositiveInt = 7 * DAY_SECONDS
    sweep_seconds: PositiveFloat = 5.0
    # How long past its time a step may be before the sweep puts it back on its way.
    sweep_grace_seconds: PositiveFloat = 15.0

    # A dispute that is open for longer raises an alarm.
    dispute_alarm_seconds: PositiveInt = 30 * DAY_SECONDS
    # An operator's claim above this many minor units needs a second name.
    claim_second_name_above_minor: NonNegativeInt = 100_000

    argon2_memory_kib: PositiveInt = 19_456
    argon2_iterations: PositiveInt = 2
    argon2_parallelism: PositiveInt = 1
    # Checks at once in one process: memory is bounded by this times the memory of one.
    password_threads: PositiveInt = 2
    # How long withdrawals wait after a new password, or to a new destination.
    cooling_off_seconds: Annotated[NonNegativeInt, Field(le=30 * DAY_SECONDS)] = DAY_SECONDS

    # How often the head of the ledger's hash chain is signed, and a folder that signed heads are written to.
    chain_head_seconds: PositiveFloat = 60.0
    chain_export_folder: DirectoryPath | None = None

    # Bounds of what is kept of messages that are not authentic; beyond them they are only counted.
    quarantine_max_records: PositiveInt = 100_000
    quarantine_max_bytes: PositiveInt = 1024 * 1024 * 1024
    quarantine_max_records_per_sender: PositiveInt = 10_000
    quarantine_max_bytes_per_sender: PositiveInt = 128 * 1024 * 1024

    bank_timeout_seconds: PositiveFloat = 5.0
    bank_poll_seconds: PositiveFloat = 5.0

    # One trace from a shop's message to the payout; needs the extra `tracing`.
    tracing: bool = False
    log_format: str = Field(default="auto", pattern="^(auto|json|console)$")
    # At most so many lines of one event name in ten seconds, errors apart; 0 leaves none out.
    log_sample_lines: NonNegativeInt = 100
    # `/livez`, `/readyz` and `/metrics`; port 0 serves none, but the exporter, which does nothing else, then
    # takes any free port and logs it.
    metrics_address: str = "127.0.0.1"
    metrics_port: NonNegativeInt = 0
    # How often the exporter reads the books.
    exporter_seconds: PositiveFloat = 15.0

    @model_validator(mode="after")
    def _is_fit_for_production(self) -> Self:
        if self.environment is not Environment.PRODUCTION:
            return self
        problems = [*self._production_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _production_problems(self) -> Iterator[str]:
        if self.protection_day_seconds != DAY_SECONDS:
            yield f"HOLDFAST_PROTECTION_DAY_SECONDS must be {DAY_SECONDS} in production"
        if os.environ.get("HOLDFAST_CRASH_AT"):
            yield "HOLDFAST_CRASH_AT must not be set in production"
        yield from production.broker_problems(str(self.broker_url))
        yield from production.database_problems(str(self.database_url))
        yield from production.libpq_problems(os.environ)
        if self.broker_management_url is not None:
            yield from production.http_problems(
                "HOLDFAST_BROKER_MANAGEMENT_URL", str(self.broker_management_url)
            )
        if self.bank_url is not None:
            yield from production.http_problems("HOLDFAST_BANK_URL", str(self.bank_url))
        raw = base64.b64decode(self.encryption_key.get_secret_value())
        yield from production.encryption_key_problems("HOLDFAST_ENCRYPTION_KEY", raw)

    @property
    def listed_old_encryption_keys(self) -> list[SecretStr]:
        return [] if self.old_encryption_keys is None else _listed(self.old_encryption_keys)

    @property
    def peppers(self) -> Peppers | None:
        given = self.password_peppers
        return None if given is None else parse_peppers(given.get_secret_value())

    @property
    def sqlalchemy_url(self) -> str:
        """The database URL with the driver that we use, whatever scheme was given."""
        return "postgresql+psycopg://" + str(self.database_url).split("://", 1)[1]


def load_settings(**given: str) -> Settings:
    """
    Read the environment; values that are given count instead of the variable of that name.

    Raises:
        SettingsError: one line that names each wrong variable and why.
    """
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic converts what is text
    except ValidationError as error:
        problems = "; ".join(
            f"HOLDFAST_{'_'.join(str(part) for part in detail['loc']).upper()}: {detail['msg']}"
            if detail["loc"]
            else detail["msg"]
            for detail in error.errors(include_input=False, include_url=False)
        )
        raise SettingsError(problems) from error
