"""
CloudEvents 1.0 in JSON, in its two forms: one event, or a batch of one type and one source.

Here a message becomes envelopes or a reason for quarantine; what `data` must look like is another step.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NoReturn
from uuid import UUID

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.json import Encoder
from msgspec.structs import replace

from schemas.fields import EXTERNAL_ID_PATTERN, OWNER_ID_PATTERN, parse_rfc3339, unanchored
from schemas.reasons import QuarantineReason

SINGLE_CONTENT_TYPE: Final = "application/cloudevents+json"
BATCH_CONTENT_TYPE: Final = "application/cloudevents-batch+json"
OUR_SOURCE: Final = "/holdfast"

MAX_BODY_BYTES: Final = 1024 * 1024
MAX_EVENT_BYTES: Final = 64 * 1024
MAX_BATCH_EVENTS: Final = 256
# The contract nests 3 deep. The bound keeps whatever walks a value later far from the end of its stack.
MAX_DEPTH: Final = 32

_EXTERNAL_ID = re.compile(unanchored(EXTERNAL_ID_PATTERN) + r"\Z")
_SOURCE = re.compile(r"/(shop|bank)s/" + unanchored(OWNER_ID_PATTERN) + r"\Z")
# W3C Trace Context, version 00 and what later versions keep of it.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
_SPACE = re.compile(r"[ \t\n\r]*")
# Python refuses longer integers; the bound is above every field's range.
_MAX_INTEGER_DIGITS = 4_000
_BEYOND_EVERY_RANGE = 10**100
# CloudEvents 1.0, 3.1: attribute names; ours to know only these.
_ATTRIBUTE_NAME = re.compile(r"[a-z0-9]{1,64}\Z")


class MalformedMessage(ValueError):
    """A message is no valid event or batch; it goes to quarantine with this reason."""

    def __init__(self, reason: QuarantineReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Envelope(Struct, frozen=True, gc=False):
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


class AmbiguousData(dict[str, Any]):
    """
    An event's `data` in which some object names a key twice, so that nobody can say what it means.

    It is refused like data that breaks its schema; `repeated` are the keys whose value is in doubt.
    """

    repeated: frozenset[str] = frozenset()


# Keys that stand twice, each with the object in which it does.
_Repeated = list[tuple[dict[str, Any], str]]


class _RepeatedKey(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _RepeatedKey
    return made


def _constant(text: str) -> NoReturn:
    raise MalformedMessage(QuarantineReason.NOT_JSON, f"{text} is no JSON number")


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
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedMessage(QuarantineReason.NOT_UTF8, f"byte {error.start} is no UTF-8") from None
    if form == BATCH_CONTENT_TYPE:
        return _batch(text)
    _refuse_large(len(body), "")
    event, end, repeated = _scan(text, _skip_space(text, 0))
    _refuse_more(text, end)
    return [_envelope_of(event, repeated, "")]


class OwnEvent(Struct, frozen=True, gc=False, kw_only=True):
    """An event of ours as it is written; `data` is JSON text already and taken as it is, `time` is in UTC."""

    specversion: str = "1.0"
    id: UUID | str
    source: str = OUR_SOURCE
    type: str
    time: datetime
    datacontenttype: str = "application/json"
    # CloudEvents' extension for distributed tracing.
    traceparent: str | UnsetType = UNSET
    data: Raw


_ENCODER = Encoder()


def encode_event(event: OwnEvent) -> bytes:
    """Write one event in the structured form."""
    return _ENCODER.encode(event)


def encode_batch(events: Sequence[OwnEvent]) -> bytes:
    """Write a batch of events, which are of one type."""
    return _ENCODER.encode(events)


def _batch(text: str) -> list[Envelope]:
    # Value by value instead of the array as a whole: so each event's own bytes are known.
    position = _skip_space(text, 0)
    if not text.startswith("[", position):
        _, end, _ = _scan(text, position)
        _refuse_more(text, end)
        raise MalformedMessage(QuarantineReason.WRONG_FORM, "a batch is a JSON array of 1 to 256 events")
    position = _skip_space(text, position + 1)
    if text.startswith("]", position):
        raise MalformedMessage(QuarantineReason.WRONG_FORM, "a batch is a JSON array of 1 to 256 events")
    envelopes: list[Envelope] = []
    while True:
        where = f"event {len(envelopes)}: "
        event, end, repeated = _scan(text, position)
        _refuse_large(_bytes_between(text, position, end), where)
        envelopes.append(_envelope_of(event, repeated, where))
        position = _skip_space(text, end)
        if text.startswith("]", position):
            break
        if not text.startswith(",", position):
            raise MalformedMessage(QuarantineReason.NOT_JSON, f"no comma at character {position}")
        if len(envelopes) == MAX_BATCH_EVENTS:
            raise MalformedMessage(QuarantineReason.BATCH_TOO_LARGE, f"more than {MAX_BATCH_EVENTS} events")
        position = _skip_space(text, position + 1)
    _refuse_more(text, position + 1)
    if len({(envelope.source, envelope.type) for envelope in envelopes}) > 1:
        raise MalformedMessage(QuarantineReason.MIXED_BATCH, "a batch has one source and one type")
    return envelopes


def _envelope_of(event: Any, repeated: _Repeated, where: str) -> Envelope:  # noqa: ANN401 - any JSON value
    if not repeated:
        return _envelope(event, where)
    if any(owner is event for owner, _ in repeated):
        raise MalformedMessage(QuarantineReason.BAD_ENVELOPE, f"{where}an attribute stands twice")
    envelope = _envelope(event, where)
    if not isinstance(envelope.data, dict):
        return envelope
    data = AmbiguousData(envelope.data)
    data.repeated = frozenset(key for _, key in repeated)
    return replace(envelope, data=data)


def _scan(text: str, start: int) -> tuple[Any, int, _Repeated]:
    """Read the JSON value at `start`; say where it ends and which keys stand twice in which object."""
    repeated: _Repeated = []
    try:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (json.JSONDecodeError, MalformedMessage):
            raise
        except (_RepeatedKey, ValueError):
            # A key stands twice, or an integer has thousands of digits: valid JSON, but the fast way
            # cannot say in which event. The careful way can.
            value, end = _careful_decoder(repeated).raw_decode(text, start)
    except RecursionError:
        raise MalformedMessage(QuarantineReason.NOT_JSON, "nested too deeply") from None
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at character {error.pos}"
        raise MalformedMessage(QuarantineReason.NOT_JSON, detail) from None
    # Fewer brackets than the bound cannot nest deeper than it; counting them is much cheaper than walking.
    if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH and _is_deep(value):
        raise MalformedMessage(QuarantineReason.NOT_JSON, "nested too deeply")
    return value, end, repeated


def _careful_decoder(repeated: _Repeated) -> json.JSONDecoder:
    def note_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in pairs:
            if key in made:
                repeated.append((made, key))
            made[key] = value
        return made

    def bounded(digits: str) -> int:
        return int(digits) if len(digits) <= _MAX_INTEGER_DIGITS else _BEYOND_EVERY_RANGE

    return json.JSONDecoder(object_pairs_hook=note_repeated, parse_constant=_constant, parse_int=bounded)


def _is_deep(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _skip_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    return found.end() if found else start


def _refuse_more(text: str, end: int) -> None:
    if _skip_space(text, end) != len(text):
        raise MalformedMessage(QuarantineReason.NOT_JSON, f"more follows the value at character {end}")


def _refuse_large(size: int, where: str) -> None:
    if size > MAX_EVENT_BYTES:
        raise MalformedMessage(
            QuarantineReason.EVENT_TOO_LARGE, f"{where}{size} bytes, at most {MAX_EVENT_BYTES}"
        )


def _bytes_between(text: str, start: int, end: int) -> int:
    return end - start if text.isascii() else len(text[start:end].encode())


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
    if not isinstance(type_, str) or not _EXTERNAL_ID.match(type_):
        refuse("type: must be an event type such as order.paid")
    # CloudEvents' JSON format, 2.2: null is the same as left out.
    if event.get("datacontenttype") not in (None, "application/json"):
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
        # Trace Context: one that does not parse is ignored, the message counts all the same.
        traceparent=traceparent if isinstance(traceparent, str) and _TRACEPARENT.match(traceparent) else None,
    )


def _time(event: dict[str, Any], where: str) -> datetime | None:
    if event.get("time") is None:
        return None
    try:
        return parse_rfc3339(event["time"])
    except (ValueError, TypeError):
        raise MalformedMessage(
            QuarantineReason.BAD_ENVELOPE, where + "time: must be RFC 3339 with an offset"
        ) from None
