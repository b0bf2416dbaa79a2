"""The end by force: a library that does not come back keeps no job from ending in time. Real processes, stuck for good."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DOCKERS_PATIENCE = 10  # seconds from the TERM of `docker stop` to its KILL
# A mutex that is locked twice: the second call never returns, whatever signal comes, and Python's handlers do not run.
STUCK = """
import ctypes, json, subprocess, sys
from mlip_pace.run import child, stopping

stopping.watch(lambda error: print(json.dumps([error.code, error.message, error.resumable]), flush=True))
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=child.as_child)
print(below.pid, flush=True)
mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
lock(mutex)
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pending(pid: int) -> bool:
    """Whether a signal waits to be delivered."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["SigPnd"], 16) + int(status["ShdPnd"], 16) > 0


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def ended():
    """By signal: the exit code, what was said, seconds from the signal to the end, and the process that was started below."""
    command = [sys.executable, "-c", STUCK]
    jobs = {
        number: subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    }
    below = {number: int(job.stdout.readline()) for number, job in jobs.items()}
    begin = time.monotonic()
    for number, job in jobs.items():
        os.kill(job.pid, number)
        wait_for(lambda pid=job.pid: not pending(pid))
        os.kill(job.pid, signal.SIGUSR2)  # the first one counts
    found = {}
    for number, job in jobs.items():
        said = job.communicate(timeout=60)[0]
        found[number] = job.returncode, said, time.monotonic() - begin, below[number]
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_what_is_stuck_is_ended_in_time_with_the_code_of_the_first_signal(ended, number):
    code, said, seconds, _ = ended[number]
    assert code == 128 + number
    told, message, resumable = json.loads(said)
    assert told == code
    assert number.name in message
    assert resumable
    assert seconds < DOCKERS_PATIENCE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_its_children_end_with_it(ended, number):
    wait_for(lambda: not runs(ended[number][3]))
