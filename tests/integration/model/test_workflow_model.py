"""The whole workflow against plain integers; docs/proof.md has the long version and how to repeat a run."""

import os
import secrets
from collections.abc import Iterator, Sequence
from datetime import datetime

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from msgspec.structs import replace
from sqlalchemy import Engine
from workflow_machine import Workflow
from workflow_support.desk import database_engine
from workflow_support.stepped_clock import SteppedClock, stepped_clock

from workers.escrow import handlers
from workers.escrow.decisions import Hold, Release, ReleaseDecision, decide_release

EXAMPLES = int(os.environ.get("HOLDFAST_MODEL_EXAMPLES", "15"))
STEPS = int(os.environ.get("HOLDFAST_MODEL_STEPS", "25"))
SEED = int(os.environ.get("HOLDFAST_MODEL_SEED", secrets.randbelow(2**32)))


@pytest.fixture(scope="module")
def clock(database_url: str) -> Iterator[SteppedClock]:
    with stepped_clock(database_url) as clock:
        yield clock


@pytest.fixture(scope="module")
def engine(database_url: str, clock: SteppedClock) -> Iterator[Engine]:
    """Opened after the clock was put in."""
    assert clock
    with database_engine(database_url) as engine:
        yield engine


def run_model(
    engine: Engine, clock: SteppedClock, *, examples: int, phases: Sequence[Phase], seed_of_run: int = SEED
) -> None:
    print(f"HOLDFAST_MODEL_SEED={seed_of_run} repeats this run")  # noqa: T201 - pytest shows it with a failure

    @seed(seed_of_run)
    class OnThisDatabase(Workflow):
        pass

    OnThisDatabase.engine = engine
    OnThisDatabase.clock = clock
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # Hypothesis leaves it untyped
        OnThisDatabase,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            # The seed alone decides what a run does; no file of earlier failures does.
            database=None,
            print_blob=True,
            phases=phases,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(0 if "HOLDFAST_MODEL_EXAMPLES" in os.environ else 600)
def test_the_handlers_agree_with_the_plain_books_in_any_order_of_events(
    engine: Engine, clock: SteppedClock
) -> None:
    run_model(engine, clock, examples=EXAMPLES, phases=[Phase.generate, Phase.shrink])


@pytest.mark.timeout(600)
def test_the_model_notices_a_rule_that_is_broken(
    engine: Engine, clock: SteppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that agrees with everything proves nothing: here each release keeps one minor unit too much."""

    def decide_greedily(hold: Hold, *, now: datetime) -> ReleaseDecision:
        decision = decide_release(hold, now=now)
        if isinstance(decision, Release) and decision.seller_minor > 1:
            return replace(decision, fee_minor=decision.fee_minor + 1)
        return decision

    def look_again_and_again() -> None:
        # Histories are drawn; that a hundred of them once held no release is no reason to believe the rule.
        for again in range(6):
            run_model(engine, clock, examples=100, phases=[Phase.generate], seed_of_run=SEED + again)

    monkeypatch.setattr(handlers, "decide_release", decide_greedily)
    with pytest.raises(AssertionError):
        look_again_and_again()
