"""
Baseline: the obvious way. One message, one SQLAlchemy ORM transaction, on stock Dramatiq.

Written as a careful developer would: typed models, unique keys, double entry, one locked balance row per
seller, nothing per message that could be done once. It is spared what Holdfast does besides: there is no
signature, no schema check, no answer to the shop, no outbox and no release to arm.
"""

import os
from datetime import UTC, datetime, timedelta

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from progress import Progress
from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, UniqueConstraint, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

QUEUE = "stock.orm"
_PROTECTION = timedelta(days=7)
_THREADS = 16

dramatiq.set_broker(RabbitmqBroker(url=os.environ["HOLDFAST_BROKER_URL"]))
progress = Progress()
engine = create_engine(
    "postgresql+psycopg://" + os.environ["HOLDFAST_DATABASE_URL"].split("://", 1)[1],
    pool_size=_THREADS,
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


@dramatiq.actor(queue_name=QUEUE)
def order_paid(order: dict[str, object]) -> None:
    book(order)
    progress.one_more()


def book(order: dict[str, object]) -> None:
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
        post(session, payment, "incoming", "received", payment.amount)
        for split in splits:
            seller_id, amount = str(split["seller_id"]), int(str(split["amount"]))
            session.add(
                Hold(
                    payment_id=payment.id,
                    seller_id=seller_id,
                    amount=amount,
                    currency=currency,
                    release_at=now + _PROTECTION,
                    state="held",
                )
            )
            post(session, payment, "received", f"held:{seller_id}", amount)
            balance = session.scalars(
                select(Balance).filter_by(seller_id=seller_id, currency=currency).with_for_update()
            ).one()
            balance.held += amount


def post(session: Session, payment: Payment, debit: str, credit: str, amount: int) -> None:
    for account, signed in ((debit, -amount), (credit, amount)):
        session.add(Entry(payment_id=payment.id, account=account, currency=payment.currency, amount=signed))


def create_schema(sellers: list[str], currency: str) -> None:
    """Create the tables, and each seller's balance, so that no order pays for its creation."""
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all(Balance(seller_id=seller, currency=currency, held=0) for seller in sellers)


if __name__ == "__main__":
    import json
    import sys

    create_schema(**json.load(sys.stdin))
