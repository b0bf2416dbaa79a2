"""What the README says is true: its commands run, its table is the program's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mlip_pace.cli import settings_table

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder like a clone: the examples, and a `.venv` with this very Python's programs."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MLIP_PACE_")}
    (script,) = blocks("bash")
    done = subprocess.run(["bash", "-euc", script], cwd=folder, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_commands_for_ones_own_data_publish_a_potential(desk):
    for name in re.findall(r"^\| `(potential\.\w+)`", README, re.MULTILINE):
        assert (desk / "my-potential" / name).exists()


@pytest.mark.parametrize("script", blocks("python"))
def test_python_examples_run(desk, script):
    done = subprocess.run([sys.executable, "-c", script], cwd=desk, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_settings_table_is_the_programs():
    assert settings_table() in README


def test_the_examples_are_small_and_documented():
    assert sum(p.stat().st_size for p in (ROOT / "examples").iterdir() if p.is_file()) < 1_000_000
    assert "make_dataset.py" in (ROOT / "examples" / "README.md").read_text()
