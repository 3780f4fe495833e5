"""
CloudEvents 1.0 in JSON, in its two forms: one event, or a batch of one type and one source.

Here a message becomes envelopes or a reason for quarantine; what `data` must look like is another step.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NoReturn

from schemas.fields import EXTERNAL_ID_PATTERN, OWNER_ID_PATTERN, format_rfc3339, parse_rfc3339
from schemas.reasons import QuarantineReason

SINGLE_CONTENT_TYPE: Final = "application/cloudevents+json"
BATCH_CONTENT_TYPE: Final = "application/cloudevents-batch+json"
OUR_SOURCE: Final = "/holdfast"

MAX_BODY_BYTES: Final = 1024 * 1024
MAX_EVENT_BYTES: Final = 64 * 1024
MAX_BATCH_EVENTS: Final = 256

_EXTERNAL_ID = re.compile(EXTERNAL_ID_PATTERN.removesuffix("$") + r"\Z")
_SOURCE = re.compile(r"/(shop|bank)s/" + OWNER_ID_PATTERN.removeprefix("^").removesuffix("$") + r"\Z")
_TYPE = re.compile(r"[a-z_]+(?:\.[a-z_]+)+\Z")
_TYPE_LIMIT = 64
# CloudEvents 1.0, 3.1: attribute names; ours to know only these.
_ATTRIBUTE_NAME = re.compile(r"[a-z0-9]{1,64}\Z")


class MalformedMessage(ValueError):
    """A message is no valid event or batch; it goes to quarantine with this reason."""

    def __init__(self, reason: QuarantineReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Envelope:
    """One event's attributes; `data` is the raw JSON object, not judged yet."""

    id: str
    source: str
    type: str
    time: datetime | None
    data: Any
    traceparent: str | None = None

    @property
    def sender(self) -> tuple[str, str]:
        """Return kind (`shop` or `bank`) and id."""
        _, kind, sender_id = self.source.split("/")
        return kind.removesuffix("s"), sender_id


class _RefusedJson(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _RefusedJson("a key stands twice in one object")
    return made


def _constant(text: str) -> NoReturn:
    raise _RefusedJson(f"{text} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def parse_message(body: bytes, content_type: str | None) -> list[Envelope]:
    """
    Read a message's one event, or its batch of 1 to 256.

    Raises:
        MalformedMessage: with the reason under which the message is quarantined.
    """
    if len(body) > MAX_BODY_BYTES:
        raise MalformedMessage(
            QuarantineReason.BODY_TOO_LARGE, f"{len(body)} bytes, at most {MAX_BODY_BYTES}"
        )
    form = (content_type or "").split(";", 1)[0].strip().lower()
    if form not in {SINGLE_CONTENT_TYPE, BATCH_CONTENT_TYPE}:
        raise MalformedMessage(
            QuarantineReason.WRONG_FORM,
            f"content_type must be {SINGLE_CONTENT_TYPE} or {BATCH_CONTENT_TYPE}",
        )
    document = _load(body)
    if form == SINGLE_CONTENT_TYPE:
        if len(body) > MAX_EVENT_BYTES:
            raise MalformedMessage(
                QuarantineReason.EVENT_TOO_LARGE, f"{len(body)} bytes, at most {MAX_EVENT_BYTES}"
            )
        return [_envelope(document, "")]
    return _batch(document, len(body))


def encode_event(*, event_id: str, type_: str, time: datetime, data_json: str) -> bytes:
    """Write one event of ours; `data_json` is JSON text already and is taken as it is."""
    return _encode(event_id, type_, time, data_json).encode()


def encode_batch(events: Sequence[tuple[str, str, datetime, str]]) -> bytes:
    """Write a batch of ours: (id, type, time, data as JSON text) each."""
    return ("[" + ",".join(_encode(*event) for event in events) + "]").encode()


def _encode(event_id: str, type_: str, time: datetime, data_json: str) -> str:
    return (
        f'{{"specversion":"1.0","id":{json.dumps(event_id)},"source":"{OUR_SOURCE}","type":"{type_}",'
        f'"time":"{format_rfc3339(time)}","datacontenttype":"application/json","data":{data_json}}}'
    )


def _load(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedMessage(QuarantineReason.NOT_UTF8, f"byte {error.start} is no UTF-8") from None
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise MalformedMessage(QuarantineReason.NOT_JSON, "nested too deeply") from None
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at character {error.pos}"
        raise MalformedMessage(QuarantineReason.NOT_JSON, detail) from None
    except _RefusedJson as error:
        raise MalformedMessage(QuarantineReason.NOT_JSON, str(error)) from None
    except ValueError:
        # Python's bound on the digits of an integer.
        raise MalformedMessage(QuarantineReason.NOT_JSON, "a number has too many digits") from None


def _batch(document: Any, size: int) -> list[Envelope]:  # noqa: ANN401 - any JSON value
    if not isinstance(document, list) or not document:
        raise MalformedMessage(QuarantineReason.WRONG_FORM, "a batch is a JSON array of 1 to 256 events")
    if len(document) > MAX_BATCH_EVENTS:
        raise MalformedMessage(
            QuarantineReason.BATCH_TOO_LARGE, f"{len(document)} events, at most {MAX_BATCH_EVENTS}"
        )
    envelopes = [_envelope(event, f"event {index}: ") for index, event in enumerate(document)]
    if len({(envelope.source, envelope.type) for envelope in envelopes}) > 1:
        raise MalformedMessage(QuarantineReason.MIXED_BATCH, "a batch has one source and one type")
    if size > MAX_EVENT_BYTES:
        _refuse_large_events(document)
    return envelopes


def _refuse_large_events(events: list[Any]) -> None:
    for index, event in enumerate(events):
        size = len(json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace"))
        if size > MAX_EVENT_BYTES:
            raise MalformedMessage(
                QuarantineReason.EVENT_TOO_LARGE, f"event {index}: {size} bytes, at most {MAX_EVENT_BYTES}"
            )


def _envelope(event: Any, where: str) -> Envelope:  # noqa: ANN401 - any JSON value
    def refuse(detail: str) -> NoReturn:
        raise MalformedMessage(QuarantineReason.BAD_ENVELOPE, where + detail)

    if not isinstance(event, dict):
        refuse("an event is a JSON object")
    if event.get("specversion") != "1.0":
        refuse('specversion: must be "1.0"')
    event_id, source, type_ = event.get("id"), event.get("source"), event.get("type")
    if not isinstance(event_id, str) or not _EXTERNAL_ID.match(event_id):
        refuse("id: must be 1 to 64 printable ASCII characters")
    if not isinstance(source, str) or not _SOURCE.match(source):
        refuse("source: must be /shops/<shop_id> or /banks/<bank_id>")
    if not isinstance(type_, str) or len(type_) > _TYPE_LIMIT or not _TYPE.match(type_):
        refuse("type: must be an event type such as order.paid")
    if event.get("datacontenttype", "application/json") != "application/json":
        refuse("datacontenttype: must be application/json")
    if "data" not in event:
        refuse("data: is missing")
    if any(not _ATTRIBUTE_NAME.match(name) for name in event):
        refuse("attribute names are 1 to 64 lower-case letters and digits")
    traceparent = event.get("traceparent")
    return Envelope(
        id=event_id,
        source=source,
        type=type_,
        time=_time(event, where),
        data=event["data"],
        traceparent=traceparent if isinstance(traceparent, str) else None,
    )


def _time(event: dict[str, Any], where: str) -> datetime | None:
    if "time" not in event:
        return None
    try:
        return parse_rfc3339(event["time"])
    except (ValueError, TypeError):
        raise MalformedMessage(
            QuarantineReason.BAD_ENVELOPE, where + "time: must be RFC 3339 with an offset"
        ) from None
