"""Withdrawal passwords: one form, argon2id, bounded cost, and no word about what was typed."""

import base64
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
from argon2 import PasswordHasher, Type

from infra.security.passwords import (
    PasswordCheck,
    PasswordRefused,
    Passwords,
    PasswordsBusy,
    StoredHashUnusable,
    normalise,
)
from infra.security.peppers import BadPeppers, Peppers, parse_peppers

PASSWORD = "correct horse"
RIGHT = PasswordCheck(ok=True, needs_rehash=False)
WRONG = PasswordCheck(ok=False, needs_rehash=False)
OLD_PEPPER, NEW_PEPPER = b"o" * 32, b"n" * 32


def cheap(**others: Any) -> Passwords:
    return Passwords(**{"memory_kib": 64, "iterations": 1, "parallelism": 1, **others})


def test_the_right_password_is_right_and_any_other_wrong() -> None:
    passwords = cheap()
    stored = passwords.hash(PASSWORD)
    assert stored.startswith("$argon2id$v=19$m=64,t=1,p=1$")
    assert passwords.verify(stored, PASSWORD) == RIGHT
    for other in ("correct hors", "correct horse ", "Correct horse", "wrong password"):
        assert passwords.verify(stored, other) == WRONG


def test_the_same_password_is_never_stored_the_same() -> None:
    passwords = cheap()
    assert passwords.hash(PASSWORD) != passwords.hash(PASSWORD)


def test_a_password_is_compared_after_nfc() -> None:
    passwords = cheap()
    composed, decomposed = "Ångström-é", unicodedata.normalize("NFD", "Ångström-é")
    assert composed != decomposed
    assert passwords.verify(passwords.hash(decomposed), composed) == RIGHT
    assert passwords.verify(passwords.hash(composed), decomposed) == RIGHT


@pytest.mark.parametrize("password", ["密码密码密码密码", "👩‍🚀" * 3, "x" * 8, "x" * 128, "pass\x00word"])
def test_any_unicode_text_of_8_to_128_code_points_is_a_password(password: str) -> None:
    passwords = cheap()
    assert passwords.verify(passwords.hash(password), password) == RIGHT


def test_a_zero_byte_does_not_end_a_password() -> None:
    passwords = cheap()
    assert passwords.verify(passwords.hash("password\x00one"), "password\x00two") == WRONG


@pytest.mark.parametrize(
    "password", ["", "SECRET7", "é" * 129, "x" * 10_000_000, "SECRET\ud800SECRET"], ids=lambda p: ascii(p[:9])
)
def test_any_other_text_is_refused_and_never_repeated(password: str) -> None:
    passwords = cheap()
    with pytest.raises(PasswordRefused) as caught:
        passwords.hash(password)
    assert "SECRET" not in str(caught.value)
    assert passwords.verify(passwords.hash(PASSWORD), password) == WRONG


def test_code_points_are_counted_after_nfc() -> None:
    decomposed = unicodedata.normalize("NFD", "é" * 128)
    assert len(decomposed) == 256
    assert len(normalise(decomposed)) == 128
    with pytest.raises(PasswordRefused):
        normalise(unicodedata.normalize("NFD", "é" * 7))


def test_an_unknown_seller_costs_one_check_like_a_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: the same argon2 work at the same cost is what makes the time the same."""
    passwords = cheap()
    stored = passwords.hash(PASSWORD)
    costs = []
    real = PasswordHasher.verify

    def counting(self: PasswordHasher, hash_: str, secret: str | bytes) -> bool:
        costs.append(hash_.rsplit("$", 2)[0])
        return real(self, hash_, secret)

    monkeypatch.setattr(PasswordHasher, "verify", counting)
    assert passwords.verify(stored, "wrong password") == WRONG
    assert passwords.verify(None, "wrong password") == WRONG
    assert passwords.verify(stored, "short") == WRONG
    assert costs == [stored.rsplit("$", 2)[0]] * 3


def test_nobody_has_a_password_that_is_right() -> None:
    passwords = cheap()
    assert passwords.verify(None, "nobody has this password") == WRONG
    assert passwords.verify(None, "not a possible password") == WRONG
    assert passwords.verify(passwords.hash("not a possible password"), "short") == WRONG


def test_a_raised_cost_asks_for_a_new_hash_only_when_the_password_was_right() -> None:
    stored = cheap().hash(PASSWORD)
    raised = cheap(iterations=2)
    assert raised.verify(stored, PASSWORD) == PasswordCheck(ok=True, needs_rehash=True)
    assert raised.verify(stored, "wrong password") == WRONG
    assert raised.verify(raised.hash(PASSWORD), PASSWORD) == RIGHT


def test_with_a_pepper_the_stolen_database_alone_confirms_no_guess() -> None:
    peppered = cheap(peppers=Peppers("1", {"1": OLD_PEPPER}))
    stored = peppered.hash(PASSWORD)
    assert peppered.verify(stored, PASSWORD) == RIGHT
    assert peppered.verify(stored, "wrong password") == WRONG
    other = cheap(peppers=Peppers("1", {"1": NEW_PEPPER}))
    assert other.verify(stored, PASSWORD) == WRONG
    argon2_part = stored[stored.index("$argon2id$") :]
    assert cheap().verify(argon2_part, PASSWORD) == WRONG


def test_a_new_pepper_is_taken_on_at_the_next_right_password() -> None:
    unpeppered, old = cheap(), cheap(peppers=Peppers("1", {"1": OLD_PEPPER}))
    both = cheap(peppers=Peppers("2", {"1": OLD_PEPPER, "2": NEW_PEPPER}))
    for stored in (unpeppered.hash(PASSWORD), old.hash(PASSWORD)):
        assert both.verify(stored, PASSWORD) == PasswordCheck(ok=True, needs_rehash=True)
    assert both.verify(both.hash(PASSWORD), PASSWORD) == RIGHT


def test_a_hash_whose_pepper_is_gone_is_our_fault_and_no_wrong_password() -> None:
    stored = cheap(peppers=Peppers("1", {"1": OLD_PEPPER})).hash(PASSWORD)
    for passwords in (cheap(), cheap(peppers=Peppers("2", {"2": NEW_PEPPER}))):
        with pytest.raises(StoredHashUnusable):
            passwords.verify(stored, PASSWORD)


@pytest.mark.parametrize(
    ("current", "secrets"),
    [("2", {"1": OLD_PEPPER}), ("1", {"1": b"short"}), ("a$b", {"a$b": OLD_PEPPER}), ("", {"": OLD_PEPPER})],
)
def test_peppers_that_could_not_work_stop_the_start(current: str, secrets: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="pepper") as caught:
        Peppers(current, secrets)
    assert "oooo" not in str(caught.value)
    assert "oooo" not in repr(Peppers("1", {"1": OLD_PEPPER}))


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "nonsense",
        "$argon2id$",
        "$argon2id$v=19$m=64,t=1,p=1$AAAA",
        "$argon2id$v=19$m=64,t=1,p=1$!!!!$!!!!",
        "$argon2id$v=19$m=99999999,t=1,p=1$c29tZXNhbHQ$" + "A" * 43,
        "$argon2id$v=19$m=64,t=9999999,p=1$c29tZXNhbHQ$" + "A" * 43,
        PasswordHasher(time_cost=1, memory_cost=64, parallelism=1, type=Type.I).hash(PASSWORD),
        "$hp$1",
        "$hp$1$argon2id$",
        "plain text",
    ],
    ids=count(),  # one of them is new in every run
)
def test_a_stored_hash_that_is_none_of_ours_is_no_wrong_password(stored: str) -> None:
    """Nor may a row that somebody tampered with make one check eat the machine."""
    with pytest.raises(StoredHashUnusable):
        cheap().verify(stored, PASSWORD)


def test_only_so_many_checks_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = cheap(concurrency=2)
    stored = passwords.hash(PASSWORD)
    inside, most, guard = 0, 0, threading.Lock()
    two_inside = threading.Barrier(2, timeout=20)

    def slow(self: PasswordHasher, hash_: str, secret: str | bytes) -> bool:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        two_inside.wait()  # passes only if two really run beside each other
        with guard:
            inside -= 1
        return True

    monkeypatch.setattr(PasswordHasher, "verify", slow)
    with ThreadPoolExecutor(8) as pool:
        assert all(check.ok for check in pool.map(lambda _: passwords.verify(stored, PASSWORD), range(8)))
    assert most == 2


def test_a_check_that_gets_no_turn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = cheap(concurrency=1, wait_seconds=0.01)
    stored = passwords.hash(PASSWORD)
    started, let_go = threading.Event(), threading.Event()

    def stuck(self: PasswordHasher, hash_: str, secret: str | bytes) -> bool:
        started.set()
        return let_go.wait(20)

    monkeypatch.setattr(PasswordHasher, "verify", stuck)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(passwords.verify, stored, PASSWORD)
        assert started.wait(20)
        with pytest.raises(PasswordsBusy):
            passwords.verify(stored, PASSWORD)
        let_go.set()
        assert first.result(20) == RIGHT
    monkeypatch.undo()
    assert passwords.verify(stored, PASSWORD) == RIGHT


def test_the_highest_version_is_the_current_pepper_in_whatever_order_they_stand() -> None:
    old, new = base64.b64encode(OLD_PEPPER).decode(), base64.b64encode(NEW_PEPPER).decode()
    for text in (f"9:{old},10:{new}", f"10:{new}, 9:{old}"):
        assert parse_peppers(text) == Peppers("10", {"9": OLD_PEPPER, "10": NEW_PEPPER})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b29vbw==",
        "1:",
        "1:rubbish!",
        "0:{old}",
        "v1:{old}",
        "-1:{old}",
        "1:{old},1:{old}",
        "1:{old},",
        "1:b29v",
    ],
)
def test_peppers_in_another_form_are_refused_and_never_repeated(text: str) -> None:
    old = base64.b64encode(OLD_PEPPER).decode()
    with pytest.raises(BadPeppers) as caught:
        parse_peppers(text.format(old=old))
    assert old not in str(caught.value)
    assert "rubbish" not in str(caught.value)
