"""
The obvious way's books: typed ORM models, double entry, one locked balance row a seller.

Written as a careful developer would, with unique keys and nothing per message that could be done once. It
is spared what Holdfast does besides: no signature, no schema check, no answer to the shop, no outbox.
The baselines on Dramatiq, Celery and DBOS share it.
"""

import json
import os
import sys
from datetime import UTC, datetime, timedelta

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, UniqueConstraint, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

# How long money is held, in whole seconds; where it is not given, nothing is released.
PERIOD_VARIABLE = "HOLDFAST_BENCH_PERIOD_SECONDS"
PERIOD_SECONDS = int(os.environ.get(PERIOD_VARIABLE, "0"))
_PROTECTION = timedelta(seconds=PERIOD_SECONDS) if PERIOD_SECONDS else timedelta(days=7)
_CONNECTIONS = 16

engine = create_engine(
    "postgresql+psycopg://" + os.environ["HOLDFAST_DATABASE_URL"].split("://", 1)[1],
    pool_size=_CONNECTIONS,
    max_overflow=0,
)


class Base(DeclarativeBase):
    type_annotation_map = {int: BigInteger}  # noqa: RUF012 - SQLAlchemy's own way


class Payment(Base):
    __tablename__ = "payment"
    __table_args__ = (UniqueConstraint("shop_id", "order_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    shop_id: Mapped[str]
    order_id: Mapped[str]
    buyer_id: Mapped[str]
    amount: Mapped[int]
    currency: Mapped[str]
    bank_reference: Mapped[str]
    paid_at: Mapped[datetime]


class Entry(Base):
    __tablename__ = "entry"
    __table_args__ = (CheckConstraint("amount <> 0"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    payment_id: Mapped[int] = mapped_column(ForeignKey("payment.id"), index=True)
    account: Mapped[str] = mapped_column(index=True)
    currency: Mapped[str]
    amount: Mapped[int]


class Hold(Base):
    __tablename__ = "hold"

    id: Mapped[int] = mapped_column(primary_key=True)
    payment_id: Mapped[int] = mapped_column(ForeignKey("payment.id"), index=True)
    seller_id: Mapped[str]
    amount: Mapped[int]
    currency: Mapped[str]
    release_at: Mapped[datetime] = mapped_column(index=True)
    state: Mapped[str]


class Balance(Base):
    __tablename__ = "balance"

    seller_id: Mapped[str] = mapped_column(primary_key=True)
    currency: Mapped[str] = mapped_column(primary_key=True)
    held: Mapped[int]
    available: Mapped[int]


def book(order: dict[str, object]) -> list[int]:
    """Book one paid order and hold its parts; return the ids of the holds."""
    now = datetime.now(UTC).replace(tzinfo=None)
    splits: list[dict[str, object]] = order["splits"]  # type: ignore[assignment] # JSON
    currency = str(order["currency"])
    with Session(engine) as session, session.begin():
        payment = Payment(
            shop_id="bench",
            order_id=str(order["order_id"]),
            buyer_id=str(order["buyer_id"]),
            amount=int(str(order["amount"])),
            currency=currency,
            bank_reference=str(order["bank_reference"]),
            paid_at=now,
        )
        session.add(payment)
        session.flush()
        _post(session, payment.id, currency, "incoming", "received", payment.amount)
        holds = []
        for split in splits:
            seller_id, amount = str(split["seller_id"]), int(str(split["amount"]))
            hold = Hold(
                payment_id=payment.id,
                seller_id=seller_id,
                amount=amount,
                currency=currency,
                release_at=now + _PROTECTION,
                state="held",
            )
            session.add(hold)
            holds.append(hold)
            _post(session, payment.id, currency, "received", f"held:{seller_id}", amount)
            _balance(session, seller_id, currency).held += amount
        session.flush()
        return [hold.id for hold in holds]


def release(hold_id: int) -> None:
    """Make one hold withdrawable, unless it is already."""
    with Session(engine) as session, session.begin():
        hold = session.scalars(select(Hold).filter_by(id=hold_id).with_for_update()).one()
        if hold.state != "held":
            return
        hold.state = "released"
        seller = hold.seller_id
        _post(session, hold.payment_id, hold.currency, f"held:{seller}", f"available:{seller}", hold.amount)
        balance = _balance(session, seller, hold.currency)
        balance.held -= hold.amount
        balance.available += hold.amount


def _balance(session: Session, seller_id: str, currency: str) -> Balance:
    return session.scalars(
        select(Balance).filter_by(seller_id=seller_id, currency=currency).with_for_update()
    ).one()


def _post(  # noqa: PLR0917 - what a posting is made of
    session: Session, payment_id: int, currency: str, debit: str, credit: str, amount: int
) -> None:
    for account, signed in ((debit, -amount), (credit, amount)):
        session.add(Entry(payment_id=payment_id, account=account, currency=currency, amount=signed))


def create_schema(sellers: list[str], currency: str) -> None:
    """Create the tables, and each seller's balance, so that no order pays for its creation."""
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all(
            Balance(seller_id=seller, currency=currency, held=0, available=0) for seller in sellers
        )


if __name__ == "__main__":
    create_schema(**json.load(sys.stdin))
