"""The list of named faults (`make mutants`)."""

from conftest import ROOT
from mutants import MODULES, NAMED, TESTS


def test_every_named_fault_can_be_put_in():
    assert [(name, there) for name, there, _ in NAMED if there not in (ROOT / name).read_text()] == []


def test_every_module_is_there_and_has_its_tests():
    assert [name for name in MODULES if not (ROOT / name).is_file()] == []
    assert [name for name in MODULES if not any(name.startswith(prefix) for prefix in TESTS)] == []
    assert [path for tests in TESTS.values() for path in tests.split() if not (ROOT / path).exists()] == []
