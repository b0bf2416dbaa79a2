"""A child process: start it, follow it, stop it. It never outlives us.

TensorFlow lives in such a child, never in our own process.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import FrameType
from typing import TypeVar

from threadpoolctl import threadpool_limits

from mlip_pace.errors import SignalError, ToolError

T = TypeVar("T")
R = TypeVar("R")

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """In the child: have the kernel kill it when the parent dies, however that happens."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_stopped_by: int | None = None


def stop_on_signals() -> None:
    """From now on the first TERM, INT, USR1 or USR2 raises `SignalError` wherever we are; further ones change nothing."""
    for number in STOPPING:
        signal.signal(number, _stop)


def _stop(number: int, _: FrameType | None) -> None:
    global _stopped_by
    for other in STOPPING:
        signal.signal(other, signal.SIG_IGN)
    _stopped_by = number
    raise_if_stopped()


def raise_if_stopped() -> None:
    """Raise `SignalError` after a signal. Python drops what a handler raises within a fork, so whoever forks asks again."""
    if _stopped_by is not None:
        raise SignalError(_stopped_by, signal.Signals(_stopped_by).name)


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0))


def environment(threads: int, device: str, scratch: Path) -> dict[str, str]:
    """The child's environment: the thread count, the device, no settings of ours, and what it needs without a home."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLIP_PACE_", "PACEMAKER"))}
    own = {
        "OMP_NUM_THREADS": str(threads),
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONUNBUFFERED": "1",
        "MPLCONFIGDIR": str(scratch),
        "TMPDIR": str(scratch),
    }
    if device == "cpu":
        own["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:  # pacemaker asks for the user's name when it is imported
        own["LOGNAME"] = f"uid{os.getuid()}"
    return {**inherited, **own}


def program(name: str) -> str:
    """The path of a program installed beside our own Python."""
    return str(Path(sys.executable).parent / name)


def run(
    command: list[str],
    folder: Path,
    log: Path,
    env: Mapping[str, str],
    follow: Callable[[], None] = lambda: None,
    deadline: float = math.inf,
) -> bool:
    """Run `command` in `folder` with its output in `log`, calling `follow()` a few times a second.

    Returns True when it has ended by itself, False if it was killed at the `deadline` (of `time.monotonic`).

    If anything is raised meanwhile (a signal, say), the child is killed: what it has kept by then is whole (checkpoint.py).
    Raises `ToolError` with the tail of the log if the child fails.
    """
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
            start_new_session=True,
        )
        try:
            while True:
                try:
                    status = child.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    raise_if_stopped()
                    follow()
                    if time.monotonic() > deadline:
                        return False
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    follow()
    if status != 0:
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        last = next((line for line in reversed(tail(log).splitlines()) if line.strip()), "no output")
        raise ToolError(f"{Path(command[0]).name} {how}: {last.strip()}", f"its whole log is {log}", detail=tail(log))
    return True


def parallel_map(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """`map(function, items)` in worker processes that end with us; results in the order of the items."""
    if workers <= 1 or len(items) <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, len(items)), context, initializer=_start_worker) as pool:
        try:
            for result in pool.map(function, items):
                raise_if_stopped()
                yield result
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    _die_with_parent()
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)  # stopping is the parent's business
    threadpool_limits(1)


def tail(log: Path, lines: int = 25) -> str:
    """The last lines of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20000))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
