"""Time and memory of a job on much data: displaced copies of a real set, one linear fit.

    .venv/bin/python benchmarks/size.py DATA --atoms 1000000 [--functions 300] [--collect]

Copies of the structures of DATA, displaced by noise of 0.01 Å, with the labels of the originals, are written until there are so
many atoms (errors say nothing). Then `mlip-pace` runs on them without iterations, or `mlip-pace collect` alone. Printed are the
seconds and the memory (MB) of the main process, mapped files included, and of the largest other process, stage by stage.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase.io import read, write

SETTINGS = {"BASIS_CUTOFF": 5, "TRAINING_MAX_EPOCHS": 0, "RUN_LOG_FORMAT": "text"}


def write_copies(data: str, path: Path, atoms: int) -> tuple[int, int]:
    """Numbers of structures and of atoms that are written."""
    known, rng, structures, written = read(data, ":"), np.random.default_rng(0), 0, 0
    with path.open("w") as file:
        while written < atoms:
            one = known[structures % len(known)]
            moved, moved.calc = one.copy(), one.calc
            moved.calc.atoms = moved
            moved.positions += rng.normal(scale=0.01, size=moved.positions.shape)
            moved.calc.atoms.positions = moved.positions
            write(file, moved, format="extxyz")
            structures, written = structures + 1, written + len(one)
    return structures, written


def memory_of(process: int) -> int:
    """MB; 0 of a process that is no more."""
    try:
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) // 1024
    except (OSError, TypeError):
        return 0


def children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--atoms", type=int, default=1_000_000)
    parser.add_argument("--functions", type=int, default=300)
    parser.add_argument("--collect", action="store_true")
    given = parser.parse_args()
    program = Path(sys.executable).parent / "mlip-pace"
    with tempfile.TemporaryDirectory() as folder:
        data, log = Path(folder) / "data.extxyz", Path(folder) / "log"
        structures, atoms = write_copies(given.data, data, given.atoms)
        settings = {**SETTINGS, "DATA_PATH": data, "OUTPUT_PATH": f"{folder}/out", "BASIS_FUNCTIONS": given.functions}
        command = [program, "collect", data, f"{folder}/again.extxyz"] if given.collect else [program]
        begin, peaks = time.monotonic(), dict[str, list[float]]()
        with log.open("w") as file:
            env = os.environ | {f"MLIP_PACE_{name}": str(value) for name, value in settings.items()}
            job = subprocess.Popen(command, env=env, stdout=file, stderr=file)
        while job.poll() is None:
            time.sleep(0.5)
            stages = re.findall(r"^\d\d:\d\d:\d\d  (\w+) ", log.read_text(), re.MULTILINE)
            seconds = time.monotonic() - begin
            peak = peaks.setdefault(stages[-1] if stages else "start", [seconds, seconds, 0, 0])
            others = max(map(memory_of, children(job.pid)), default=0)
            peak[1:] = [seconds, max(peak[2], memory_of(job.pid)), max(peak[3], others)]
    print(f"{structures} structures, {atoms} atoms, exit code {job.returncode}")
    print("what is logged last        from        to   main, MB   others, MB")
    for stage, (first, last, ours, others) in peaks.items():
        print(f"{stage:<20}{first:>9.0f} s{last:>8.0f} s{ours:>11.0f}{others:>13.0f}")


if __name__ == "__main__":
    main()
