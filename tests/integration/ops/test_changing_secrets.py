"""Keys change while everything runs: old ones are good until they expire, and nothing becomes unreadable."""

import base64
import secrets
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from command_runs import Holdfast, a_public_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from workflow_support.desk import ENCRYPTION_KEY, Desk
from workflow_support.events import SellersPlatform, fresh

from infra.postgres.key_store import KeyStore, find_own_public_keys
from infra.security.encryption import Vault
from infra.security.signatures import SIGNATURE_HEADER


def _new_workers(desk: Desk) -> None:
    """Have the desk read its keys afresh, as a worker does within a second."""
    desk.keys = KeyStore(desk.engine, desk.vault, cache_seconds=0.001)
    desk.password_tools = replace(desk.password_tools, vault=desk.vault, opener=desk.keys.opener)
    desk.transfer_tools = replace(desk.transfer_tools, vault=desk.vault)


def _public(desk: Desk, use: str) -> list[dict[str, str]]:
    with desk.engine.connect() as connection:
        return [key for key in find_own_public_keys(connection)["keys"] if key["use"] == use]


def test_what_is_sealed_to_an_old_key_is_opened_until_that_expires(set_up: Holdfast, desk: Desk) -> None:
    before = desk.platform(desk.a_shop())
    seller = desk.a_seller(before, available=10_000)
    rotated = set_up("keys", "rotate", "--use", "enc", "--reason", "yearly", "--by", "ada", "--json")
    assert rotated.exit_code == 0, rotated.err
    old, new = rotated.json["enc"]["old"][0], rotated.json["enc"]["kid"]
    assert [key["kid"] for key in _public(desk, "enc")] == [new, old], "the newest is offered first"
    _new_workers(desk)
    after = SellersPlatform(before.shop, _public(desk, "enc")[0])
    for platform in (before, after):
        assert desk.seller_withdraws(platform.withdraws(seller, 10))[0].type == "withdrawal.accepted"
    desk.execute("UPDATE holdfast_keys SET not_after = clock_timestamp() WHERE kid = :old", old=old)
    _new_workers(desk)
    told = desk.seller_withdraws(before.withdraws(seller, 10))
    assert (told[0].type, told[0].data["reason"]) == ("withdrawal.rejected", "invalid_data")
    assert desk.seller_withdraws(after.withdraws(seller, 10))[0].type == "withdrawal.accepted"
    [action] = desk.execute("SELECT operator, reason FROM operator_actions WHERE action = 'own_key_rotated'")
    assert (action.operator, action.reason) == ("ada", "yearly")


def test_a_request_that_waited_while_its_key_ended_is_refused_and_is_no_wrong_password(
    set_up: Holdfast, desk: Desk
) -> None:
    platform = desk.platform(desk.a_shop())
    seller = desk.a_seller(platform, available=10_000)
    desk.execute("UPDATE sellers SET failed_attempts = 4 WHERE seller_id = :s", s=seller)
    desk.book_withdrawals(platform.withdraws(seller, 10))
    assert set_up("keys", "rotate", "--use", "enc", "--overlap-hours", "0", "--why", "stolen").exit_code == 0
    _new_workers(desk)
    desk.run()
    assert desk.told[-1].data["reason"] == "invalid_data"
    [row] = desk.execute(
        "SELECT failed_attempts, locked_until, locked_by_failures FROM sellers WHERE seller_id = :s", s=seller
    )
    assert tuple(row) == (4, None, False)


def test_keys_are_listed_with_the_time_at_which_they_end(set_up: Holdfast, desk: Desk) -> None:
    assert set_up("keys", "rotate", "--why", "yearly").exit_code == 0
    listed = set_up("keys", "list", "--json").json
    for use in ("enc", "sig"):
        current, *older = [key for key in listed if key["use"] == use]
        assert (current["good"], current["not_after"]) == (True, None)
        assert older
        assert all(key["not_after"] for key in older)
    assert "private" not in str(listed)
    assert set_up("keys", "list").exit_code == 0


def test_a_key_that_was_stolen_ends_at_once(set_up: Holdfast, desk: Desk) -> None:
    stolen = {key["kid"] for use in ("enc", "sig") for key in _public(desk, use)}
    assert set_up("keys", "rotate", "--overlap-hours", "0", "--why", "stolen").exit_code == 0
    left = [key["kid"] for use in ("enc", "sig") for key in _public(desk, use)]
    assert len(left) == 2
    assert not stolen & set(left)


def test_while_signing_keys_overlap_events_carry_a_signature_by_each(set_up: Holdfast, desk: Desk) -> None:
    assert set_up("keys", "rotate", "--use", "sig", "--why", "yearly").exit_code == 0
    _new_workers(desk)
    headers = desk.keys.signer().headers("e-1", b"{}", datetime.now(UTC))
    signatures = headers[SIGNATURE_HEADER].split(" ")
    content = f"e-1.{headers['webhook-timestamp']}.{{}}".encode()
    keys = _public(desk, "sig")
    assert len(keys) == len(signatures) == 2
    for key, signature in zip(keys, signatures, strict=True):
        raw = base64.urlsafe_b64decode(key["x"] + "=")
        Ed25519PublicKey.from_public_bytes(raw).verify(
            base64.b64decode(signature.removeprefix("v1a,")), content
        )


def test_everything_moves_to_a_new_encryption_key_while_the_old_one_still_reads(
    set_up: Holdfast, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = desk.platform(desk.a_shop())
    seller = desk.a_seller(platform, available=10_000)
    hmac = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    shop = platform.shop
    added = set_up("shop", "key", "add", shop, "--scope", "orders", "--hmac-file", "-", stdin=hmac)
    assert added.exit_code == 0, added.err
    assert (
        set_up("shop", "key", "add", shop, "--scope", "sellers", "--ed25519", a_public_key()).exit_code == 0
    )
    new_key = base64.b64encode(secrets.token_bytes(32)).decode()
    monkeypatch.setenv("HOLDFAST_ENCRYPTION_KEY", new_key)
    without = set_up("keys", "reencrypt", "--why", "left a backup in a taxi")
    assert without.exit_code == 1
    assert "HOLDFAST_OLD_ENCRYPTION_KEYS" in without.err
    monkeypatch.setenv("HOLDFAST_OLD_ENCRYPTION_KEYS", ENCRYPTION_KEY)
    first = set_up("keys", "reencrypt", "--why", "left a backup in a taxi", "--json")
    assert first.exit_code == 0, first.err
    assert all(count >= 1 for count in first.json["moved"].values())
    again = set_up("keys", "reencrypt", "--why", "left a backup in a taxi", "--json")
    assert set(again.json["moved"].values()) == {0}
    # The old key is taken away: everything opens with the new one alone, and only with that.
    monkeypatch.delenv("HOLDFAST_OLD_ENCRYPTION_KEYS")
    desk.vault = Vault(new_key)
    _new_workers(desk)
    sender = desk.keys.sender("shop", shop)
    assert sender is not None
    assert {key.scheme for key in sender.keys} == {"v1", "v1a"}
    desk.keys.signer()
    told = desk.seller_withdraws(platform.withdraws(seller, 4_000, withdrawal_id=fresh("w")))
    assert [event.type for event in told][:2] == ["withdrawal.accepted", "payout.submitted"]
    # Back, for whatever test comes next in this database.
    monkeypatch.setenv("HOLDFAST_ENCRYPTION_KEY", ENCRYPTION_KEY)
    monkeypatch.setenv("HOLDFAST_OLD_ENCRYPTION_KEYS", new_key)
    assert set_up("keys", "reencrypt", "--why", "the test is over").exit_code == 0
