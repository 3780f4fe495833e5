"""Enrolment and change of password: who knows the password may, nobody else."""

import json

from workflow_support.desk import Desk, Told
from workflow_support.events import DESTINATION, PASSWORD, WRONG_PASSWORD, fresh
from workflow_support.races import side_by_side

OTHER_DESTINATION = {
    "type": "bank_account",
    "country": "CN",
    "bank_code": "102100099996",
    "account_number": "6222020200112345678",
    "holder_name": "Ada Seller",
}


def answers(told: list[Told]) -> list[tuple[str, str | None]]:
    return [(event.type, event.data.get("reason")) for event in told]


def destinations_of(desk: Desk, shop: str, seller: str) -> set[str]:
    return {
        row.destination_id
        for row in desk.execute(
            "SELECT destination_id FROM destinations WHERE (shop_id, seller_id) = (:shop, :seller)",
            shop=shop,
            seller=seller,
        )
    }


def may_withdraw(desk: Desk, shop: str, seller: str, password: str, destination_id: str = "d-1") -> bool:
    """Ask for money that is not there: a right password gets as far as `insufficient_funds`."""
    event = desk.platform(shop).withdraws(seller, 1, password=password, destination_id=destination_id)
    return answers(desk.seller_withdraws(event)) == [("withdrawal.rejected", "insufficient_funds")]


def test_a_new_seller_is_accepted_and_can_withdraw(desk: Desk) -> None:
    shop = desk.a_shop()
    event = desk.platform(shop).enrols("s-1")
    [told] = desk.seller_asks(event)
    assert (told.type, told.data) == (
        "seller.accepted",
        {"seller_id": "s-1", "event_id": event.envelope.id},
    )
    assert may_withdraw(desk, shop, "s-1", PASSWORD)


def test_neither_password_nor_account_rests_readable(desk: Desk) -> None:
    """Nor does what was sealed, once it has been used."""
    shop = desk.a_shop()
    desk.seller_asks(desk.platform(shop).enrols("s-1"))
    rows = desk.execute(
        """
        SELECT s.password_hash, encode(d.details_encrypted, 'escape') AS details, d.masked, a.sealed
        FROM sellers AS s JOIN destinations AS d USING (shop_id, seller_id)
        JOIN password_attempts AS a USING (shop_id, seller_id) WHERE s.shop_id = :shop
        """,
        shop=shop,
    )
    stored = json.dumps([list(row) for row in rows])
    assert "argon2id" in stored
    assert PASSWORD not in stored
    assert DESTINATION["iban"] not in stored
    assert rows[0].sealed is None


def test_the_same_seller_id_of_two_shops_is_two_sellers(desk: Desk) -> None:
    one, two = desk.a_shop(), desk.a_shop()
    desk.seller_asks(desk.platform(one).enrols("s-1", password="password of one"))
    desk.seller_asks(desk.platform(two).enrols("s-1", password="password of two"))
    assert may_withdraw(desk, one, "s-1", "password of one")
    assert not may_withdraw(desk, two, "s-1", "password of one")


def test_a_known_seller_adds_a_destination_with_the_right_password(desk: Desk) -> None:
    shop = desk.a_shop()
    platform = desk.platform(shop)
    desk.seller_asks(platform.enrols("s-1"))
    event = platform.enrols("s-1", destination_id="d-2", destination=OTHER_DESTINATION)
    assert answers(desk.seller_asks(event)) == [("seller.accepted", None)]
    assert destinations_of(desk, shop, "s-1") == {"d-1", "d-2"}
    assert may_withdraw(desk, shop, "s-1", PASSWORD, "d-2")


def test_a_known_seller_adds_nothing_with_a_wrong_password(desk: Desk) -> None:
    """Otherwise whoever can send for the platform could redirect a seller's money."""
    shop = desk.a_shop()
    platform = desk.platform(shop)
    desk.seller_asks(platform.enrols("s-1"))
    event = platform.enrols("s-1", destination_id="d-2", password=WRONG_PASSWORD)
    assert answers(desk.seller_asks(event)) == [("seller.rejected", "wrong_password")]
    assert destinations_of(desk, shop, "s-1") == {"d-1"}
    assert may_withdraw(desk, shop, "s-1", PASSWORD)
    assert not may_withdraw(desk, shop, "s-1", WRONG_PASSWORD)


def test_a_destination_never_changes_under_its_id(desk: Desk) -> None:
    shop = desk.a_shop()
    platform = desk.platform(shop)
    desk.seller_asks(platform.enrols("s-1"))
    assert answers(desk.seller_asks(platform.enrols("s-1"))) == [("seller.accepted", None)]
    event = platform.enrols("s-1", destination=OTHER_DESTINATION)
    assert answers(desk.seller_asks(event)) == [("seller.rejected", "conflicting_duplicate")]


def test_the_same_enrolment_again_gets_the_first_answer_and_counts_no_attempt(desk: Desk) -> None:
    shop = desk.a_shop()
    event = desk.platform(shop).enrols("s-1")
    first = desk.seller_asks(event)
    assert desk.seller_asks(event) == first
    assert desk.value("SELECT count(*) FROM password_attempts WHERE shop_id = :shop", shop=shop) == 1


def test_other_content_under_a_known_event_id_is_refused(desk: Desk) -> None:
    shop = desk.a_shop()
    platform = desk.platform(shop)
    event_id = fresh("e")
    desk.seller_asks(platform.enrols("s-1", event_id=event_id))
    told = desk.seller_asks(platform.enrols("s-2", event_id=event_id))
    assert answers(told) == [("seller.rejected", "conflicting_duplicate")]
    assert not may_withdraw(desk, shop, "s-2", PASSWORD)


def test_two_first_enrolments_at_once_leave_one_password(desk: Desk) -> None:
    shop = desk.a_shop()
    platform = desk.platform(shop)
    # Three, since two wrong ones here and two below are not yet the five that lock.
    passwords = [f"password number {n}" for n in range(3)]
    events = [platform.enrols("s-1", password=password) for password in passwords]
    side_by_side(*[lambda event=event: desk.seller_asks(event) for event in events])
    while desk.delayed:
        desk.ring_alarms("check_password")
    refused = [("seller.rejected", "wrong_password")] * 2
    assert sorted(answers(desk.told)) == [("seller.accepted", None), *refused]
    assert sum(may_withdraw(desk, shop, "s-1", password) for password in passwords) == 1


def test_a_suspended_shop_enrols_nobody(desk: Desk) -> None:
    shop = desk.a_shop(state="suspended")
    told = desk.seller_asks(desk.platform(shop).enrols("s-1"))
    assert answers(told) == [("seller.rejected", "shop_suspended")]


def test_what_is_sealed_for_another_event_seller_or_shop_is_refused(desk: Desk) -> None:
    """A token that somebody overheard is good for nothing else."""
    shop = desk.a_shop()
    platform = desk.platform(shop)
    for other in ("event_id", "seller_id", "shop_id", "destination_id"):
        [told] = desk.seller_asks(platform.enrols("s-1", sealed={other: "another"}))
        assert (told.type, told.data["reason"]) == ("seller.rejected", "invalid_data")
        assert f"sealed.{other}" in told.data["detail"]


def test_what_does_not_open_is_refused_and_never_repeated(desk: Desk) -> None:
    shop = desk.a_shop()
    [told] = desk.seller_asks(desk.platform(shop).enrols("s-1", sealed="no.such.token.at.all"))
    assert (told.type, told.data["reason"]) == ("seller.rejected", "invalid_data")
    assert "no.such.token" not in json.dumps(told.data)


def test_a_password_too_short_is_refused_without_being_told(desk: Desk) -> None:
    shop = desk.a_shop()
    [told] = desk.seller_asks(desk.platform(shop).enrols("s-1", password="7 chars"))
    assert (told.data["reason"], "7 chars" in json.dumps(told.data)) == ("invalid_data", False)


def test_the_old_password_buys_a_new_one(desk: Desk) -> None:
    shop = desk.a_shop()
    platform = desk.platform(shop)
    desk.seller_asks(platform.enrols("s-1"))
    event = platform.changes_password("s-1", old=PASSWORD, new="an entirely new one")
    assert answers(desk.seller_asks(event)) == [("seller.accepted", None)]
    assert may_withdraw(desk, shop, "s-1", "an entirely new one")
    assert not may_withdraw(desk, shop, "s-1", PASSWORD)


def test_a_wrong_old_password_changes_nothing_and_counts(desk: Desk) -> None:
    shop = desk.a_shop()
    platform = desk.platform(shop)
    desk.seller_asks(platform.enrols("s-1"))
    event = platform.changes_password("s-1", old=WRONG_PASSWORD, new="an entirely new one")
    assert answers(desk.seller_asks(event)) == [("seller.rejected", "wrong_password")]
    assert desk.value("SELECT failed_attempts FROM sellers WHERE shop_id = :shop", shop=shop) == 1
    assert may_withdraw(desk, shop, "s-1", PASSWORD)


def test_nobody_changes_the_password_of_a_seller_who_never_enrolled(desk: Desk) -> None:
    shop = desk.a_shop()
    event = desk.platform(shop).changes_password("s-1", old=PASSWORD, new="an entirely new one")
    assert answers(desk.seller_asks(event)) == [("seller.rejected", "unknown_seller")]


def test_passwords_are_compared_after_nfc(desk: Desk) -> None:
    shop = desk.a_shop()
    composed, decomposed = "caf\u00e9 au lait", "cafe\u0301 au lait"
    desk.seller_asks(desk.platform(shop).enrols("s-1", password=decomposed))
    assert may_withdraw(desk, shop, "s-1", composed)
