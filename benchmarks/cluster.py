"""What the workers of a Dask cluster bring, and what the job's own process pays: the figures of docs/scale.md.

    python benchmarks/cluster.py [--chunks 96] [--rounds 2]

The normal equations of the least squares, 500 functions for each of 1 and of 4 elements, of rattled crystals of 64 atoms with
random labels. One process without Dask, then a real scheduler with one worker and with two, by turns. CPU seconds are those of
processes, from the kernel; seconds on the wall depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as in a job

import numpy as np
import psutil
from ase import Atoms
from ase.build import bulk

from mlip_pace.ace import basis
from mlip_pace.ace.basis import Basis
from mlip_pace.reference import pair_name
from mlip_pace.run import cluster, pool
from mlip_pace.run.cluster import connected
from mlip_pace.settings import BasisSettings
from mlip_pace.train import linear
from mlip_pace.train.linear import Labelled

CRYSTALS = {1: (bulk("Si", cubic=True) * (2, 2, 2), ["Si"]), 4: (bulk("Al", cubic=True) * (2, 2, 4), ["Al", "Cu", "Mg", "Zn"])}
FUNCTIONS, CUTOFF = 500, 5.0


def structures(elements: int, count: int) -> list[Labelled]:
    crystal, symbols = CRYSTALS[elements]
    rng = np.random.default_rng(1)
    made = []
    for _ in range(count):
        atoms = Atoms(rng.choice(symbols, len(crystal)), crystal.positions, cell=crystal.cell, pbc=True)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        made.append(Labelled(atoms, rng.normal(), rng.normal(size=(len(atoms), 3)), None, 1.0, np.ones(len(atoms)), 0.0))
    return made


def basis_of(elements: int) -> Basis:
    symbols = CRYSTALS[elements][1]
    shortest = {pair_name(one, other): 2.0 for one, other in combinations_with_replacement(symbols, 2)}
    return basis.section(BasisSettings(cutoff=CUTOFF, functions=FUNCTIONS), symbols, shortest)


@contextmanager
def running(folder: Path, workers: int) -> Iterator[tuple[Any, Any]]:
    """A scheduler and one worker program: the cluster, and the CPU seconds so far of (scheduler, workers)."""
    file, address = folder / "scheduler.json", ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    environ = os.environ | {"MLIP_PACE_RUN_SCHEDULER": str(file), "MLIP_PACE_RUN_THREADS": str(workers)}
    commands = (
        ["-m", "distributed.cli.dask_scheduler", *address, "--no-dashboard", "--scheduler-file", str(file)],
        ["-m", "mlip_pace.cli", "worker"],
    )
    quiet = {"env": environ, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    started = [psutil.Popen([sys.executable, *command], **quiet) for command in commands]

    def seconds() -> tuple[float, float]:
        scheduler, program = started
        of = [sum(one.cpu_times()[:2]) for one in program.children(recursive=True)]
        return sum(scheduler.cpu_times()[:2]), sum(of)

    try:
        with connected(str(file), folder / "out", [], print, math.inf) as found:
            while len(found.client.nthreads()) < workers:
                time.sleep(0.1)
            yield found, seconds
    finally:
        for one in reversed(started):
            one.terminate()
            one.wait()


def measure(elements: int, chunks: int, workers: int) -> dict[str, float]:
    """One pass: s on the wall, CPU s of this process, of the scheduler, and of the workers; bytes of chunks, and of a sum."""
    on = basis_of(elements)
    given = linear.chunks_of(structures(elements, 8 * chunks))
    assert len(given) == chunks
    function = partial(linear.accumulate, expansion=basis.expansion(on), kappa=0.01)
    function(given[0])  # compiled, loaded
    found: dict[str, float] = {"workers": workers, "chunks": chunks, "atoms": 512 * chunks}
    if workers == 0:
        begin, cpu = time.monotonic(), time.process_time()
        (normal,) = pool.parallel_sums(function, [given], 1)
        return found | {"wall": time.monotonic() - begin, "own": time.process_time() - cpu}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), workers) as (those, seconds):
        list(pool.parallel_map(function, given[: 4 * workers], those))  # every worker has loaded all
        begin, cpu, (scheduler, of_workers) = time.monotonic(), time.process_time(), seconds()
        (normal,) = pool.parallel_sums(function, [given], those)
        found |= {"wall": time.monotonic() - begin, "own": time.process_time() - cpu}
        after = seconds()
    found |= {"scheduler": after[0] - scheduler, "of workers": after[1] - of_workers}
    begin = time.process_time()
    linear.solve(normal, basis.smoothness(on))
    found["solve"] = time.process_time() - begin
    return found | {"bytes of chunks": len(pickle.dumps(given)), "bytes of a sum": len(pickle.dumps(normal))}


def overhead(chunks: int, tasks: int) -> dict[str, float]:
    """CPU s of this process and of the scheduler for chunks that cost nothing, in about so many tasks."""
    given = linear.chunks_of(structures(1, 8 * chunks))
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), 2) as (workers, seconds):
        list(pool.parallel_map(len, given[:8], workers))
        cluster.TASKS, pool.TASKS = tasks // 2, 1
        begin, cpu, scheduler = time.monotonic(), time.process_time(), seconds()[0]
        (sum_,) = pool.parallel_sums(len, [given], workers)
        assert sum_ == 8 * chunks
        found = {"wall": time.monotonic() - begin, "own": time.process_time() - cpu, "scheduler": seconds()[0] - scheduler}
    return {"chunks": chunks, "tasks": sum(map(len, pool.blocks([given], tasks))), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--chunks", type=int, default=96, help="of 512 atoms; a third of it for 4 elements")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    for _ in range(given.rounds):
        for tasks in (64, 512, 4096):
            found = overhead(4096, tasks)
            print(json.dumps({name: round(value, 3) for name, value in found.items()}), flush=True)
        for elements in CRYSTALS:
            for workers in (0, 1, 2):
                found = measure(elements, given.chunks if elements == 1 else given.chunks // 3, workers)
                rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}
                print(json.dumps({"elements": elements, **rounded}), flush=True)


if __name__ == "__main__":
    main()
