"""Small files that must be either whole or absent: secrets, ports, process records."""

import contextlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

_OWNER_ONLY = 0o600


def write_whole(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace a file at once, so that a reader sees the old text or the new one, never a part."""
    _written_beside(path, text, mode).replace(path)


def secret(path: Path, make: Callable[[], str]) -> str:
    """Return the secret kept in a file, made once, whoever comes first; only the owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        made = _written_beside(path, make() + "\n", _OWNER_ONLY)
        # Unlike a rename, a link never replaces what another process or thread put there meanwhile.
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
        made.unlink()
    return path.read_text(encoding="utf-8").strip()


def _written_beside(path: Path, text: str, mode: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return temporary


def read_json_object(path: Path) -> dict[str, object]:
    """Return a JSON object from a file; an absent or damaged file is an empty one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
