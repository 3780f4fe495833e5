"""The queries by which pools grow run on the schema, and tell the age of work that may be done."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml
from sqlalchemy import Engine
from workflow_support.desk import Desk, database_engine
from workflow_support.events import bank_credited, credit_data, order_data, order_paid

AUTOSCALING = Path(__file__).parents[3] / "infra" / "deploy" / "kubernetes" / "workers" / "autoscaling.yaml"


def queries() -> dict[str, str]:
    """Return each pool's query."""
    documents = yaml.safe_load_all(AUTOSCALING.read_text())
    return {
        document["metadata"]["name"].removeprefix("holdfast-"): trigger["metadata"]["query"]
        for document in documents
        if document["kind"] == "ScaledObject"
        for trigger in document["spec"]["triggers"]
        if trigger["type"] == "postgresql"
    }


@pytest.fixture(scope="module")
def own_engine(database_url: str) -> Iterator[Engine]:
    with database_engine(database_url) as engine:
        yield engine


def age_of(database_url: str, pool: str) -> float:
    with psycopg.connect(database_url) as connection:
        [row] = connection.execute(queries()[pool].encode()).fetchall()
        assert isinstance(row[0], float), "a number, also where nothing waits"
        return row[0]


def test_nothing_waits_in_an_empty_system(database_url: str) -> None:
    assert {pool: age_of(database_url, pool) for pool in queries()} == {"escrow": 0, "payout": 0, "relay": 0}


def test_a_due_hold_ages_only_once_it_may_be_released(database_url: str, own_engine: Engine) -> None:
    desk = Desk(own_engine)
    shop, order = desk.a_shop(), order_data()
    desk.shop_says(order_paid(shop, order))
    desk.pass_protection(shop, order["order_id"], but_for="-60 seconds")
    assert age_of(database_url, "escrow") == 0, "the bank has not confirmed it: no process could help"
    desk.commands.clear()
    desk.bank_says(bank_credited(credit_data(order)))
    desk.close()
    assert age_of(database_url, "escrow") == 0, "released with the credit"


def test_unreleased_holds_and_unpublished_rows_age(database_url: str, own_engine: Engine) -> None:
    desk = Desk(own_engine)
    shop, order = desk.a_shop(funding="announced"), order_data()
    desk.shop_says(order_paid(shop, order))
    desk.pass_protection(shop, order["order_id"], but_for="-60 seconds")
    assert 60 <= age_of(database_url, "escrow") < 90
    desk.execute("UPDATE outbox SET next_attempt_at = clock_timestamp() - interval '40 seconds'")
    assert 40 <= age_of(database_url, "relay") < 70
    desk.execute(
        "INSERT INTO password_attempts (attempt_id, shop_id, seller_id, purpose, event_id, answer_id, sealed,"
        " state, requested_at) VALUES (gen_random_uuid(), :shop, 's-1', 'enrolment', 'e-1',"
        " gen_random_uuid(), 'sealed', 'waiting', clock_timestamp() - interval '20 seconds')",
        shop=shop,
    )
    assert 20 <= age_of(database_url, "payout") < 50
    desk.close()
