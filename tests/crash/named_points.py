"""The list of places at which a process can be made to die, read from the code and not written by hand."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent.parent
STEP = CHECKOUT / "infra" / "postgres" / "step.py"


@dataclass(slots=True)
class NamedPoints:
    """What the code names: steps, the places in every step, and places outside of steps."""

    steps: list[str] = field(default_factory=list)
    places_of_a_step: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    # File and line of what has no name that can be read from the code.
    nameless: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[str]:
        of_steps = [f"{step}: {place}" for step in self.steps for place in self.places_of_a_step]
        return sorted({*of_steps, *self.others})


def read_named_points() -> NamedPoints:
    """Read every `reach(…)` of infra/ and workers/, and every step that workers/ begins or carries out."""
    found = NamedPoints()
    for path in sorted([*(CHECKOUT / "workers").rglob("*.py"), *(CHECKOUT / "infra").rglob("*.py")]):
        for call in _calls(path):
            where = f"{path.relative_to(CHECKOUT)}:{call.lineno}"
            if _is_reach(call):
                _take_reach(found, call, path, where)
            elif _begins_step(call) and path.is_relative_to(CHECKOUT / "workers"):
                _take(found.steps, found.nameless, call, where)
    return found


def _calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node


def _is_reach(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "reach"


def _begins_step(call: ast.Call) -> bool:
    """`.begin()` or `.carry_out()` of anything but an engine, whatever the variable is called."""
    if not (isinstance(call.func, ast.Attribute) and call.func.attr in ("begin", "carry_out")):
        return False
    return not ast.unparse(call.func.value).endswith("engine")


def _take_reach(found: NamedPoints, call: ast.Call, path: Path, where: str) -> None:
    [argument] = call.args
    if path == STEP and isinstance(argument, ast.JoinedStr):
        # A place of every step: the step's name comes first, then what stands in the text.
        place = argument.values[-1]
        assert isinstance(place, ast.Constant)
        found.places_of_a_step.append(str(place.value).removeprefix(": "))
    else:
        _take(found.others, found.nameless, call, where)


def _take(names: list[str], nameless: list[str], call: ast.Call, where: str) -> None:
    name = call.args[0] if call.args else None
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        names.append(name.value)
    else:
        nameless.append(where)
