"""A child process: start it, follow it, stop it. It never outlives us.

TensorFlow lives in such a child, never in our own process.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import pwd
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mlip_pace.errors import OutOfMemoryError, StorageError, ToolError
from mlip_pace.run import limits
from mlip_pace.run.stopping import SIGNALS, raise_if_stopped

# How TensorFlow (on a GPU, say), C++ and Python say that there is no more memory.
_NO_MEMORY = re.compile("ResourceExhaustedError|std::bad_alloc|MemoryError")
_NO_SPACE = re.compile("No space left on device|Disk quota exceeded|File too large")

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
OOM_SCORE = Path("/proc/self/oom_score_adj")  # the kernel kills the process with the highest first
SECONDS_TO_END = 6.0  # for a child that was asked to end; less than stopping.SECONDS_TO_STOP


def as_child() -> None:
    """In the child: the kernel is to kill it when the parent dies, however that happens, and before us for want of memory."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)  # SLURM sends them to every process; the job is ours to end
    with contextlib.suppress(OSError):
        OOM_SCORE.write_text("1000")


def environment(threads: int, device: str, gpu_memory: str, scratch: Path) -> dict[str, str]:
    """The child's environment: the thread count, the device, no settings of ours, and what it needs without a home."""
    ours = ("MLIP_PACE_", "PACEMAKER", "PYTHONPATH", "PYTHONHOME")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    own = {
        "OMP_NUM_THREADS": str(threads),
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONUNBUFFERED": "1",
        "MPLCONFIGDIR": str(scratch),
        "TMPDIR": str(scratch),
        "TF_FORCE_GPU_ALLOW_GROWTH": str(gpu_memory == "grow").lower(),
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

    Returns True when it has ended by itself, False if it was ended at the `deadline` (of `time.monotonic`).

    If anything is raised meanwhile (a signal, say), the child is asked to end, and killed if it does not: what it has kept by
    then is whole (checkpoint.py). Raises `ToolError` with the tail of the log if the child fails, `OutOfMemoryError` or
    `StorageError` if that was for want of memory or disk space.
    """
    kills = limits.out_of_memory_kills()
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=as_child,
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
                _end(child)
    follow()
    raise_if_stopped()
    if status != 0:
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        last = next((line for line in reversed(tail(log).splitlines()) if line.strip()), "no output")
        message, hint = f"{Path(command[0]).name} {how}: {last.strip()}", f"its whole log is {log}"
        if (status == -signal.SIGKILL and limits.out_of_memory_kills() > kills) or _NO_MEMORY.search(tail(log)):
            raise OutOfMemoryError(f"out of memory: {message}", hint, detail=tail(log))
        if _NO_SPACE.search(tail(log)):
            raise StorageError(f"disk full: {message}", hint, detail=tail(log))
        raise ToolError(message, hint, detail=tail(log))
    return True


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask a child to end (checkpoint.py: after its iteration), then kill it with all that it started."""
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(SECONDS_TO_END)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def tail(log: Path, lines: int = 25) -> str:
    """The last lines of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20000))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
