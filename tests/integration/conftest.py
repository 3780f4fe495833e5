"""Handlers on a real database; every test that has used the desk leaves books that are right."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Engine
from workflow_support.banks import ScriptedBank
from workflow_support.books import what_is_wrong
from workflow_support.desk import Desk, database_engine


@pytest.fixture(scope="module")
def engine(database_url: str) -> Iterator[Engine]:
    with database_engine(database_url) as engine:
        yield engine


@pytest.fixture
def desk_with(engine: Engine) -> Iterator[Callable[[ScriptedBank], Desk]]:
    """Return a function that opens a desk with a bank that answers as the test says."""
    with ExitStack() as leaving:

        def open_desk(bank: ScriptedBank) -> Desk:
            desk = Desk(engine, bank=bank)
            leaving.callback(desk.close)
            return desk

        yield open_desk
    assert what_is_wrong(engine) == {}


@pytest.fixture
def desk(desk_with: Callable[[ScriptedBank], Desk]) -> Desk:
    return desk_with(ScriptedBank())
