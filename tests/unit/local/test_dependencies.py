"""An audit of dependencies that could not be made is never taken for one that was passed."""

import json

import pytest

from infra.local.dependencies import Verdict, judge, tell

CLEAN = {"name": "pika", "version": "1.3.2", "vulns": []}
WEAK = CLEAN | {"name": "weak", "vulns": [{"id": "CVE-1", "fix_versions": ["2.0"]}]}
UNKNOWN = {"name": "lost", "skip_reason": "not found"}


def report(*packages: object) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_packages_without_known_weaknesses_pass() -> None:
    lines, exit_code = tell(judge(report(CLEAN, CLEAN)), required=True)
    assert (len(lines), exit_code) == (1, 0)
    assert "no known weakness in the 2 packages" in lines[0]


def test_a_known_weakness_fails_and_says_what_mends_it() -> None:
    lines, exit_code = tell(judge(report(CLEAN, WEAK, UNKNOWN)), required=False)
    assert exit_code == 1
    assert lines[1:] == ["weak 1.3.2: CVE-1, mended in 2.0"]


@pytest.mark.parametrize("said", ["", "Traceback", report(UNKNOWN), report(CLEAN, UNKNOWN), report(), "[]"])
def test_an_index_that_can_not_be_asked_is_said_loudly_and_fails_where_it_must_not_be(said: str) -> None:
    verdict = judge(said)
    assert not verdict.complete
    lines, exit_code = tell(verdict, required=False)
    assert "NOT AUDITED" in lines[0]
    assert exit_code == 0
    assert tell(verdict, required=True)[1] == 1


def test_nothing_audited_is_no_pass() -> None:
    assert not Verdict((), 0, ()).complete
