"""A forgotten password: two operators and the platform's own event, then a new one that cools off."""

from collections.abc import Callable

import pytest
from command_runs import Holdfast, Ran
from workflow_support.desk import DAY_SECONDS, Desk, Told, command_of
from workflow_support.events import PASSWORD, WRONG_PASSWORD, SellersPlatform, fresh
from workflow_support.races import side_by_side

from ops.commands.password_resets import _agree, _Word
from ops.failures import CommandFailed
from ops.store.sellers import lock_seller
from workers.payout.handlers import passwords

NEW_PASSWORD = "an entirely new one"
OTHER_IBAN = {"type": "iban", "iban": "GB82WEST12345698765432", "holder_name": "Ada Seller"}


@pytest.fixture
def seller(desk: Desk, platform: SellersPlatform) -> str:
    return desk.a_seller(platform, available=1_000)


Reset = Callable[..., Ran]


@pytest.fixture
def reset(set_up: Holdfast, platform: SellersPlatform, seller: str) -> Reset:
    """Return a function by which one operator speaks about this seller."""

    def speak(by: str, *more: str) -> Ran:
        return set_up(
            "seller", "reset-password", platform.shop, seller, "--why", f"{by} called", "--by", by, *more
        )

    return speak


@pytest.fixture
def asked(desk: Desk, platform: SellersPlatform, seller: str) -> str:
    """The platform's event by which it has asked, as its guide says."""
    event = platform.enrols(seller, password=NEW_PASSWORD)
    assert said(desk.seller_asks(event)) == ("seller.rejected", "wrong_password")
    return event.envelope.id


@pytest.fixture
def opened(reset: Reset, asked: str) -> str:
    for name in ("ada", "grace"):
        assert reset(name, "--event", asked).exit_code == 0
    return asked


def said(told: list[Told]) -> tuple[str, str | None]:
    return told[0].type, told[0].data.get("reason")


def tries(desk: Desk, platform: SellersPlatform, seller: str, password: str) -> tuple[str, str | None]:
    return said(desk.seller_withdraws(platform.withdraws(seller, 1, password=password)))


REFUSED = ("withdrawal.rejected", "wrong_password")
GOES = ("withdrawal.accepted", None)


def test_two_names_let_the_platform_enrol_a_new_password_which_cools_off(
    desk: Desk, platform: SellersPlatform, seller: str, asked: str, reset: Reset
) -> None:
    desk.execute(
        "UPDATE sellers SET failed_attempts = 15, locked_by_failures = true WHERE seller_id = :s", s=seller
    )
    first = reset("ada", "--event", asked)
    assert (first.exit_code, "second name" in first.out) == (0, True)
    assert said(desk.seller_asks(platform.enrols(seller, password=NEW_PASSWORD)))[1] == "locked"
    second = reset("grace", "--event", asked)
    assert (second.exit_code, second.err) == (0, "")
    assert tries(desk, platform, seller, PASSWORD) == REFUSED, "the old password is good for nothing"
    told = desk.seller_asks(platform.enrols(seller, password=NEW_PASSWORD))
    assert said(told) == ("seller.accepted", None)
    assert tries(desk, platform, seller, PASSWORD) == REFUSED
    [waits] = desk.seller_withdraws(platform.withdraws(seller, 1, password=NEW_PASSWORD))
    assert (waits.type, waits.data["reason"]) == ("withdrawal.pending", "cooling_off")
    assert (
        desk.value(
            "SELECT extract(epoch FROM pending_until - password_changed_at) FROM withdrawals"
            " JOIN sellers USING (shop_id, seller_id) WHERE seller_id = :s AND state = 'pending'",
            s=seller,
        )
        == DAY_SECONDS
    )
    actions = desk.execute(
        "SELECT operator, action, reason FROM operator_actions WHERE subject = :s ORDER BY action_id",
        s=f"{platform.shop}/{seller}",
    )
    assert [tuple(row) for row in actions] == [
        ("ada", "password_reset_proposed", "ada called"),
        ("grace", "password_reset_opened", "grace called"),
    ]


def test_one_name_changes_nothing_however_often_it_is_given(
    desk: Desk, platform: SellersPlatform, *, seller: str, asked: str, set_up: Holdfast, reset: Reset
) -> None:
    for name in ("ada", "ada", " Ada "):
        assert reset(name, "--event", asked).exit_code == 0
    shown = set_up("seller", "show", platform.shop, seller, "--json").json
    assert shown["password_reset_until"] is None
    assert [one["proposed_by"] for one in shown["password_resets_proposed"]] == ["ada"]
    assert said(desk.seller_asks(platform.enrols(seller, password=NEW_PASSWORD)))[1] == "wrong_password"
    assert tries(desk, platform, seller, PASSWORD) == GOES


def test_without_an_event_of_the_sellers_own_platform_nobody_can_reset(
    desk: Desk, platform: SellersPlatform, seller: str, reset: Reset
) -> None:
    other_shop = desk.platform(desk.a_shop())
    desk.seller_asks(other_shop.enrols(seller))
    of_another_shop = other_shop.enrols(seller, password=NEW_PASSWORD)
    another_seller = desk.a_seller(platform)
    of_another_seller = platform.enrols(another_seller, password=NEW_PASSWORD)
    accepted = platform.enrols(seller)
    withdrawal = platform.withdraws(seller, 1, password=WRONG_PASSWORD)
    desk.seller_asks(of_another_seller, accepted)
    desk.seller_withdraws(withdrawal)
    other_shop_answer = desk.seller_asks(of_another_shop)
    assert said(other_shop_answer)[1] == "wrong_password"
    for event in (of_another_shop, of_another_seller, accepted, withdrawal):
        ran = reset("ada", "--event", event.envelope.id)
        assert (ran.exit_code, ran.err.count("\n")) == (1, 1)
    assert reset("ada", "--event", "e-unknown").exit_code == 1
    assert reset("ada").exit_code == 2
    assert desk.value("SELECT count(*) FROM password_resets WHERE seller_id = :s", s=seller) == 0


def test_what_was_asked_long_ago_or_before_the_last_change_has_to_be_asked_again(
    desk: Desk, platform: SellersPlatform, seller: str, asked: str, reset: Reset
) -> None:
    assert reset("ada", "--event", asked).exit_code == 0
    ago = "- interval '8 days'"
    desk.execute(f"UPDATE inbox SET received_at = received_at {ago} WHERE event_id = :e", e=asked)
    desk.execute(
        f"UPDATE sellers SET enrolled_at = enrolled_at {ago}, password_changed_at = enrolled_at {ago}"
        " WHERE seller_id = :s",
        s=seller,
    )
    assert "more than 7 days old" in reset("grace", "--event", asked).err
    again = platform.enrols(seller, password=NEW_PASSWORD)
    desk.seller_asks(again)
    desk.seller_asks(platform.changes_password(seller, old=PASSWORD, new="remembered it after all"))
    assert "changed since" in reset("ada", "--event", again.envelope.id).err


def test_an_event_asks_for_one_reset_only(
    desk: Desk, platform: SellersPlatform, seller: str, opened: str, reset: Reset
) -> None:
    assert said(desk.seller_asks(platform.enrols(seller, password=NEW_PASSWORD)))[0] == "seller.accepted"
    ran = reset("ada", "--event", opened)
    assert (ran.exit_code, "decided already" in ran.err) == (1, True)


def test_a_new_password_ends_the_reset(
    desk: Desk, platform: SellersPlatform, seller: str, opened: str, reset: Reset
) -> None:
    """Whoever comes second has to know the password that the first one set."""
    events = [platform.enrols(seller, password=f"{NEW_PASSWORD} {number}") for number in range(2)]
    side_by_side(*[lambda event=event: desk.seller_asks(event) for event in events])
    while desk.delayed:
        desk.ring_alarms("check_password")
    answers = [said([told]) for told in desk.told if told.data.get("event_id") != opened]
    assert sorted(one for one in answers if one[0].startswith("seller.")) == [
        ("seller.accepted", None),
        ("seller.rejected", "wrong_password"),
    ]
    assert "nothing is open" in reset("ada", "--cancel").out


def test_what_was_set_aside_with_the_old_password_goes_on_and_what_was_not_is_refused(
    set_up: Holdfast, desk: Desk, platform: SellersPlatform, *, seller: str, asked: str, reset: Reset
) -> None:
    set_up("seller", "limits", platform.shop, seller, "--currency", "CNY", "--per-withdrawal", "100")
    waiting, booked = fresh("w"), fresh("w")
    desk.seller_withdraws(platform.withdraws(seller, 500, withdrawal_id=waiting))
    desk.book_withdrawals(platform.withdraws(seller, 1, withdrawal_id=booked))
    reset("ada", "--event", asked)
    assert "1 of its withdrawals wait on" in reset("grace", "--event", asked).out
    desk.run()
    states = {
        row.withdrawal_id: (row.state, row.reason)
        for row in desk.execute(
            "SELECT withdrawal_id, state, reason FROM withdrawals WHERE seller_id = :s", s=seller
        )
    }
    assert states == {waiting: ("pending", None), booked: ("rejected", "wrong_password")}
    for name in ("ada", "grace"):
        set_up("withdrawal", "approve", platform.shop, waiting, "--why", "known", "--by", name)
    assert desk.value("SELECT state FROM withdrawals WHERE withdrawal_id = :w", w=waiting) == "accepted", (
        "its password was right when it was asked for"
    )


def test_a_password_that_is_being_checked_while_the_reset_is_opened_is_wrong(
    desk: Desk, platform: SellersPlatform, seller: str, asked: str, reset: Reset
) -> None:
    """The check runs outside any transaction, and what it was held against may be gone when it ends."""
    reset("ada", "--event", asked)
    desk.book_withdrawals(platform.withdraws(seller, 1))
    turns, _ = passwords._count(desk.steps, command_of(desk.commands[0]).attempt_ids)  # type: ignore[attr-defined]
    checked = [one for turn in turns if (one := passwords._check(turn, desk.password_tools))]
    assert [one.ok for one in checked] == [True]
    assert reset("grace", "--event", asked).exit_code == 0
    passwords._decide(desk.steps, checked, desk.password_tools)
    assert said(desk.told[-1:]) == REFUSED
    assert desk.value("SELECT failed_attempts FROM sellers WHERE seller_id = :s", s=seller) == 0


def test_an_enrolment_that_is_being_checked_when_the_reset_is_cancelled_sets_no_password(
    desk: Desk, platform: SellersPlatform, seller: str, opened: str, reset: Reset
) -> None:
    desk.book_seller_requests(platform.enrols(seller, password=NEW_PASSWORD))
    turns, _ = passwords._count(desk.steps, command_of(desk.commands[0]).attempt_ids)  # type: ignore[attr-defined]
    checked = [one for turn in turns if (one := passwords._check(turn, desk.password_tools))]
    assert "good as before" in reset("ada", "--cancel").out
    passwords._decide(desk.steps, checked, desk.password_tools)
    assert said(desk.told[-1:]) == ("seller.rejected", "wrong_password")
    assert tries(desk, platform, seller, PASSWORD) == GOES


def test_a_reset_that_nobody_used_ends_by_itself(
    desk: Desk, platform: SellersPlatform, seller: str, opened: str
) -> None:
    over = "clock_timestamp() - interval '1 second'"
    desk.execute(f"UPDATE password_resets SET valid_until = {over} WHERE event_id = :e", e=opened)
    desk.execute(
        "UPDATE sellers SET password_reset_until = (SELECT valid_until FROM password_resets"
        " WHERE event_id = :e) WHERE seller_id = :s",
        e=opened,
        s=seller,
    )
    assert said(desk.seller_asks(platform.enrols(seller, password=NEW_PASSWORD)))[1] == "wrong_password"
    assert tries(desk, platform, seller, PASSWORD) == GOES


def test_a_proposal_that_was_cancelled_opens_nothing(asked: str, reset: Reset) -> None:
    reset("ada", "--event", asked)
    assert "good as before" in reset("grace", "--cancel").out
    assert reset("grace", "--event", asked).exit_code == 1


def test_a_known_destination_with_other_details_leaves_the_reset_open(
    desk: Desk, platform: SellersPlatform, seller: str, opened: str
) -> None:
    wrong = platform.enrols(seller, password="never to be taken", destination=OTHER_IBAN)
    assert said(desk.seller_asks(wrong)) == ("seller.rejected", "conflicting_duplicate")
    assert tries(desk, platform, seller, "never to be taken") == REFUSED
    added = platform.enrols(seller, password=NEW_PASSWORD, destination_id="d-2", destination=OTHER_IBAN)
    assert said(desk.seller_asks(added)) == ("seller.accepted", None)


def test_two_second_names_at_once_open_one_reset(
    desk: Desk, platform: SellersPlatform, seller: str, asked: str, reset: Reset
) -> None:
    reset("ada", "--event", asked)

    def speak(by: str) -> None:
        with desk.engine.begin() as connection:
            lock = lock_seller(connection, platform.shop, seller)
            assert lock is not None
            now = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
            word = _Word(connection, platform.shop, seller, "because", by, now)
            try:
                _agree(word, asked, lock)
            except CommandFailed as refused:
                assert "decided already" in str(refused)  # noqa: PT017 - one of both is refused

    side_by_side(lambda: speak("grace"), lambda: speak("eve"))
    opened = "SELECT count(*) FROM operator_actions WHERE action = 'password_reset_opened' AND subject = :s"
    assert desk.value(opened, s=f"{platform.shop}/{seller}") == 1
