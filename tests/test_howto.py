"""The pages in docs/howto: their commands and scripts run; the examples do what they are for."""

import gzip
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.io import read, write
from conftest import EXAMPLES, RAW, ROOT, beside, mlip_pace, of_a_user

from examples import equation_of_state, loop, md
from mlip_pace.errors import JobError, SignalError

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
    for language, script in re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL):
        command = (
            ["bash", "-euc", script]
            if language == "bash"
            else [sys.executable, "-W", "error::DeprecationWarning", "-c", script]
        )
        done = subprocess.run(command, cwd=tmp_path, env=of_a_user(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout


# Exit code -> what to run for the example of the page on errors: the command, its data, its settings.
EXAMPLES_OF_ERRORS = {
    64: ("check", "a.xyz", {"BASIS_CUTOF": 5}),
    65: ("check", "no.extxyz", {}),
    66: ("check", "/nowhere", {}),
    68: ("run", "a.xyz", {"RUN_SCHEDULER": "tcp://127.0.0.1:9"}),
    69: ("check", "a.xyz", {"RUN_DEVICE": "gpu"}),
    77: ("check", "data.pckl.gzip", {}),
    81: ("run", "a.xyz", {"EVALUATE_MAX_FORCES_RMSE": 0.001}),
}


@pytest.mark.parametrize("code", EXAMPLES_OF_ERRORS)
def test_the_examples_of_errors_are_what_a_run_says(tmp_path, code):
    if code == 69 and Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU here")
    (tmp_path / "a.xyz").symlink_to(EXAMPLES)
    (tmp_path / "no.extxyz").write_text("hello\n")
    pickled = pickle.dumps(type("Code", (), {"__reduce__": lambda _: (os.system, ("true",))})())
    (tmp_path / "data.pckl.gzip").write_bytes(gzip.compress(pickled))
    command, data, settings = EXAMPLES_OF_ERRORS[code]
    found, _, last = mlip_pace(tmp_path / "out", tmp_path / data, command, **settings)
    assert found == code
    page = (ROOT / "docs" / "howto" / "errors.md").read_text()
    message, _, hint = re.search(rf"^## {code}: .*?```\n(.*?)\n```", page, re.DOTALL | re.MULTILINE)[1].partition("\n-> ")

    def plain(text):  # without numbers, which are another fit's, and without our folder
        return re.sub(r"\d+\.\d+", "N", text.replace(f"{tmp_path}/", ""))

    assert plain(last["message"]) == plain(message)
    assert plain(last["hint"]) == plain(hint)


def test_every_exit_code_of_the_contract_has_its_paragraph():
    page = (ROOT / "docs" / "howto" / "errors.md").read_text()
    kinds = [JobError, *JobError.__subclasses__()]
    codes = {kind.code for kind in kinds if kind is not SignalError} | {128 + signal.SIGTERM}
    assert {int(code) for code in re.findall(r"^## (\d+):", page, re.MULTILINE)} == codes


def test_the_learning_loop_learns(tmp_path):
    """The page's loop with EMT in place of DFT: errors on fresh dynamics, not among the candidates, fall at least threefold."""
    frames = [loop.labelled(atoms) for atoms in loop.run(EMT(), seed=5)[5:]]
    write(tmp_path / "fresh.xyz", frames, format="extxyz")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parent.parent)
    text = (ROOT / "docs" / "howto" / "active-learning.md").read_text()
    script = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    for number in (1, 2):
        script += f"\n.venv/bin/mlip-pace predict round-{number}/potential.json fresh.xyz fresh-{number}.xyz | tail -n 1"
    done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=of_a_user(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = (json.loads(line)["summary"] for line in done.stdout.splitlines()[-2:])
    for quantity in ("energy_mae", "forces_mae"):
        assert after["errors"][quantity] < before["errors"][quantity] / 3
    assert after["largest_energy_uncertainty"] < before["largest_energy_uncertainty"]


def test_a_committee_is_asked_as_the_page_says(tmp_path):
    """The lines of the page, in LAMMPS; Debian's has no `pace`, so that the reference alone is computed."""
    page = (ROOT / "docs" / "howto" / "lammps.md").read_text()
    (script,) = re.findall(r"## A committee\n.*?```\n(.*?)```", page, re.DOTALL)
    script = re.sub(r"hybrid/overlay pace recursive (.*?)\n.*?pair_coeff \* \* pace .*?\n", r"\1\n", script, flags=re.DOTALL)
    (tmp_path / "in.lammps").write_text(script.replace(" zbl 1", " 1").replace("style 1", "style zbl 1"))
    atoms = next(a for a in read(EXAMPLES, ":") if len(set(a.symbols)) == 2)
    write(tmp_path / "structure.data", atoms, format="lammps-data", specorder=["Al", "Mg"], masses=True)
    loop.dump([atoms] * 3, tmp_path / "run.dump")
    done = subprocess.run(["lmp", "-in", "in.lammps", "-log", "none"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    assert sorted(path.name for path in tmp_path.glob("forces-*.dump")) == [f"forces-{n}.dump" for n in range(1, 9)]
    assert (tmp_path / "forces-8.dump").read_text().count("ITEM: TIMESTEP") == 3


def test_links_lead_somewhere():
    for page in [*PAGES, *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
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
