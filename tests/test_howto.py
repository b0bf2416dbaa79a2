"""The pages in docs/howto: their commands and scripts run; the examples do what they are for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import RAW, ROOT, beside

from examples import equation_of_state, md

PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))


@pytest.mark.parametrize("page", [p.stem for p in PAGES if "```bash" in p.read_text()])
def test_commands_of_a_page_run(tmp_path, page):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parent.parent)
    (tmp_path / "espresso-runs").mkdir()
    for output in RAW.glob("*.pwo"):
        (tmp_path / "espresso-runs" / output.name).symlink_to(output)
    if page == "vasp":
        (tmp_path / "vasp-runs").symlink_to(beside("vasp-si-rss"))
    text = (ROOT / "docs" / "howto" / f"{page}.md").read_text()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MLIP_PACE_")}
    for language, script in re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL):
        command = (
            ["bash", "-euc", script]
            if language == "bash"
            else [sys.executable, "-W", "error::DeprecationWarning", "-c", script]
        )
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_energy_is_conserved_in_molecular_dynamics(demo):
    total = md.run(demo / "potential.json", steps=300)
    drift = np.polyfit(np.arange(len(total)), total, 1)[0] * len(total)
    assert np.ptp(total) < 2e-4  # eV/atom; kinetic and potential energy exchange some 40 meV/atom
    assert abs(drift) < 5e-5
    assert np.isfinite(total).all()


def test_the_equation_of_state_is_that_of_dft(demo):
    found = equation_of_state.compare(demo / "potential.json")
    assert found["ACE"][0] == pytest.approx(found["DFT"][0], rel=0.02)
    assert found["ACE"][1] == pytest.approx(found["DFT"][1], rel=0.15)
