"""What the README says is true: its commands run, its tables are the program's, its picture is a report."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, of_a_user
from PIL import Image

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
    (script,) = blocks("bash")
    done = subprocess.run(["bash", "-euc", script], cwd=folder, env=of_a_user(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_commands_for_ones_own_data_publish_a_potential(desk):
    for name in re.findall(r"^\| `(potential\.\w+)`", README, re.MULTILINE):
        assert (desk / "my-potential" / name).exists()
    assert "gamma" in (desk / "predicted.xyz").read_text()


def test_the_demo_ends_as_shown(tmp_path):
    command = [sys.executable, "-m", "examples.demo"]
    env = of_a_user(None) | {"MLIP_PACE_OUTPUT_PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 iterations" in done.stdout
    (shown,) = (block for block in blocks("") if block.startswith("ACE + reference against DFT"))
    for line in shown.splitlines()[2:]:
        name, *numbers = line.split()
        found = next(told.split() for told in done.stdout.splitlines() if told.split()[:1] == [name])
        assert found[1:3] == numbers[:2]
        assert [float(n) for n in found[3:]] == pytest.approx([float(n) for n in numbers[2:]], rel=0.1, abs=2e-4)


@pytest.mark.parametrize("script", blocks("python"))
def test_python_examples_run(desk, script):
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=desk, env=of_a_user(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_tables_of_settings_are_the_programs():
    table = settings_table()
    assert table in (ROOT / "docs" / "settings.md").read_text()
    shown = [line for line in README.splitlines() if line.startswith("| `MLIP_PACE_")]
    assert len(shown) == 10
    assert set(shown) <= set(table.splitlines())


def test_the_first_screen_says_when_not_to_use_it():
    lines = README.splitlines()
    assert len(lines) <= 150
    first = "\n".join(lines[: lines.index("## Two commands")])
    assert len(first.splitlines()) <= 30
    for said in ("non-commercial", "x86-64 Linux", "TensorFlow", "docs/report.png"):
        assert said in first


def test_the_picture_is_of_a_report(demo):
    picture = ROOT / "docs" / "report.png"
    assert picture.stat().st_size < 200_000
    spec = importlib.util.spec_from_file_location("report_picture", ROOT / "docs" / "report_picture.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    drawn = script.shot(demo / "report.html")
    with Image.open(picture) as image:
        assert image.size == drawn.size
    assert len(drawn.convert("L").getcolors()) > 50  # letters and lines, not a blank page


def test_the_examples_are_small_and_documented():
    assert sum(p.stat().st_size for p in (ROOT / "examples").iterdir() if p.is_file()) < 1_000_000
    assert "make_dataset.py" in (ROOT / "examples" / "README.md").read_text()
