"""What a user reads when a job ends: the culprit by name, and what to do about it."""

import json
import re
import resource
import subprocess
import sys

import pytest
from conftest import EXAMPLES, environment, mlip_pace

# The program within limits that are set once it is loaded: what loading takes is not the same everywhere.
LIMITED = """
import resource, sys
from pathlib import Path
from mlip_pace import cli, job

pages = int(Path("/proc/self/statm").read_text().split()[0])
loaded = {resource.RLIMIT_AS: pages * resource.getpagesize(), resource.RLIMIT_FSIZE: 0}
kind, more = int(sys.argv.pop(1)), int(sys.argv.pop(1))
resource.setrlimit(kind, (loaded[kind] + more, loaded[kind] + more))
sys.exit(cli.main())
"""

CASES = {
    "unknown optimizer": (64, {"TRAINING_OPTIMIZER": "nonsense"}, "MLIP_PACE_TRAINING_OPTIMIZER", "mlip-pace settings"),
    "override is no YAML": (64, {"TRAINING_OVERRIDE": "{bad}"}, "bad.yaml", "MLIP_PACE_TRAINING_OVERRIDE"),
    "override without sections": (64, {"TRAINING_OVERRIDE": "{flat}"}, "flat.yaml", "mlip-pace check"),
    "no data": (66, {"DATA_PATH": "{nowhere}"}, "nowhere", "MLIP_PACE_DATA_PATH"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_last_line_names_the_culprit_and_what_to_do(tmp_path, case):
    (tmp_path / "bad.yaml").write_text("fit: [1")
    (tmp_path / "flat.yaml").write_text("loss: 1")
    paths = {"bad": tmp_path / "bad.yaml", "flat": tmp_path / "flat.yaml", "nowhere": tmp_path / "nowhere"}
    expected, settings, culprit, action = CASES[case]
    ours = {name: value.format(**paths) for name, value in settings.items()}
    code, _, last = mlip_pace(tmp_path / "out", ours.pop("DATA_PATH", EXAMPLES), **ours)
    assert code == expected
    assert culprit in last["message"]
    assert action in last["hint"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more", "code", "said"),
    [(resource.RLIMIT_AS, 100 * 2**20, 71, "out of memory"), (resource.RLIMIT_FSIZE, 20_000, 74, "File too large")],
    ids=["memory", "file size"],
)
def test_a_limit_of_the_system_has_its_exit_code_and_harms_nothing(tmp_path, kind, more, code, said):
    """The same command, without the limit, then goes on to the end."""
    settings = {"BASIS_FUNCTIONS": 1000 if code == 71 else 20, "BASIS_BODY_ORDER": 4, "RUN_THREADS": 1}
    command = [sys.executable, "-c", LIMITED, str(int(kind)), str(more)]
    done = subprocess.run(command, env=environment(tmp_path, **settings), capture_output=True, text=True, timeout=300)
    last = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, last["code"]) == (code, code), done.stdout + done.stderr
    assert said in last["message"]
    assert last["resumable"]
    assert not (tmp_path / "potential.json").exists()
    assert mlip_pace(tmp_path, **settings)[0] == 0


@pytest.mark.slow
def test_a_fit_that_diverges_is_80(tmp_path):
    """The real pacemaker, started from coefficients that no computer can square; nothing is published."""
    assert mlip_pace(tmp_path / "sound")[0] == 0
    sound = (tmp_path / "sound" / "potential.yaml").read_text()
    start = tmp_path / "start.yaml"
    start.write_text(re.sub(r" c: \[([^\]]*)\]", lambda c: f" c: [{', '.join(['1e300'] * len(c[1].split(',')))}]", sound))
    code, _, last = mlip_pace(tmp_path / "out", TRAINING_START=start, TRAINING_MAX_EPOCHS=3)
    assert (code, last["code"], last["reason"]) == (80, 80, "diverged")
    assert "no longer a number" in last["message"]
    assert not last["resumable"]
    assert not (tmp_path / "out" / "potential.json").exists()
