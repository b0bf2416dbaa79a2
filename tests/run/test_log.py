"""What is shown while a job runs: a live display on a terminal, JSON lines elsewhere."""

import json
import os
import pty
import subprocess
import sys
import time

from mlip_pace.run.log import Journal

SCRIPT = """
import pathlib, sys
from mlip_pace.run.log import Journal
journal = Journal("auto")
journal.open(pathlib.Path(sys.argv[1]))
journal.enter("collect")
journal.say("103 structures read")
journal.enter("train")
for iteration in (0.0, 40.0):
    journal.progress({"iteration": iteration, "loss": 1e-3, "rmse_epa": 0.003, "rmse_f_comp": 0.05}, 100)
journal.close(0, "done", "published", "", False)
"""


def test_a_terminal_shows_stages_iterations_loss_and_errors(tmp_path):
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "110"}
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path], stdout=theirs, env=env)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # Linux's way of saying that the other end is closed
        pass
    assert child.wait() == 0
    text = shown.decode()
    assert "✓ collect" in text
    assert "▸ train" in text
    assert "iteration 40/100" in text
    assert "3.00 meV/atom" in text
    assert " left" in text
    assert json.loads(text[text.rindex("{") :])["code"] == 0


def test_elsewhere_there_are_json_lines_and_the_status(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()][-1]["code"] == 0
    assert json.loads((tmp_path / "status.json").read_text())["message"] == "published"


def test_the_time_left_is_that_of_the_iterations_left(tmp_path, monkeypatch):
    """Two iterations in ten seconds, eight to come: forty seconds."""
    journal = Journal("json")
    journal.open(tmp_path)
    journal.enter("train")
    row = {"loss": 1.0, "rmse_epa": 0.1, "rmse_f_comp": 0.2}
    for iteration, now in ((1, 100.0), (3, 110.0)):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        journal.progress({**row, "iteration": iteration}, 11)
    assert json.loads((tmp_path / "status.json").read_text())["eta_seconds"] == 40.0
