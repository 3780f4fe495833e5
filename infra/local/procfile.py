"""What runs, and how many of each: the Procfile and `HOLDFAST_SCALE`."""

import re
import shlex
from pathlib import Path

from infra.local.errors import LocalServiceError

_LINE = re.compile(r"(?P<name>[A-Za-z0-9_-]+):\s*(?P<command>\S.*)")
_SHARE = re.compile(r"(?P<name>[A-Za-z0-9_-]+)=(?P<count>\d{1,3})")


def read_procfile(path: Path) -> dict[str, tuple[str, ...]]:
    """Return each process type's command."""
    commands: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            raise LocalServiceError(f"{path.name}, line {number}: expected `name: command`")
        commands[found["name"]] = tuple(shlex.split(found["command"]))
    return commands


def read_scale(text: str, names: frozenset[str]) -> dict[str, int]:
    """
    Return how many of each process type shall run: one, unless the text says otherwise.

    The text is `payment=2,relay=0`, its parts separated by commas or blanks.
    """
    counts = dict.fromkeys(sorted(names), 1)
    for part in re.split(r"[\s,]+", text.strip()) if text.strip() else ():
        found = _SHARE.fullmatch(part)
        if found is None or found["name"] not in names:
            raise LocalServiceError(
                f"HOLDFAST_SCALE: {part!r} is not <name>=<number> with a name of {', '.join(sorted(names))}"
            )
        counts[found["name"]] = int(found["count"])
    return counts
