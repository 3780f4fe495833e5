"""In production a start that would move money unprotected fails, names the variable and shows no secret."""

import base64

import pytest

from infra.settings import SettingsError, load_settings
from ops.environment import Environment, Need

GOOD = {
    "environment": "production",
    "broker_url": "amqps://payment:a-long-enough-one@broker.example/holdfast?cacertfile=/etc/ca.pem",
    "database_url": "postgresql://payment:a-long-enough-one@db.example/holdfast?sslmode=verify-full",
    "bank_url": "https://bank.example",
    "encryption_key": base64.b64encode(bytes(range(32))).decode(),
}


def test_verified_connections_with_users_of_ours_are_accepted() -> None:
    assert load_settings(**GOOD).environment == "production"


@pytest.mark.parametrize(
    "given",
    [
        {"broker_url": "amqp://payment:a-long-enough-one@127.0.0.1/holdfast"},
        {"broker_url": "amqp://payment:a-long-enough-one@[::1]/holdfast"},
        {"database_url": "postgresql://payment:a-long-enough-one@localhost/holdfast"},
        {"database_url": "postgresql://payment@db.example/h?sslmode=verify-full&sslcert=/c&sslkey=/k"},
        {"bank_url": "http://127.0.0.1:9000"},
    ],
    ids=str,
)
def test_what_does_not_leave_the_machine_needs_no_tls(given: dict[str, str]) -> None:
    assert load_settings(**{**GOOD, **given})


WRONG = [
    ("PROTECTION_DAY_SECONDS", "5"),
    ("BROKER_URL", "amqp://payment:hidden-password@broker.example/holdfast"),
    ("BROKER_URL", "amqps://payment:hidden-password@broker.example/h?ssl_options={'verify_mode':0}"),
    ("BROKER_URL", "amqps://guest:hidden-password@broker.example/holdfast"),
    ("BROKER_URL", "amqp://guest:hidden-password@127.0.0.1/holdfast"),
    ("BROKER_URL", "amqps://broker.example/holdfast"),
    ("BROKER_URL", "amqps://payment:@broker.example/holdfast"),
    ("BROKER_URL", "amqps://payment:Changeme@broker.example/holdfast"),
    ("BROKER_URL", "amqps://payment:payment@broker.example/holdfast"),
    ("BROKER_URL", "amqps://payment:short@broker.example/holdfast"),
    ("DATABASE_URL", "postgresql://payment:hidden-password@db.example/holdfast"),
    ("DATABASE_URL", "postgresql://payment:hidden-password@db.example/holdfast?sslmode=require"),
    ("DATABASE_URL", "postgresql://payment:hidden-password@db.example/holdfast?sslmode=verify-ca"),
    ("DATABASE_URL", "postgresql://payment:hidden-password@localhost/h?host=db.example"),
    ("DATABASE_URL", "postgresql://payment:hidden-password@localhost/h?hostaddr=192.0.2.1"),
    ("DATABASE_URL", "postgresql://payment:hidden-password@localhost,db.example/h"),
    ("DATABASE_URL", "postgresql://payment:hidden-password@localhost/h?service=elsewhere"),
    ("DATABASE_URL", "postgresql://payment:hidden-password@localhost/h?servicefile=/etc/elsewhere"),
    ("DATABASE_URL", "postgresql://payment:postgres@127.0.0.1/holdfast"),
    ("DATABASE_URL", "postgresql://payment@127.0.0.1/holdfast"),
    ("BANK_URL", "http://bank.example"),
    ("BROKER_MANAGEMENT_URL", "http://watcher:hidden-password@broker.example:15672"),
    ("ENCRYPTION_KEY", base64.b64encode(bytes(32)).decode()),
]


@pytest.mark.parametrize(("variable", "value"), WRONG, ids=[f"{v}-{n}" for n, (v, _) in enumerate(WRONG)])
def test_production_refuses_to_start_and_names_the_variable(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"HOLDFAST_{variable} ") as refused:
        load_settings(**{**GOOD, variable.lower(): value})
    assert "hidden-password" not in str(refused.value)
    assert value not in str(refused.value)


def test_development_needs_none_of_it() -> None:
    assert load_settings(
        **{
            **GOOD,
            "environment": "development",
            "broker_url": "amqp://guest:guest@broker.example",
            "database_url": "postgresql://u@db.example/h",
            "protection_day_seconds": "1",
        }
    )


def test_a_revocation_can_not_be_set_to_take_longer_than_a_second() -> None:
    with pytest.raises(SettingsError, match="HOLDFAST_KEY_CACHE_SECONDS"):
        load_settings(**{**GOOD, "key_cache_seconds": "1.1"})


def test_a_command_that_uses_nothing_runs_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROKER_URL", "DATABASE_URL", "ENCRYPTION_KEY"):
        monkeypatch.delenv(f"HOLDFAST_{name}", raising=False)
    monkeypatch.setenv("HOLDFAST_ENVIRONMENT", "production")
    assert Environment(Need.NOTHING)


@pytest.mark.parametrize("variable", ["PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE"])
def test_production_refuses_what_leads_libpq_past_the_url(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PGHOSTADDR decides where libpq connects, also where the URL says localhost and so needs no TLS."""
    monkeypatch.setenv(variable, "198.51.100.7")
    with pytest.raises(SettingsError, match=f"{variable} must not be set in production") as refused:
        load_settings(**GOOD)
    assert "198.51.100.7" not in str(refused.value)
    assert load_settings(**{**GOOD, "environment": "development"})
