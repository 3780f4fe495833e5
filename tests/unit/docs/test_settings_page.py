"""docs/running.md lists every setting, with the default that the code has."""

import re
from enum import Enum
from pathlib import Path

from infra.settings import Settings

PAGE = Path(__file__).parents[3] / "docs" / "running.md"


def listed_defaults() -> list[tuple[str, str]]:
    """Return variable and default of each row of the table of settings."""
    section = PAGE.read_text(encoding="utf-8").split("\n## Settings\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `(HOLDFAST_[A-Z0-9_]+)` \| ([^|]+) \| [^|]+ \|$", section, flags=re.MULTILINE)
    return [(variable, default.strip().strip("`")) for variable, default in rows]


def defaults_in_code() -> list[tuple[str, str]]:
    listed = []
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        if field.is_required():
            shown = "required"
        elif default is None:
            shown = "none"
        else:
            shown = str(default.value if isinstance(default, Enum) else default)
        listed.append((f"HOLDFAST_{name.upper()}", shown))
    return listed


def test_page_lists_every_setting_once_with_its_default() -> None:
    assert listed_defaults() == defaults_in_code()
