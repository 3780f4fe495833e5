"""
`python -m infra.local.dependencies`: known weaknesses of what is pinned, and the bill of materials.

Asks the package index about every pinned package. An index that can't be asked is no pass: what was not
audited is said loudly, and fails where HOLDFAST_REQUIRE_DEPENDENCY_AUDIT is set, as a release should.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_CHECKOUT: Final = Path(__file__).parent.parent.parent
_LOCK: Final = _CHECKOUT / "requirements.lock"
_BILL: Final = _CHECKOUT / ".local" / "sbom.json"
_REQUIRED: Final = "HOLDFAST_REQUIRE_DEPENDENCY_AUDIT"
_TIMEOUT_SECONDS: Final = 120


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the audit of the dependencies says; `complete` is whether every package was audited."""

    weaknesses: tuple[str, ...]
    audited: int
    not_audited: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not self.not_audited and self.audited > 0


def judge(report: str) -> Verdict:
    """Read a JSON report of pip-audit; what is no report has audited nothing."""
    try:
        packages: list[Mapping[str, Any]] = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return Verdict((), 0, ())
    audited = [package for package in packages if "skip_reason" not in package]
    return Verdict(
        tuple(
            f"{package['name']} {package['version']}: {weakness['id']}, mended in"
            f" {', '.join(weakness['fix_versions']) or 'no version yet'}"
            for package in audited
            for weakness in package["vulns"]
        ),
        len(audited),
        tuple(str(package["name"]) for package in packages if "skip_reason" in package),
    )


def tell(verdict: Verdict, *, required: bool) -> tuple[list[str], int]:
    """Return what to say of a verdict, and the exit code."""
    if verdict.weaknesses:
        return [f"dependencies: known weaknesses in {_LOCK.name}:", *verdict.weaknesses], 1
    if verdict.complete:
        return [f"dependencies: no known weakness in the {verdict.audited} packages of {_LOCK.name}"], 0
    missing = f"{len(verdict.not_audited)} packages" if verdict.audited else "all packages"
    sentence = (
        f"dependencies: NOT AUDITED: {missing} of {_LOCK.name}, the package index could not be asked;"
        f" this says nothing about them. With a network, run `make dependencies`; {_REQUIRED}=1 makes it fail"
    )
    return [sentence], int(required)


def main() -> int:
    """Write the bill of materials, audit, say what came of it."""
    _write_bill()
    lines, exit_code = tell(judge(_ask_the_index()), required=bool(os.environ.get(_REQUIRED)))
    for line in lines:
        sys.stderr.write(f"{line}\n")
    return exit_code


def _ask_the_index() -> str:
    command = ["pip-audit", "--requirement", str(_LOCK), "--disable-pip", "--require-hashes"]
    options = ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        return _run([*command, *options]).stdout
    except subprocess.TimeoutExpired:
        return ""


def _write_bill() -> None:
    _BILL.parent.mkdir(exist_ok=True)
    project = str(_CHECKOUT / "pyproject.toml")
    command = ["cyclonedx-py", "requirements", str(_LOCK), "--pyproject", project]
    done = _run([*command, "--output-reproducible", "--of", "JSON", "-o", str(_BILL)])
    if done.returncode != 0:
        raise SystemExit(f"dependencies: no bill of materials could be made:\n{done.stderr.strip()}")
    sys.stderr.write(f"dependencies: bill of materials in {_BILL.relative_to(_CHECKOUT)}\n")


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    program, *arguments = command
    return subprocess.run(  # noqa: S603 - our own tools, no shell is involved
        [str(Path(sys.executable).parent / program), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
    )


if __name__ == "__main__":
    sys.exit(main())
