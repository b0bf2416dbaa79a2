"""Phonons by finite displacements in a supercell, and the imaginary ones by name.

phonopy does it (A. Togo, J. Phys. Soc. Jpn. 92, 012001 (2023)). Frequencies in THz; an imaginary one is a negative number.
Wave vectors q are in the basis of the reciprocal vectors of the primitive cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from mlip_pace.arrays import Array
from mlip_pace.physics.crystals import Crystal, LeftOutError, in_time, repeated

DISPLACEMENT = 0.01  # Å
LENGTHS, MOST_ATOMS = (15.0, 12.0, 10.0), 500  # Å of a supercell: the first of so many atoms at most
MESH = 60.0  # phonopy's measure of the mesh of q: this over the lengths of the cell (Å)
IMAGINARY = -0.1  # THz: above it is noise of the displacements and of the interpolation
SAME = 0.01  # THz: the lowest mode of the mesh is told if it is lower by this than those of special points
PATH, BRANCHES = 101, 24  # points of the path; branches of a figure at most


@dataclass(frozen=True)
class Mode:
    """A mode: q, its name if it is a special point, and the frequency (THz)."""

    q: tuple[float, float, float]
    name: str
    frequency: float


@dataclass(frozen=True)
class Bands:
    """Frequencies (branches, points) along a path between special points: where it is (1/Å), and where the points are."""

    distance: list[float]
    frequencies: list[list[float]]
    points: list[tuple[float, str]]


@dataclass(frozen=True)
class Phonons:
    """What a mesh of q and a path between special points have."""

    atoms: int  # of the supercell
    lengths: list[float]  # of its edges, Å
    highest: float
    imaginary: list[Mode]  # the lowest of each special point, and that of all of the mesh; lowest first
    share: float  # of the modes of the mesh, that are imaginary
    gamma: list[float]  # the optical modes at Γ
    bands: Bands | None


def phonons(crystal: Crystal, calculator: Any, deadline: float = math.inf) -> Phonons:
    """The phonons of a relaxed crystal. Raises `LeftOutError`."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = crystal.atoms()
    several = (repeated(cell, length) for length in LENGTHS)
    larger = next((one for one in several if len(one) <= MOST_ATOMS), None)
    if larger is None:
        raise LeftOutError(f"a supercell of {LENGTHS[-1]:g} Å would have {len(repeated(cell, LENGTHS[-1]))} atoms")
    counts = np.round(larger.cell.lengths() / cell.cell.lengths()).astype(int)
    primitive = np.linalg.inv(cell.cell.array.T) @ crystal.primitive().cell.array.T
    given = PhonopyAtoms(symbols=list(cell.symbols), cell=cell.cell.array, scaled_positions=cell.get_scaled_positions())
    # Rust's threads, phonopy's default, do not survive a fork: a worker would wait for them for ever.
    found = Phonopy(given, supercell_matrix=np.diag(counts), primitive_matrix=primitive, log_level=0, lang="C")
    found.generate_displacements(distance=DISPLACEMENT)
    forces = []
    for moved in found.supercells_with_displacements or []:
        in_time(deadline)
        atoms = Atoms(moved.symbols, cell=moved.cell, scaled_positions=moved.scaled_positions, pbc=True, calculator=calculator)
        forces.append(atoms.get_forces())
    found.forces = forces
    found.produce_force_constants()
    found.symmetrize_force_constants()
    in_time(deadline)
    return _told(found, larger)


def _told(found: Any, supercell: Atoms) -> Phonons:
    """The mesh, Γ and the path."""
    found.run_mesh(MESH, is_gamma_center=True)
    qs, frequencies = np.array(found.mesh.qpoints), _not_acoustic(found.mesh.qpoints, found.mesh.frequencies)
    bands, special = _path(found)
    imaginary = sorted((one for one in special if one.frequency < IMAGINARY), key=lambda one: one.frequency)
    anywhere = _lowest(qs[frequencies.min(axis=1).argmin()], "", frequencies[frequencies.min(axis=1).argmin()])
    if anywhere.frequency < min([IMAGINARY, *(one.frequency - SAME for one in imaginary)]):
        imaginary.insert(0, anywhere)
    share = float(
        ((frequencies < IMAGINARY).sum(axis=1) * found.mesh.weights).sum() / (sum(found.mesh.weights) * len(frequencies[0]))
    )
    highest = max(float(frequencies.max()), *(max(branch) for branch in bands.frequencies))
    gamma = sorted(_at(found, [np.zeros(3)])[0].tolist(), key=abs)[3:]  # without the acoustic ones
    return Phonons(len(supercell), supercell.cell.lengths().round(3).tolist(), round(highest, 4), imaginary, round(share, 5),
                   sorted(round(f, 4) for f in gamma), bands if len(frequencies[0]) <= BRANCHES else None)  # fmt: skip


def _path(found: Any) -> tuple[Bands, list[Mode]]:
    """Along the special points of the primitive cell, and the lowest mode of each.

    The path is ASE's, of W. Setyawan, S. Curtarolo, Comput. Mater. Sci. 49, 299 (2010).
    """
    path = Atoms(cell=found.primitive.cell, pbc=True).cell.bandpath(npoints=PATH)
    distance, at, labels = path.get_linear_kpoint_axis()
    points = [(round(float(x), 4), str(label)) for x, label in zip(at, labels, strict=True)]
    bands = Bands(distance.round(4).tolist(), _at(found, path.kpts).T.round(3).tolist(), points)
    names, qs = list(path.special_points), np.array(list(path.special_points.values()))
    return bands, [_lowest(q, name, line) for name, q, line in zip(names, qs, _at(found, qs), strict=True)]


def _at(found: Any, qs: Any) -> Array:
    """Frequencies (points, branches)."""
    found.run_qpoints(np.array(qs))
    frequencies: Array = found.qpoints.frequencies
    return frequencies


def _not_acoustic(qs: Array, frequencies: Array) -> Array:
    """With zeros in place of the three modes of Γ that move the crystal as a whole."""
    result = np.array(frequencies)
    for n in np.flatnonzero(np.abs(qs - np.round(qs)).max(axis=1) < 1e-6):
        result[n, np.argsort(np.abs(result[n]))[:3]] = 0.0
    return result


def _lowest(q: Array, name: str, frequencies: Array) -> Mode:
    lowest = float(_not_acoustic(q[None], frequencies[None]).min())
    return Mode((round(float(q[0]), 4), round(float(q[1]), 4), round(float(q[2]), 4)), name, round(lowest, 4))
