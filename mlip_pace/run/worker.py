"""What a worker of a Dask cluster does for a job (`cluster.py`): it shows that it fits, and computes.

Functions and items come pickled, the function in a file that each worker reads once. This module imports little, for Dask's
scheduler imports it, too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import platform
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from mlip_pace.errors import WorkerError

# What decides about numbers, and about what can be sent.
COMPUTES = ("numpy", "scipy", "numba", "python-ace", "ase", "matscipy", "pandas", "distributed", "cloudpickle")
TOKEN = "token"
HINT = "job and workers need the same image, and the output path and the data under the same paths (docs/howto/cluster.md)"


@dataclass(frozen=True)
class Ticket:
    """What a worker must have in common with the job: programs, and files under the same paths."""

    folder: Path  # of the job, in its output path, with the file TOKEN
    token: str  # what is in it
    files: dict[str, int]  # bytes of files that are to be read
    programs: dict[str, str]  # `programs()` of the job

    def misfit(self) -> str | None:
        """Why a worker with this process cannot take part."""
        found = programs()
        for name, wanted in self.programs.items():
            if found[name] != wanted:
                return f"it has {name} {found[name]}, the job {wanted}"
        try:
            if (self.folder / TOKEN).read_text() != self.token:
                return f"its {self.folder} is another one than the job's"
        except OSError as error:
            return f"it cannot read the output path: {error}"
        if not os.access(self.folder.parent, os.W_OK):
            return f"uid {os.getuid()} of it cannot write into {self.folder.parent}"
        for path, size in self.files.items():
            try:
                if (other := os.stat(path).st_size) != size:
                    return f"its {path} has {other} bytes, the job's {size}"
            except OSError as error:
                return f"it cannot read the data: {error}"
        return None


@cache
def programs() -> dict[str, str]:
    """Versions of Python and of what computes, and a digest of our own code."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    found = {name: version(name) for name in COMPUTES}
    return {"Python": platform.python_version(), **found, "code of mlip-pace": digest.hexdigest()[:12]}


def results(ticket: Ticket, function: str, items: bytes) -> list[Any]:
    """The function, that of a file, of each of the pickled items."""
    return list(_each(ticket, function, items))


def total(ticket: Ticket, function: str, items: bytes) -> Any:
    """The sum of the function over the items."""
    from mlip_pace.run.pool import tree_sum

    return tree_sum(_each(ticket, function, items))


def added(ticket: Ticket, one: Any, other: Any) -> Any:
    show(ticket)
    return one + other


@lru_cache(maxsize=8)  # several jobs may share a cluster
def _loaded(function: str) -> Any:
    with open(function, "rb") as file:
        return pickle.load(file)


def _each(ticket: Ticket, function: str, items: bytes) -> Iterator[Any]:
    """What is no longer wanted ends between two items: a thread cannot be ended from outside."""
    from distributed.worker import get_worker

    show(ticket)
    here = get_worker()
    tasks, key = here.state.tasks, here.get_current_task()
    call, given = _loaded(function), pickle.loads(items)
    for item in given:
        if (task := tasks.get(key)) is None or task.state != "executing":
            raise InterruptedError(f"{key} is no longer wanted")
        yield call(item)


def show(ticket: Ticket) -> None:
    """Raise `WorkerError` if this worker does not fit; once it did, it does."""
    if ticket.token not in _shown:
        from distributed.worker import get_worker
        from threadpoolctl import threadpool_limits

        if (why := ticket.misfit()) is not None:
            raise Misfit(get_worker().address, why)
        threadpool_limits(1)
        _shown.add(ticket.token)


_shown: set[str] = set()


class Misfit(WorkerError):
    """A worker, by its address, that cannot take part."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__(f"the worker {address} on {platform.node()} cannot take part: {why}", HINT)
        self.address, self.why = address, why

    def __reduce__(self) -> tuple[Any, ...]:
        return _misfit, (self.address, self.why, self.message)


def _misfit(address: str, why: str, message: str) -> Misfit:
    found = Misfit(address, why)
    found.message, found.args = message, (message,)  # that of the host where it was raised
    return found


def address_in(file: Path, patience: float = math.inf) -> str:
    """The address in a scheduler file, which may come a little later than we. Raises `OSError` after so many seconds."""
    until = time.monotonic() + patience
    while True:
        try:
            return str(json.loads(file.read_text())["address"])
        except (OSError, ValueError, KeyError):
            if time.monotonic() > until:
                raise OSError(f"{file} is no scheduler file") from None
            time.sleep(0.2)


def _own_address(scheduler: str) -> str:
    """That of this machine on the way to the scheduler, whose name may not be known yet."""
    host, _, port = scheduler.partition("://")[2].rpartition(":")
    while True:
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
            break
        except socket.gaierror:
            time.sleep(1)
    with socket.socket(found[0][0], socket.SOCK_DGRAM) as way:
        way.connect(found[0][4])  # sends nothing
        own = str(way.getsockname()[0])
    if own.startswith("127.") and not host.startswith(("127.", "localhost")):
        from distributed.utils import get_ip  # Debian gives a machine's own name an address that no other can reach

        return str(get_ip())
    return own


def start(scheduler: str, processes: int) -> NoReturn:
    """Become Dask's own worker program with so many processes of one thread, which start anew when they are killed.

    It listens for the scheduler and other workers; its page for people, which Dask always has, is for this machine alone.
    """
    address = scheduler if "://" in scheduler else address_in(Path(scheduler))
    options = ["--nworkers", str(processes), "--nthreads", "1", "--memory-limit", "0"]
    options += ["--host", _own_address(address), "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # SLURM sends them to every process; the job is what they are for
    os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "False")
    # As malloc has them where arrays of some MB come and go; Dask's own, for spilling to disk, cost a quarter of the CPU.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**26))
    program = [sys.executable, "-I", "-m", "distributed.cli.dask_worker", address, *options]
    os.execv(program[0], program)
