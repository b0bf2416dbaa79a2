"""Who may know whom (docs/design.md): a module imports only from its own floor's room and from the floors below."""

import ast

import pytest
from conftest import ROOT

FLOORS = [
    {"errors", "settings", "sources", "arrays"},
    {"run"},
    {"collect"},
    {"reference"},
    {"ace"},
    {"selection"},
    {"probe"},
    {"train"},
    {"publish"},
    {"physics"},
    {"report"},
    {"inputs"},
    {"job"},
    {"check"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PACKAGE = ROOT / "mlip_pace"


def imported(path):
    """The modules of ours that a file imports, also inside functions, as `room.module` or `room`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[2] for name in node.names if name.name.startswith("mlip_pace."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mlip_pace":
            inside = node.module.partition(".")[2]
            yield from [inside] if inside else (name.name for name in node.names if name.name != "__version__")


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_knows_its_own_room_and_the_floors_below(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        other = name.partition(".")[0]
        assert other == room or FLOOR[other] < FLOOR[room] or (FLOOR[room] == FLOOR[other] == 0), f"{room} imports {name}"


def test_the_machinery_of_a_job_knows_nothing_of_atoms():
    for path in (PACKAGE / "run").glob("*.py"):
        assert {name.partition(".")[0] for name in imported(path)} <= {"run", "errors"}, path


def test_the_house_can_be_seen_at_a_glance():
    beside = [path for path in PACKAGE.iterdir() if path.is_file()]
    assert len(beside) <= 12
    for path in modules():
        assert len(path.read_text().splitlines()) <= 400, path


def test_every_file_is_in_the_design():
    design = (ROOT / "docs" / "design.md").read_text()
    for path in modules():
        assert path.name == "__init__.py" or path.name in design, path
