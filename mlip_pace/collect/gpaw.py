"""GPAW: its text output."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ase import Atoms
from ase.io import iread

from mlip_pace.collect.files import Frame, opened


def read(path: Path) -> Iterator[Frame]:
    """ASE reads the energy extrapolated to zero smearing; the one that belongs to the forces is the free energy."""
    with opened(path) as file:
        free = [float(value) for value in re.findall(rb"^Free energy: +(\S+)", file.read(), re.MULTILINE)]
    frames = list(iread(str(path), index=":", format="gpaw-out"))
    for n, atoms in enumerate(frames):
        assert isinstance(atoms, Atoms)
        if len(free) != len(frames):
            yield f"{len(free)} free energies for {len(frames)} structures"
            continue
        atoms.calc.results["free_energy"] = free[n]
        yield atoms
