"""One running system for all tests of the whole path; each test brings its own shops."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from workflow_support.system import System


@pytest.fixture(scope="session")
def system(
    make_vhost: Callable[[], str],
    databases: Any,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[System]:
    name = databases.create(template=migrated_template)
    running = System(
        broker_url=make_vhost(),
        database_url=databases.url(name),
        folder=tmp_path_factory.mktemp("system"),
    )
    try:
        running.start()
        yield running
        assert running.broken_promises() == []
        assert set(running.stop().values()) == {0}, "every process ends well when it is asked to"
    finally:
        running.close()
        databases.drop(name)
