"""Stopped, killed, out of memory: what is kept, what is said, what goes on."""

import json
import random
import signal
import time

import pytest
from ase.io import read
from conftest import EXAMPLES

from container.engine import Job, run, until
from mlip_pace import load_calculator
from mlip_pace.publish.potential import intact

pytestmark = pytest.mark.usefixtures("image")

LONG = {"TRAINING_MAX_EPOCHS": 10000, "TRAINING_EARLY_STOPPING_GAIN": 0}
# Sends a signal to the process in the container whose program is pacemaker; in Python, the image has no procps.
KILL_TRAINER = """
import os, signal
for pid in filter(str.isdecimal, os.listdir("/proc")):
    if b"/opt/venv/bin/pacemaker" in open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0"):
        os.kill(int(pid), signal.SIGKILL)
        print(pid)
"""


def in_stage(out, *names):
    """Whether the job on `out` is in one of these stages."""
    status = out / "status.json"
    return status.exists() and json.loads(status.read_text())["stage"] in names


def attempt(out, number=1):
    return out / "work" / "5-train.part" / f"attempt-{number}"


def stop(job):
    """`docker stop`; the job's exit code. Docker itself would kill it after 10 s."""
    begin = time.monotonic()
    job.docker.stop(timeout=10)
    code = job.wait()
    assert time.monotonic() - begin < 10
    assert job.last["code"] == code
    return code


MOMENTS = {
    "at the start": (lambda out: time.sleep(0.5) or True, (143,)),
    "before TensorFlow is up": (lambda out: (attempt(out) / "output.log").exists(), (143,)),
    "mid-training": (lambda out: (attempt(out) / "checkpoint.yaml").exists(), (143,)),
    "while publishing": (lambda out: in_stage(out, "evaluate", "publish"), (0, 143)),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_docker_stop_keeps_what_is_done(out, moment):
    """The next run goes on to the end."""
    reached, codes = MOMENTS[moment]
    settings = {"TRAINING_MAX_EPOCHS": 30} if moment == "mid-training" else {"TRAINING_MAX_EPOCHS": 1}
    with Job(out, **settings) as job:
        until(lambda: reached(out))
        assert stop(job) in codes
    sidecar = out / "potential.json"
    assert not sidecar.exists() or intact(sidecar)
    assert run(out, **settings)[0] == 0
    training = intact(sidecar).metadata["training"]
    assert sum(each["iterations"] for each in training["attempts"]) == training["iterations"] == settings["TRAINING_MAX_EPOCHS"]
    if moment == "mid-training":
        assert training["attempts"][0]["ended"] == "stopped by SIGTERM"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)])
def test_the_same_signal_twice(out, number, code):
    with Job(out, **LONG) as job:
        until(lambda: attempt(out).exists())
        job.docker.kill(number)
        time.sleep(0.05)
        job.docker.kill(number)
        assert job.wait(20) == job.last["code"] == code
        assert job.last["resumable"]
    assert all(json.loads(line) for line in (out / "log.jsonl").read_text().splitlines())
    assert json.loads((out / "status.json").read_text())["code"] == code


def test_killed_at_any_time(out):
    """20 kills, from the first stage to publishing; a result is true or not there, and in the end there is one."""
    moments, settings, sidecar = random.Random(3), {"TRAINING_MAX_EPOCHS": 2, "OUTPUT_OVERWRITE": 1}, out / "potential.json"
    for kappa in range(1, 21):  # other inputs each time, so that no run is done before it begins
        with Job(out, TRAINING_KAPPA=kappa / 100, **settings) as job:
            time.sleep(moments.uniform(0.2, 12))
            job.docker.reload()
            if job.docker.status == "running":
                job.docker.kill("KILL")
            job.wait()
        assert not sidecar.exists() or intact(sidecar)
    code, last = run(out, TRAINING_KAPPA=0.2, **settings)
    assert code == 0, last
    assert intact(sidecar)
    atoms = read(EXAMPLES, 10)
    atoms.calc = load_calculator(sidecar)
    assert atoms.get_potential_energy() < 0


def test_a_killed_trainer_is_named(out):
    with Job(out, **LONG) as job:
        until(lambda: (attempt(out) / "output.log").exists())
        assert job.inside(KILL_TRAINER).strip()
        assert job.wait() == 70
        assert "pacemaker was killed by SIGKILL" in job.last["message"]


def test_too_little_memory_is_said_and_the_next_attempt_takes_less(out):
    limit = {"mem_limit": "450m", "memswap_limit": "450m"}
    with Job(out, options=limit, TRAINING_BATCH_SIZE=4, TRAINING_MAX_EPOCHS=1) as job:
        code, last, said = job.wait(), job.last, job.lines()
    attempts = [json.loads(file.read_text()) for file in sorted(out.glob("work/5-train*/attempt-*/attempt.json"))]
    sizes = [each["batch_size"] for each in attempts]
    assert "out of memory" in attempts[0]["ended"]
    assert attempts[0]["out_of_memory"]
    assert sizes == sorted(set(sizes), reverse=True)
    assert any("out of memory" in line and "the next attempt: 2" in line for line in said)
    assert (code, last["reason"]) in ((0, "done"), (71, "out-of-memory"))
