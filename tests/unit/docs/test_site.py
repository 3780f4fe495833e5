"""The documentation builds as a site, strictly, and every page has its place in it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).parents[3]
DOCS = CHECKOUT / "docs"


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose own tags name Python objects; here they are only text."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda _loader, suffix, _node: suffix)


def _pages(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in _pages(part)]


def test_the_site_builds_strictly_and_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    """A broken link, a missing anchor or an unknown page fails the build."""
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=CHECKOUT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    made = (tmp_path / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?://[^\s\">]+)", made)
    assert loaded == []


def test_every_page_has_a_place_in_the_navigation() -> None:
    nav = yaml.load((CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=_Loader)["nav"]  # noqa: S506
    placed = set(_pages(nav))
    written = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if page.parent != DOCS / "adr"}
    assert written == placed, "give each new page of docs/ a line under `nav` in mkdocs.yml"


@pytest.mark.parametrize("page", sorted((DOCS / "adr").glob("*.md")), ids=lambda page: page.name)
def test_every_decision_is_numbered_and_titled_alike(page: Path) -> None:
    first = page.read_text(encoding="utf-8").splitlines()[0]
    assert re.match(rf"# {int(page.name[:4])}\. ", first), f"{page.name} begins with '{first}'"


def test_no_two_decisions_have_one_number() -> None:
    """Two branches may each take the next free one; whoever comes second takes another."""
    numbers = [page.name[:4] for page in (DOCS / "adr").glob("*.md")]
    assert sorted(numbers) == sorted(set(numbers))
