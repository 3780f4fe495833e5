"""What the payout worker needs to start, and what it says without."""

import base64
from types import SimpleNamespace
from typing import Any

import pytest

from infra.settings import Environment, Settings, SettingsError, load_settings
from workers.payout import worker
from workers.process import WrongDeployment

KEY = base64.b64encode(bytes(range(32))).decode()
PEPPER = f"1:{base64.b64encode(b'p' * 32).decode()}"


def settings(**given: Any) -> Settings:
    return Settings.model_validate(
        {
            "broker_url": "amqps://holdfast:secret@rabbit.example.com/",
            "database_url": "postgresql://holdfast:secret@db.example.com/holdfast?sslmode=verify-full",
            "bank_url": "https://bank.example.com/",
            "encryption_key": KEY,
            **given,
        }
    )


def test_production_needs_a_pepper_and_says_so() -> None:
    process: Any = SimpleNamespace(
        settings=settings().model_copy(update={"environment": Environment.PRODUCTION})
    )
    with pytest.raises(WrongDeployment, match="HOLDFAST_PASSWORD_PEPPERS"):
        worker._declare(process)


def test_peppers_and_old_keys_are_read_and_never_shown() -> None:
    read = settings(password_peppers=PEPPER, old_encryption_keys=f"{KEY}, {KEY}")
    assert read.peppers is not None
    assert read.peppers.current == "1"
    assert len(read.listed_old_encryption_keys) == 2
    assert PEPPER.partition(":")[2] not in repr(read)
    assert KEY not in repr(read)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HOLDFAST_PASSWORD_PEPPERS", "1:cGxhbnRlZA=="),
        ("HOLDFAST_OLD_ENCRYPTION_KEYS", f"{KEY},cGxhbnRlZA=="),
        ("HOLDFAST_COOLING_OFF_SECONDS", "-1"),
        ("HOLDFAST_COOLING_OFF_SECONDS", str(31 * 86_400)),
        ("HOLDFAST_PASSWORD_THREADS", "0"),
    ],
)
def test_a_wrong_value_stops_the_start_with_the_variables_name_and_without_the_secret(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv("HOLDFAST_BROKER_URL", "amqp://rabbit.example.com/")
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", "postgresql://db.example.com/holdfast")
    monkeypatch.setenv("HOLDFAST_ENCRYPTION_KEY", KEY)
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert variable in str(caught.value)
    assert "cGxhbnRlZA" not in str(caught.value)
