"""Runs the bank: HTTP on loopback, a clock for what happens by itself, a feed of statement lines."""

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import structlog
import uvicorn

from infra.local.bank.app import create_app
from infra.local.bank.book import Book
from infra.local.bank.journal import Journal
from infra.local.bank.keys import public_key, read_signing_key
from infra.local.bank.statements import StatementFeed
from infra.local.errors import LocalServiceError
from infra.local.ports import LOOPBACK
from infra.rabbitmq.publisher import Publisher

log = structlog.get_logger(__name__)

_LOOPBACK_NAMES = frozenset({LOOPBACK, "localhost", "::1"})
# Longer than clients keep an idle connection, so that they are the ones who close it.
_KEEP_IDLE_SECONDS = 120
# Requests that the bank leaves without an answer on purpose do not delay its end.
_DRAIN_SECONDS = 1


@dataclass(frozen=True, slots=True)
class BankSettings:
    """Where the bank listens, what it publishes to, and where it keeps what it must not forget."""

    host: str
    port: int
    broker_url: str
    journal_folder: Path
    key_file: Path
    ready_file: Path | None = None


def bank_settings(environment: Mapping[str, str]) -> BankSettings:
    """
    Read the bank's settings.

    Raises:
        LocalServiceError: names the variable that is missing or wrong.
    """

    def needed(name: str) -> str:
        if not environment.get(name):
            raise LocalServiceError(f"the simulated bank needs {name}")
        return environment[name]

    if environment.get("HOLDFAST_ENVIRONMENT") == "production":
        raise LocalServiceError("the simulated bank is no bank: HOLDFAST_ENVIRONMENT is production")
    url = urlsplit(needed("HOLDFAST_BANK_URL"))
    try:
        host, port = url.hostname, url.port
    except ValueError:
        host, port = None, None
    if url.scheme != "http" or host not in _LOOPBACK_NAMES or port is None:
        raise LocalServiceError("HOLDFAST_BANK_URL must be http://127.0.0.1:<port> for the simulated bank")
    ready_file = environment.get("HOLDFAST_READY_FILE")
    return BankSettings(
        host=str(host),
        port=port,
        broker_url=needed("HOLDFAST_BROKER_URL"),
        journal_folder=Path(needed("SIMULATED_BANK_JOURNAL")),
        key_file=Path(needed("SIMULATED_BANK_KEY_FILE")),
        ready_file=Path(ready_file) if ready_file else None,
    )


class _Server(uvicorn.Server):
    """Tells when it serves; a server that can't listen says so before."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override] # sockets go through as they come
        await super().startup(sockets=sockets)  # type: ignore[arg-type]
        if self.started:
            self._on_ready()


def run_bank(settings: BankSettings) -> int:
    """
    Run until SIGTERM or SIGINT; return the exit code.

    Raises:
        LocalServiceError: the key or the journal is missing, damaged or in use.
    """
    key = read_signing_key(settings.key_file)
    journal = Journal(settings.journal_folder)
    book = Book(journal)
    publisher = Publisher(settings.broker_url, name="simulated-bank")
    feed = StatementFeed(book, publisher, key)
    stopping = threading.Event()
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        server.should_exit = True

    def on_ready() -> None:
        log.info("bank_ready", port=settings.port, unpublished=book.unpublished)
        if settings.ready_file is not None:
            settings.ready_file.touch()

    server = _Server(
        uvicorn.Config(
            create_app(book, public_key=public_key(key), on_failure=fail),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=_KEEP_IDLE_SECONDS,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        ),
        on_ready,
    )

    def guarded(run: Callable[[threading.Event], None]) -> None:
        try:
            run(stopping)
        except Exception:
            # A bank without its clock or its feed would only look alive.
            log.critical("bank_thread_died", thread=threading.current_thread().name, exc_info=True)
            fail()

    threads = [
        threading.Thread(target=guarded, args=(book.run_clock,), name="clock", daemon=True),
        threading.Thread(target=guarded, args=(feed.run,), name="statement-feed", daemon=True),
    ]
    for thread in threads:
        thread.start()
    # Uvicorn raises the signal that ended it once more; to us it has been dealt with by then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        server.run()
    except SystemExit as error:
        # Uvicorn's way to say that it could not listen.
        raise LocalServiceError(f"can't listen on {settings.host}:{settings.port}") from error
    finally:
        stopping.set()
        book.wake()
        publisher.close()
        for thread in threads:
            thread.join(timeout=_DRAIN_SECONDS)
    log.info("bank_stopped", failed=failed.is_set())
    return 1 if failed.is_set() else 0


def run_from_environment() -> int:
    """Run the bank that `os.environ` describes."""
    return run_bank(bank_settings(os.environ))
