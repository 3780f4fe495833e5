"""Keys in the database: who is known, which keys are good by its clock, and how long that is kept."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import Connection, Engine, create_engine, event, text

from infra.postgres import key_store
from infra.postgres.key_store import (
    KeyStore,
    NoOwnKey,
    add_own_key,
    add_sender_key,
    ensure_own_keys,
    find_own_keys,
    find_own_public_keys,
    list_sender_keys,
    revoke_sender_key,
)
from infra.security.encryption import DecryptionFailed, Vault
from infra.security.own_keys import KeyUse, generate_own_key
from infra.security.sealed import seal
from infra.security.signatures import Scheme

VAULT = Vault(base64.b64encode(bytes(range(32))).decode())
SECRET = b"planted-hmac-secret-0123456789ab"
PUBLIC = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()


class SteppedClock:
    """The worker's monotonic clock, moved by the test: the cache is tried without waiting."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture(scope="module")
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine("postgresql+psycopg://" + database_url.split("://", 1)[1])
    yield engine
    engine.dispose()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SteppedClock:
    clock = SteppedClock()
    monkeypatch.setattr(key_store, "time", clock)
    return clock


@pytest.fixture
def keys(engine: Engine, clock: SteppedClock) -> KeyStore:
    return KeyStore(engine, VAULT, cache_seconds=1.0)


@dataclass
class Queries:
    count: int = 0


@pytest.fixture
def queries(engine: Engine) -> Iterator[Queries]:
    seen = Queries()

    def count(*_: object) -> None:
        seen.count += 1

    event.listen(engine, "before_cursor_execute", count)
    yield seen
    event.remove(engine, "before_cursor_execute", count)


@pytest.fixture
def shop(engine: Engine) -> str:
    """A registered shop of this test's own."""
    shop_id = f"shop-{uuid4().hex}"
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO shops (shop_id, protection_days, funding, fee_bps)"
                " VALUES (:id, 7, 'confirmed', 0)"
            ),
            {"id": shop_id},
        )
    return shop_id


@pytest.fixture
def add(engine: Engine, shop: str) -> Callable[..., UUID]:
    def add_key(
        scheme: Scheme = Scheme.ED25519, material: bytes = PUBLIC, scopes: tuple[str, ...] = ("orders",)
    ) -> UUID:
        with engine.begin() as connection:
            return add_sender_key(
                connection,
                VAULT,
                kind="shop",
                sender_id=shop,
                scheme=scheme,
                material=material,
                scopes=scopes,
            )

    return add_key


def set_times(engine: Engine, key_id: UUID, **intervals: str) -> None:
    """Move a key's times relative to the database's clock."""
    with engine.begin() as connection:
        for name, interval in intervals.items():
            connection.execute(
                text(
                    f"UPDATE sender_keys SET {name} = clock_timestamp() + CAST(:i AS interval)"
                    " WHERE key_id = :k"
                ),
                {"i": interval, "k": key_id},
            )


def signs_first_with(keys: KeyStore, public_jwk: Mapping[str, str]) -> bool:
    """Whether the first signature of what is signed now is this key's."""
    now = datetime.now(UTC)
    headers = keys.signer().headers("m", b"body", now)
    encoded = headers["webhook-signature"].split()[0].removeprefix("v1a,")
    key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(public_jwk["x"] + "="))
    try:
        key.verify(base64.b64decode(encoded), f"m.{int(now.timestamp())}.".encode() + b"body")
    except InvalidSignature:
        return False
    return True


def test_a_registered_shop_is_known_with_its_keys(
    keys: KeyStore, shop: str, add: Callable[..., UUID]
) -> None:
    ed25519, hmac = add(scopes=("sellers", "orders")), add(Scheme.HMAC_SHA256, SECRET)
    record = keys.sender("shop", shop)
    assert record is not None
    assert record.active
    found = {key.key_id: key for key in record.keys}
    assert found[str(ed25519)].material == PUBLIC
    assert found[str(ed25519)].scopes == {"orders", "sellers"}
    assert found[str(ed25519)].scheme is Scheme.ED25519
    assert found[str(hmac)].material == SECRET
    assert found[str(hmac)].scheme is Scheme.HMAC_SHA256


def test_a_shop_without_keys_is_known_and_can_sign_nothing(keys: KeyStore, shop: str) -> None:
    record = keys.sender("shop", shop)
    assert record is not None
    assert record.keys == ()


def test_a_suspended_shop_is_known_as_suspended(engine: Engine, keys: KeyStore, shop: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE shops SET state = 'suspended' WHERE shop_id = :id"), {"id": shop})
    record = keys.sender("shop", shop)
    assert record is not None
    assert not record.active


def test_a_banks_key_is_the_banks_alone(engine: Engine, keys: KeyStore, shop: str) -> None:
    """A shop and a bank of one name are two senders."""
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO banks (bank_id) VALUES (:id)"), {"id": shop})
        key_id = add_sender_key(
            connection,
            VAULT,
            kind="bank",
            sender_id=shop,
            scheme=Scheme.ED25519,
            material=PUBLIC,
            scopes=(),
        )
    bank, same_named_shop = keys.sender("bank", shop), keys.sender("shop", shop)
    assert bank is not None
    assert [key.key_id for key in bank.keys] == [str(key_id)]
    assert same_named_shop is not None
    assert same_named_shop.keys == ()


@pytest.mark.parametrize("kind", ["shop", "bank"])
def test_an_unknown_sender_is_unknown(keys: KeyStore, kind: str) -> None:
    assert keys.sender(kind, "nobody") is None


@pytest.mark.parametrize(
    "times",
    [
        {"revoked_at": "0 seconds"},
        {"revoked_at": "1 hour"},
        {"not_after": "0 seconds"},
        {"not_after": "-1 hour"},
        {"not_before": "1 hour"},
    ],
    ids=str,
)
def test_a_key_outside_its_time_is_not_active(
    engine: Engine, keys: KeyStore, shop: str, add: Callable[..., UUID], times: dict[str, str]
) -> None:
    set_times(engine, add(), **times)
    record = keys.sender("shop", shop)
    assert record is not None
    assert record.keys == ()


def test_a_key_inside_its_time_is_active(
    engine: Engine, keys: KeyStore, shop: str, add: Callable[..., UUID]
) -> None:
    set_times(engine, add(), not_before="-1 hour", not_after="1 hour")
    record = keys.sender("shop", shop)
    assert record is not None
    assert len(record.keys) == 1


def test_a_revocation_takes_effect_when_the_kept_answer_is_a_second_old(
    engine: Engine, keys: KeyStore, clock: SteppedClock, shop: str, add: Callable[..., UUID]
) -> None:
    key_id = add()
    before = keys.sender("shop", shop)
    with engine.begin() as connection:
        assert revoke_sender_key(connection, "shop", shop, key_id)
    clock.seconds += 0.999
    assert keys.sender("shop", shop) is before
    clock.seconds += 0.001
    after = keys.sender("shop", shop)
    assert after is not None
    assert after.keys == ()


def test_an_answer_that_took_long_is_not_kept_longer_for_it(
    engine: Engine, clock: SteppedClock, monkeypatch: pytest.MonkeyPatch, shop: str, add: Callable[..., UUID]
) -> None:
    """The second counts from the question: a revocation may have come right after it."""
    add()
    real = key_store.find_senders

    def slow(
        connection: Connection, vault: Vault, names: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], key_store.SenderRecord]:
        records = real(connection, vault, names)
        clock.seconds += 5
        return records

    monkeypatch.setattr(key_store, "find_senders", slow)
    keys = KeyStore(engine, VAULT, cache_seconds=1.0)
    assert keys.sender("shop", shop) is not keys.sender("shop", shop)


def test_only_its_own_sender_can_have_a_key_revoked_and_only_once(
    engine: Engine, shop: str, add: Callable[..., UUID]
) -> None:
    key_id = add()
    with engine.begin() as connection:
        assert not revoke_sender_key(connection, "shop", "another-shop", key_id)
        assert not revoke_sender_key(connection, "bank", shop, key_id)
        assert revoke_sender_key(connection, "shop", shop, key_id)
        assert not revoke_sender_key(connection, "shop", shop, key_id)


def test_a_known_sender_is_asked_for_once_a_second(
    keys: KeyStore, clock: SteppedClock, queries: Queries, shop: str
) -> None:
    keys.sender("shop", shop)
    asked = queries.count
    for _ in range(100):
        keys.sender("shop", shop)
    assert queries.count == asked
    clock.seconds += 1
    keys.sender("shop", shop)
    assert queries.count > asked


@pytest.mark.parametrize("asked_before", ["the same name", "another name", "a registered one"])
def test_a_sender_is_known_from_the_moment_that_it_is_registered(
    engine: Engine, keys: KeyStore, shop: str, asked_before: str
) -> None:
    """Its first message may follow at once; an answer from before must not send that into quarantine."""
    bank_id = f"bank-{uuid4().hex}"
    names = {"the same name": bank_id, "another name": "nobody", "a registered one": bank_id}
    assert keys.sender("bank", names[asked_before]) is None
    if asked_before == "a registered one":
        assert keys.sender("shop", shop) is not None
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO banks (bank_id) VALUES (:id)"), {"id": bank_id})
    assert keys.sender("bank", bank_id) is not None


def test_the_last_word_knows_a_key_that_was_added_a_moment_before(
    keys: KeyStore, clock: SteppedClock, shop: str, add: Callable[..., UUID]
) -> None:
    keys.sender("shop", shop)
    key_id = add()
    clock.seconds += 0.001
    kept = keys.sender("shop", shop)
    assert kept is not None
    assert kept.keys == ()
    fresh = keys.senders_since([("shop", shop)], clock.seconds)["shop", shop]
    assert [key.key_id for key in fresh.keys] == [str(key_id)]
    assert keys.sender("shop", shop) is fresh, "and it is kept from then on"


def test_what_was_asked_since_a_message_came_need_not_be_asked_again(
    keys: KeyStore, clock: SteppedClock, queries: Queries, shop: str
) -> None:
    came = clock.seconds
    clock.seconds += 0.001
    record = keys.sender("shop", shop)
    asked = queries.count
    assert keys.senders_since([("shop", shop)], came)["shop", shop] is record
    assert queries.count == asked


def test_a_flood_of_bad_signatures_asks_at_most_fifty_times_a_second(
    keys: KeyStore, clock: SteppedClock, queries: Queries, shop: str
) -> None:
    asked, began = queries.count, clock.seconds
    for _ in range(1_000):
        clock.seconds += 0.0001
        keys.senders_since([("shop", shop)], clock.seconds)
    assert queries.count - asked <= (clock.seconds - began) / key_store.FRESH_SECONDS + 1
    for _ in range(3):  # each batch longer than the pause: nobody waits
        clock.seconds = came = clock.seconds + 2 * key_store.FRESH_SECONDS
        keys.senders_since([("shop", shop)], came)
        assert clock.seconds == came


def test_inventing_names_pushes_no_registered_sender_out_of_the_cache(
    keys: KeyStore, queries: Queries, monkeypatch: pytest.MonkeyPatch, shop: str
) -> None:
    monkeypatch.setattr(key_store, "_MAX_CACHED_SENDERS", 5)
    record = keys.sender("shop", shop)
    for number in range(20):
        keys.sender("shop", f"invented-{number}")
    asked = queries.count
    assert keys.sender("shop", shop) is record
    assert queries.count == asked


def test_inventing_names_costs_a_query_a_batch_and_no_memory(
    keys: KeyStore, queries: Queries, shop: str
) -> None:
    keys.sender("shop", shop)
    asked = queries.count
    invented = {(kind, f"invented-{number}") for kind in ("shop", "bank") for number in range(500)}
    assert keys.senders({*invented, ("shop", shop)}).keys() == {("shop", shop)}
    assert queries.count == asked + 1
    assert keys._senders.keys() == {("shop", shop)}


def test_a_sender_has_a_bounded_number_of_keys_and_an_ended_one_makes_room(
    engine: Engine, shop: str, add: Callable[..., UUID]
) -> None:
    ids = [add(Scheme.HMAC_SHA256, bytes([number]) * 32) for number in range(1, 9)]
    with pytest.raises(key_store.TooManyKeys, match="revoke one first"):
        add(Scheme.HMAC_SHA256, bytes([9]) * 32)
    with engine.begin() as connection:
        assert revoke_sender_key(connection, "shop", shop, ids[0])
    assert add(Scheme.HMAC_SHA256, bytes([9]) * 32)


def test_an_hmac_secret_rests_encrypted_and_bound_to_its_row(
    engine: Engine, keys: KeyStore, shop: str, add: Callable[..., UUID]
) -> None:
    first, second = (
        add(Scheme.HMAC_SHA256, SECRET),
        add(Scheme.HMAC_SHA256, b"another-secret-0123456789abcdef"),
    )
    with engine.begin() as connection:
        rows = connection.execute(text("SELECT key_id, secret_encrypted FROM sender_keys")).all()
        stored = {row.key_id: bytes(row.secret_encrypted) for row in rows if row.secret_encrypted}
        assert not any(SECRET in envelope for envelope in stored.values())
        connection.execute(
            text("UPDATE sender_keys SET secret_encrypted = :moved WHERE key_id = :key"),
            {"moved": stored[second], "key": first},
        )
    with pytest.raises(DecryptionFailed):
        keys.sender("shop", shop)


def test_what_is_listed_holds_no_secret(engine: Engine, shop: str, add: Callable[..., UUID]) -> None:
    key_id, revoked = add(Scheme.HMAC_SHA256, SECRET), add()
    with engine.begin() as connection:
        revoke_sender_key(connection, "shop", shop, revoked)
        listed = {row["key_id"]: row for row in list_sender_keys(connection, "shop", shop)}
    assert listed[key_id]["active"]
    assert not listed[revoked]["active"]
    assert "secret" not in " ".join(name for row in listed.values() for name in row)
    assert SECRET.decode() not in json.dumps(listed[key_id], default=str)


@pytest.mark.parametrize("key", [(Scheme.ED25519, PUBLIC), (Scheme.HMAC_SHA256, SECRET)], ids=["v1a", "v1"])
def test_the_same_key_again_is_the_same_key(
    engine: Engine, keys: KeyStore, shop: str, add: Callable[..., UUID], key: tuple[Scheme, bytes]
) -> None:
    """Otherwise revoking a leaked key that was added twice would leave it good."""
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: add(*key), range(8)))
    assert len(ids) == 1
    with engine.begin() as connection:
        revoke_sender_key(connection, "shop", shop, ids.pop())
    record = keys.sender("shop", shop)
    assert record is not None
    assert record.keys == ()


@pytest.mark.parametrize("scopes", [("everything",), ("orders", "}"), ("",)])
def test_a_scope_that_does_not_exist_is_refused(add: Callable[..., UUID], scopes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="scopes"):
        add(scopes=scopes)


def test_without_own_keys_the_error_says_what_to_do(engine: Engine, keys: KeyStore) -> None:
    with engine.connect() as connection, connection.begin() as transaction:
        connection.execute(text("DELETE FROM holdfast_keys"))
        transaction.commit()
    for ask in (keys.signer, keys.opener):
        with pytest.raises(NoOwnKey, match="holdfast migrate"):
            ask()


def test_own_keys_are_made_once_however_many_ask(engine: Engine) -> None:
    def ensure(_: int) -> None:
        with engine.begin() as connection:
            ensure_own_keys(connection, VAULT)

    with engine.begin() as connection:
        connection.execute(text("DELETE FROM holdfast_keys"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ensure, range(8)))
    with engine.connect() as connection:
        assert [len(find_own_keys(connection, VAULT, use)) for use in KeyUse] == [1, 1]


def test_what_is_published_is_what_signs_and_opens_and_holds_nothing_private(
    engine: Engine, keys: KeyStore
) -> None:
    with engine.begin() as connection:
        ensure_own_keys(connection, VAULT)
        published = find_own_public_keys(connection)["keys"]
        stored = connection.execute(text("SELECT private_encrypted FROM holdfast_keys")).scalars().all()
        private = [key.private_jwk["d"] for use in KeyUse for key in find_own_keys(connection, VAULT, use)]
    by_use = {key["use"]: key for key in published}
    assert signs_first_with(keys, by_use["sig"])
    assert keys.opener().open(seal({"a": 1}, by_use["enc"])) == b'{"a": 1}'
    assert all("d" not in key for key in published)
    assert not any(d.encode() in bytes(envelope) for d in private for envelope in stored)


def test_a_rotated_key_signs_from_now_on_and_the_old_one_opens_until_it_expires(
    engine: Engine, keys: KeyStore, clock: SteppedClock
) -> None:
    with engine.begin() as connection:
        ensure_own_keys(connection, VAULT)
        old = find_own_keys(connection, VAULT, KeyUse.SEAL)[0]
        token = seal({"a": 1}, old.public_jwk)
    keys.signer(), keys.opener()
    new = {use: generate_own_key(use) for use in KeyUse}
    with engine.begin() as connection:
        for pair in new.values():
            add_own_key(connection, VAULT, pair)
    clock.seconds += 1
    assert signs_first_with(keys, new[KeyUse.SIGN].public_jwk)
    assert keys.opener().open(token) == b'{"a": 1}'
    assert keys.opener().open(seal({"b": 2}, new[KeyUse.SEAL].public_jwk)) == b'{"b": 2}'


def test_with_another_encryption_key_nothing_is_read(engine: Engine) -> None:
    with engine.begin() as connection:
        ensure_own_keys(connection, VAULT)
    stranger = Vault(base64.b64encode(bytes(32)).decode())
    with pytest.raises(DecryptionFailed):
        KeyStore(engine, stranger, cache_seconds=1.0).signer()
