"""The pages about messages name all queues, commands, events and reasons that exist, and no others."""

import re
from pathlib import Path

import pytest

from infra.rabbitmq.topology import WORK_QUEUES
from schemas.commands import COMMANDS
from schemas.inbound import INBOUND
from schemas.outgoing import OUTGOING
from schemas.reasons import QuarantineReason, Reason

CHECKOUT = Path(__file__).parents[3]
DOCS = CHECKOUT / "docs"
PAGES = sorted([*CHECKOUT.glob("*.md"), *DOCS.rglob("*.md")])


def section(page: str, heading: str) -> str:
    text = (DOCS / page).read_text(encoding="utf-8")
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def cells(text: str, column: int) -> list[list[str]]:
    """Return the words in backticks of one column, row by row."""
    rows = re.findall(r"^\|(.+)\|$", text, flags=re.MULTILINE)[2:]
    return [re.findall(r"`([^`]+)`", row.split("|")[column]) for row in rows]


def anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")


def test_message_flow_lists_every_work_queue_with_its_events() -> None:
    queues = section("message-flow.md", "Queues")
    listed = {
        name[0]: tuple(events)
        for name, events in zip(cells(queues, 0), cells(queues, 2), strict=True)
        if name
    }
    assert {name: listed[name] for name in listed if name in WORK_QUEUES} == dict(WORK_QUEUES)


def test_message_flow_lists_every_command_beside_its_queue_and_explains_it() -> None:
    carried = {
        name for row in cells(section("message-flow.md", "Queues"), 3) for name in row if name in COMMANDS
    }
    explained = {name for row in cells(section("message-flow.md", "Commands"), 0) for name in row}
    assert carried == explained == set(COMMANDS)


def test_contract_lists_every_event_in_and_out() -> None:
    taken = {name for row in cells(section("contract.md", "What Holdfast takes"), 0) for name in row}
    told = {name for row in cells(section("contract.md", "What Holdfast tells"), 0) for name in row}
    assert (taken, told) == (set(INBOUND), set(OUTGOING))


def test_contract_lists_every_reason_that_a_sender_can_be_told() -> None:
    told = (
        section("contract.md", "What Holdfast tells").split("closed list:", 1)[1].split("Where several", 1)[0]
    )
    assert set(re.findall(r"`([a-z_]+)`", told)) - {"detail"} == {reason.value for reason in Reason}


def test_runbook_explains_every_reason_for_quarantine() -> None:
    explained = {name for row in cells(section("runbook.md", "Quarantine fills"), 0) for name in row}
    assert explained == {reason.value for reason in QuarantineReason} | {Reason.CONFLICTING_DUPLICATE.value}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, fragment = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert fragment in {anchor(heading) for heading in headings}, target
