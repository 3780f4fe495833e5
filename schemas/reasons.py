"""The closed lists of refusals: what a sender is told, and why a message was quarantined."""

from enum import StrEnum


class Reason(StrEnum):
    """Why an authentic request was refused; part of the contract with the outside."""

    INVALID_DATA = "invalid_data"
    CONFLICTING_DUPLICATE = "conflicting_duplicate"
    SHOP_SUSPENDED = "shop_suspended"
    UNKNOWN_ORDER = "unknown_order"
    UNKNOWN_SELLER = "unknown_seller"
    UNKNOWN_DESTINATION = "unknown_destination"
    WRONG_PASSWORD = "wrong_password"  # noqa: S105 - a refusal's name, not a secret
    LOCKED = "locked"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    UNSUPPORTED_CURRENCY = "unsupported_currency"
    NOT_REFUNDABLE = "not_refundable"
    ALREADY_RESOLVED = "already_resolved"
    OVER_LIMIT = "over_limit"
    COOLING_OFF = "cooling_off"


class QuarantineReason(StrEnum):
    """Why a message is no valid, authentic event; there is nobody proven to reply to."""

    BODY_TOO_LARGE = "body_too_large"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    WRONG_FORM = "wrong_form"
    BAD_ENVELOPE = "bad_envelope"
    EVENT_TOO_LARGE = "event_too_large"
    BATCH_TOO_LARGE = "batch_too_large"
    MIXED_BATCH = "mixed_batch"
    UNKNOWN_TYPE = "unknown_type"
    ROUTING_KEY_MISMATCH = "routing_key_mismatch"
    WEBHOOK_ID_MISMATCH = "webhook_id_mismatch"
    UNKNOWN_SENDER = "unknown_sender"
    BAD_SIGNATURE = "bad_signature"
    STALE_TIMESTAMP = "stale_timestamp"
    WRONG_SCOPE = "wrong_scope"
    UNREADABLE_ID = "unreadable_id"
    UNROUTED = "unrouted"
