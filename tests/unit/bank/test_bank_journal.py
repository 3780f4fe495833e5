"""What the journal promises: answered means on disk, and a crash leaves a whole prefix."""

import json
import os
from pathlib import Path

import pytest

from infra.local.bank.journal import Journal, JournalFailed
from infra.local.errors import LocalServiceError


def _opened(folder: Path) -> Journal:
    journal = Journal(folder)
    list(journal.replay())
    return journal


def _kinds(folder: Path) -> list[str]:
    journal = Journal(folder)
    try:
        return [entry["kind"] for entry in journal.replay()]
    finally:
        journal.close()


def test_what_was_appended_is_there_for_the_next_process_in_order(tmp_path: Path) -> None:
    journal = _opened(tmp_path)
    journal.append([{"kind": "a"}, {"kind": "b"}])
    journal.append([{"kind": "c"}])
    journal.close()

    again = Journal(tmp_path)
    entries = list(again.replay())
    assert [entry["kind"] for entry in entries] == ["a", "b", "c"]
    assert [entry["seq"] for entry in entries] == [1, 2, 3]
    assert [entry["seq"] for entry in again.append([{"kind": "d"}])] == [4]
    again.close()


@pytest.mark.parametrize("kept_bytes", [1, 10, -2, -1])
def test_a_line_cut_short_by_a_crash_is_dropped_whole(tmp_path: Path, kept_bytes: int) -> None:
    """Entries that became true together are lost together: none of them was answered for."""
    journal = _opened(tmp_path)
    journal.append([{"kind": "kept"}])
    whole = journal.path.read_bytes()
    journal.append([{"kind": "torn"}, {"kind": "torn_too"}])
    journal.close()
    second_line = journal.path.read_bytes()[len(whole) :]
    journal.path.write_bytes(whole + second_line[:kept_bytes])

    assert _kinds(tmp_path) == ["kept"]
    assert journal.path.read_bytes() == whole


def test_a_torn_first_line_leaves_an_empty_journal(tmp_path: Path) -> None:
    journal = _opened(tmp_path)
    journal.path.write_bytes(b'[{"seq":1,"kind"')
    journal.close()
    assert _kinds(tmp_path) == []


def test_a_long_torn_line_is_found_and_dropped(tmp_path: Path) -> None:
    journal = _opened(tmp_path)
    journal.append([{"kind": "kept"}])
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b"x" * 200_000)
    assert _kinds(tmp_path) == ["kept"]


def test_damage_before_the_last_line_stops_the_start_and_names_the_line(tmp_path: Path) -> None:
    journal = _opened(tmp_path)
    journal.append([{"kind": "a"}])
    journal.append([{"kind": "b"}])
    journal.close()
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"garbage\n" + lines[1])
    with pytest.raises(LocalServiceError, match="line 1 is damaged"):
        _kinds(tmp_path)


def test_a_second_process_on_the_same_journal_is_refused(tmp_path: Path) -> None:
    """Two memories of one bank would each move the same money."""
    journal = _opened(tmp_path)
    with pytest.raises(LocalServiceError, match="another bank"):
        Journal(tmp_path)
    journal.close()


def test_after_a_write_that_failed_nothing_more_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = _opened(tmp_path)

    def disk_full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", disk_full)
        with pytest.raises(JournalFailed, match="No space left"):
            journal.append([{"kind": "a"}])
    with pytest.raises(JournalFailed, match="earlier write"):
        journal.append([{"kind": "b"}])
    journal.close()


def test_the_whole_journal_reads_as_one_json_array(tmp_path: Path) -> None:
    journal = _opened(tmp_path)
    assert json.loads(b"".join(journal.read_json_array())) == []
    journal.append([{"kind": "a"}, {"kind": "b"}])
    journal.append([{"kind": "c"}])
    read = json.loads(b"".join(journal.read_json_array()))
    assert [entry["kind"] for entry in read] == ["a", "b", "c"]
    journal.close()
