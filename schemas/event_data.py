"""What every inbound event's `data` has in common."""

import hashlib
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen, no coercion, nothing extra; a wrong value is never echoed into an error or a log."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)


class EventData(Strict):
    """
    `data` of one type of inbound event.

    TYPE is the CloudEvents type, SCOPE what a shop's key must be good for (None: sent by banks),
    SUBJECT the field that a reply names, and REJECTED the reply's type (None: there is no reply).
    """

    TYPE: ClassVar[str]
    SCOPE: ClassVar[str | None]
    SUBJECT: ClassVar[str]
    REJECTED: ClassVar[str | None]

    def content_hash(self) -> bytes:
        """
        Return SHA-256 of the values after validation.

        Field order, white space and time zones of the message make no difference, and `sealed` is left
        out, so the same request sealed anew is the same content. Absent fields are left out too: a
        field that is added to the schema later does not change the hash of older messages.
        """
        canonical = self.__pydantic_serializer__.to_json(self, exclude={"sealed"}, exclude_none=True)
        return hashlib.sha256(self.TYPE.encode() + b"\n" + canonical).digest()
