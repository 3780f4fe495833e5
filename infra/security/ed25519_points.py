"""
Which 32 bytes may stand for somebody's Ed25519 public key.

OpenSSL takes any 32 bytes as a public key. For a point of low order anybody can make
signatures that verify for many messages, so such a key would be no key at all. The check
is done here once, when a key is registered or loaded, with the curve's own arithmetic
instead of a list of magic constants.
"""

# RFC 8032, section 5.1: the field, and the curve -x² + y² = 1 + d·x²·y².
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_SQRT_MINUS_ONE = pow(2, (_P - 1) // 4, _P)
_Y_MASK = 2**255 - 1

PUBLIC_KEY_BYTES = 32

_Point = tuple[int, int]
_NEUTRAL: _Point = (0, 1)


class BadPublicKey(ValueError):
    """These bytes are no usable Ed25519 public key; the sentence says why."""


def check_public_key(raw: bytes) -> None:
    """
    Accept the one encoding of a point whose order is not small.

    Raises:
        BadPublicKey: wrong length, not a point, not its canonical encoding, or of low order.
    """
    if len(raw) != PUBLIC_KEY_BYTES:
        raise BadPublicKey(f"an Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, this has {len(raw)}")
    if not any(raw):
        raise BadPublicKey("the key is all zeros")
    point = _decode(raw)
    for _ in range(3):  # 8 · P is neutral exactly for the eight points of low order
        point = _double(point)
    if point == _NEUTRAL:
        raise BadPublicKey("the key is a point of low order: anybody could sign for it")


def _decode(raw: bytes) -> _Point:
    """RFC 8032, section 5.1.3, without its leniency for y ≥ p."""
    number = int.from_bytes(raw, "little")
    y, x_is_odd = number & _Y_MASK, number >> 255
    if y >= _P:
        raise BadPublicKey("the key is not in its canonical encoding")
    x_squared = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(x_squared, (_P + 3) // 8, _P)
    if x * x % _P != x_squared:
        x = x * _SQRT_MINUS_ONE % _P
    if x * x % _P != x_squared:
        raise BadPublicKey("the key is not a point of the curve")
    if x == 0 and x_is_odd:
        raise BadPublicKey("the key is not in its canonical encoding")
    return (_P - x if x & 1 != x_is_odd else x), y


def _double(point: _Point) -> _Point:
    x, y = point
    product = _D * x * x * y * y % _P
    return (
        2 * x * y * pow(1 + product, -1, _P) % _P,
        (y * y + x * x) * pow(1 - product, -1, _P) % _P,
    )
