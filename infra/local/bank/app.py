"""The bank's HTTP interface; docs/bank.md describes it for its clients."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from infra.local.bank.book import Book
from infra.local.bank.journal import JournalFailed
from infra.local.bank.wire import (
    BEHAVIOUR,
    CREDITS,
    DEBITS,
    MAX_BODY_BYTES,
    TRANSFER,
    Refused,
    invalid,
    read_request,
)

log = structlog.get_logger(__name__)

_KEY_HEADER = "idempotency-key"
_MAX_KEY_CHARACTERS = 64
_RETURNS_PAGE = 500
_MAX_RETURNS_PAGE = 1_000
# A client without a time-out of its own is not held for ever.
_SILENCE_SECONDS = 600.0


class _Interface:
    def __init__(self, book: Book, public_key: str, on_failure: Callable[[], None]) -> None:
        self._book = book
        self._public_key = public_key
        self._on_failure = on_failure

    async def submit_transfer(self, request: Request) -> Response:
        transfer = read_request(TRANSFER, await _body(request))
        if request.headers.get(_KEY_HEADER) != transfer.end_to_end_id:
            raise invalid("Idempotency-Key", "the header must equal end_to_end_id")
        submitted = await run_in_threadpool(self._book.submit, transfer)
        if not submitted.answered:
            await _stay_silent(request)
            return Response(status_code=HTTPStatus.GATEWAY_TIMEOUT)
        return JSONResponse(submitted.answer)

    async def find_transfer(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._book.find, request.path_params["end_to_end_id"]))

    async def list_transfers(self, request: Request) -> Response:
        after = _count(request, "after", default=0, most=2**63)
        limit = _count(request, "limit", default=_RETURNS_PAGE, most=_MAX_RETURNS_PAGE)
        found = await run_in_threadpool(self._book.transfers_after, after, limit)
        return JSONResponse({"transfers": found})

    async def publish_again(self, _request: Request) -> Response:
        return JSONResponse({"statement_lines": await run_in_threadpool(self._book.publish_again)})

    async def list_returns(self, request: Request) -> Response:
        after = _count(request, "after", default=0, most=2**63)
        limit = _count(request, "limit", default=_RETURNS_PAGE, most=_MAX_RETURNS_PAGE)
        return JSONResponse({"returns": await run_in_threadpool(self._book.returns_after, after, limit)})

    async def credit(self, request: Request) -> Response:
        credits_ = read_request(CREDITS, await _body(request))
        lines = await run_in_threadpool(self._book.credit, credits_, _key(request))
        return JSONResponse({"statement_lines": lines})

    async def debit(self, request: Request) -> Response:
        debits = read_request(DEBITS, await _body(request))
        lines = await run_in_threadpool(self._book.debit, debits, _key(request))
        return JSONResponse({"statement_lines": lines})

    async def behave(self, request: Request) -> Response:
        rule = read_request(BEHAVIOUR, await _body(request))
        await run_in_threadpool(self._book.behave, rule)
        return JSONResponse(rule.model_dump(mode="json"))

    async def behave_well(self, _request: Request) -> Response:
        await run_in_threadpool(self._book.behave_well)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def journal(self, _request: Request) -> Response:
        return StreamingResponse(self._book.read_journal(), media_type="application/json")

    async def counts(self, _request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._book.counts))

    async def health(self, _request: Request) -> Response:
        return JSONResponse(
            {"ok": True, "public_key": self._public_key, "unpublished": self._book.unpublished}
        )

    async def refused(self, _request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)  # noqa: S101 - registered for this class only
        return JSONResponse(error.body, status_code=error.status)

    async def no_such_thing(self, _request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class only
        return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)

    async def journal_failed(self, _request: Request, error: Exception) -> Response:
        # What this request did is unknown, to us too, until a restart has read the journal.
        log.critical("journal_failed", why=str(error))
        self._on_failure()
        return JSONResponse({"error": "journal_failed"}, status_code=HTTPStatus.SERVICE_UNAVAILABLE)


def create_app(book: Book, *, public_key: str, on_failure: Callable[[], None]) -> Starlette:
    """Build the application; `on_failure` is called when the journal can't be written any more."""
    interface = _Interface(book, public_key, on_failure)
    return Starlette(
        routes=[
            Route("/transfers", interface.submit_transfer, methods=["POST"]),
            Route("/transfers", interface.list_transfers, methods=["GET"]),
            # An id may contain a slash.
            Route("/transfers/{end_to_end_id:path}", interface.find_transfer, methods=["GET"]),
            Route("/returns", interface.list_returns, methods=["GET"]),
            Route("/credits", interface.credit, methods=["POST"]),
            Route("/debits", interface.debit, methods=["POST"]),
            Route("/statement/again", interface.publish_again, methods=["POST"]),
            Route("/behaviour", interface.behave, methods=["PUT"]),
            Route("/behaviour", interface.behave_well, methods=["DELETE"]),
            Route("/journal", interface.journal, methods=["GET"]),
            Route("/journal/counts", interface.counts, methods=["GET"]),
            Route("/health", interface.health, methods=["GET"]),
        ],
        exception_handlers={
            Refused: interface.refused,
            JournalFailed: interface.journal_failed,
            HTTPException: interface.no_such_thing,
        },
    )


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", f"a body has at most {MAX_BODY_BYTES} bytes"
            )
    return bytes(body)


def _key(request: Request) -> str | None:
    key = request.headers.get(_KEY_HEADER)
    if key is not None and not 1 <= len(key) <= _MAX_KEY_CHARACTERS:
        raise invalid("Idempotency-Key", f"the header must have 1 to {_MAX_KEY_CHARACTERS} characters")
    return key


def _count(request: Request, name: str, *, default: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(most)):
        raise invalid(name, "must be a whole number, not negative")
    return min(int(text), most)


async def _stay_silent(request: Request) -> None:
    """Give no answer until the client has given up."""
    try:
        async with asyncio.timeout(_SILENCE_SECONDS):
            while (await request.receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        pass
