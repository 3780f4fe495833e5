"""The management API's URL carries a password: what is taken, what is refused, and that nothing shows it."""

from pathlib import Path

import pytest

from infra.local.installation import Installation
from infra.settings import SettingsError, load_settings

OTHERS = {
    "broker_url": "amqps://u:a-long-password@broker/",
    "database_url": "postgresql://u:a-long-password@database/holdfast?sslmode=verify-full",
    "encryption_key": "A" * 42 + "E=",
}


def test_a_url_without_a_user_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"HOLDFAST_BROKER_MANAGEMENT_URL: .*user and password"):
        load_settings(**OTHERS, broker_management_url="https://broker:15671")


def test_production_sends_no_password_in_clear() -> None:
    url = "http://watcher:hidden@broker:15672"
    with pytest.raises(SettingsError, match="HOLDFAST_BROKER_MANAGEMENT_URL must be https") as refused:
        load_settings(**OTHERS, environment="production", broker_management_url=url)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("url", ["https://w:hidden@broker:15671", "http://w:hidden@127.0.0.1:15672"])
def test_production_takes_https_and_loopback_and_shows_neither(url: str) -> None:
    settings = load_settings(**OTHERS, environment="production", broker_management_url=url)
    assert str(settings.broker_management_url).startswith(url)
    assert "hidden" not in repr(settings)


def test_a_broker_of_the_callers_is_not_watched_through_a_private_one(tmp_path: Path) -> None:
    caller = {"HOLDFAST_BROKER_URL": "amqp://u:p@elsewhere/", "HOLDFAST_BROKER_MANAGEMENT_URL": ""}
    assert Installation(tmp_path, caller=caller).broker_management_url is None
