"""A child process: start it, follow it, stop it. It never outlives us.

TensorFlow lives in such a child, never in our own process.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from mlip_pace.errors import ToolError

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """In the child: have the kernel kill it when the parent dies, however that happens."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


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
    command: list[str], folder: Path, log: Path, env: Mapping[str, str], follow: Callable[[], None] = lambda: None,
    interval: float = 0.2, grace: float = 8.0,
) -> None:  # fmt: skip
    """Run `command` in `folder` with its output in `log`, calling `follow()` every `interval` seconds.

    If anything is raised meanwhile (a signal, a time limit), the child is asked to stop by a file `stop` in its folder and
    killed if it has not ended within `grace` seconds. Raises `ToolError` with the tail of the log if the child fails.
    """
    stop = folder / "stop"
    stop.unlink(missing_ok=True)
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, cwd=folder, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent, start_new_session=True,
        )  # fmt: skip
        try:
            while True:
                try:
                    status = child.wait(interval)
                    break
                except subprocess.TimeoutExpired:
                    follow()
        finally:
            if child.poll() is None:
                stop.touch()
                try:
                    child.wait(grace)
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
    follow()
    if status != 0:
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        last = next((line for line in reversed(tail(log).splitlines()) if line.strip()), "no output")
        raise ToolError(f"{Path(command[0]).name} {how}: {last.strip()}", f"its whole log is {log}", detail=tail(log))


def tail(log: Path, lines: int = 25) -> str:
    """The last lines of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20000))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
