"""A second look at the labels of a run: energy differences go with forces times displacements, and with stress times strain.

From a frame to the next, the work of the mean of their forces is the trapezoidal rule for the energy difference, and the
spread of the two works that the forces of either frame alone would do is the scale of its error. On public runs of VASP, CASTEP
and FHI-aims (docs/readers.md) the error is 0.1 to 30 % of the spread where the labels belong together, and about as large as
it where energies, forces or positions are those of the frame before or after.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from mlip_pace.arrays import VOIGT, Array
from mlip_pace.collect.files import Frame

FARTHEST = 0.3  # Å that an atom moves between frames that are still compared
STRETCHED = 0.05  # ... and that a cell is strained
NOISE = 1e-3  # eV an atom: of self-consistency, or of plane waves where the cell changes
FEWEST = 4  # pairs of frames that tell a shift from chance
TIMES_NOISE = 5  # for a single pair, of which nothing else tells what is usual

_SHIFTS = {  # of energies and of forces, in frames
    (1, 0): "the energies are those of the frames after",
    (-1, 0): "the energies are those of the frames before",
    (0, 1): "the forces are those of the frames after",
    (0, -1): "the forces are those of the frames before",
    (1, 1): "the positions are those of the frames before",
    (-1, -1): "the positions are those of the frames after",
}

_Labels = tuple[float, Array, Array | None]  # energy in eV, forces in eV/Å, stress (6,) in eV/Å^3 with ASE's sign


def contradiction(frames: Sequence[Frame]) -> str | None:
    """What speaks against the labels of the frames of one file, as a sentence; None if nothing does.

    `frames` are in the order of the file. What has no forces is passed over, and so are frames too far apart to be compared.
    """
    labelled = [(atoms, labels) for atoms in frames if isinstance(atoms, Atoms) and (labels := _labels(atoms))]
    run, labels_of = [atoms for atoms, _ in labelled], [labels for _, labels in labelled]
    if len(run) < 2 or any(list(atoms.numbers) != list(run[0].numbers) for atoms in run):
        return None
    energies = np.array([energy for energy, _, _ in labels_of])
    around = [None, *labels_of, None, None]  # of the frame before, the two of a pair, the frame after
    works = np.array([_works(run[n], run[n + 1], around[n : n + 4]) for n in range(len(run) - 1)])
    noise = NOISE * len(run[0])
    errors, spread, largest = _errors(energies, works, 0, 0)
    usable = np.isfinite(errors)
    if not usable.any():
        return None
    allowed = spread + largest / 2 + TIMES_NOISE * noise
    worst = int(np.nanargmax(np.abs(errors) / allowed))
    if abs(errors[worst]) > allowed[worst]:
        change = energies[worst + 1] - energies[worst]
        return (
            f"between frames {worst} and {worst + 1} (of those with forces) the energy changes by {change:.4g} eV, "
            f"and the work of forces and stress is {change - errors[worst]:.4g} eV: they do not belong together"
        )
    if usable.sum() < FEWEST:
        return None
    ratio = _rms(errors) / np.hypot(_rms(spread[usable]), noise)
    for (energy, force), what in _SHIFTS.items():
        other = _errors(energies, works, energy, force)[0]
        both = usable & np.isfinite(other)
        if ratio > 0.05 and both.sum() >= FEWEST - 1 and _rms(other[both]) < 0.2 * _rms(errors[both]):
            return f"energies, forces and positions do not go together, and would do so if {what}: they are mixed up"
    if ratio > 0.6:
        return "the energy differences do not go with forces times displacements"
    return None


def _labels(atoms: Atoms) -> _Labels | None:
    """None without energy or forces."""
    results = {} if atoms.calc is None else atoms.calc.results
    energy, forces = results.get("free_energy", results.get("energy")), results.get("forces")
    if energy is None or forces is None or np.shape(forces) != (len(atoms), 3):
        return None
    stress = results.get("stress")
    tensor = None if stress is None or np.size(stress) != 6 else np.asarray(stress, float).reshape(6)
    return float(energy), np.asarray(forces, float), tensor


def _works(one: Atoms, other: Atoms, labels: Sequence[_Labels | None]) -> list[float]:
    """What the forces and the stress of each of `labels` do to the energy (eV) from a frame to the next; NaN if not known."""
    moved, strain, volume = other.positions - one.positions, np.zeros((3, 3)), 0.0
    if one.pbc.any():
        cells = one.cell.array, other.cell.array
        if min(abs(np.linalg.det(cell)) for cell in cells) < 1e-6:
            return [np.nan] * len(labels)
        fractions = other.get_scaled_positions(wrap=False) - one.get_scaled_positions(wrap=False)
        moved = (fractions - np.round(fractions) * one.pbc) @ (cells[0] + cells[1]) / 2
        strain = np.linalg.solve(cells[0] + cells[1], 2 * (cells[1] - cells[0]))
        volume = abs(np.linalg.det((cells[0] + cells[1]) / 2))
    strained = float(np.abs(strain).max())
    if np.linalg.norm(moved, axis=1).max() > FARTHEST or strained > STRETCHED:
        return [np.nan] * len(labels)
    symmetric = ((strain + strain.T) / 2)[VOIGT] * [1, 1, 1, 2, 2, 2]
    works = []
    for energy_forces_stress in labels:
        if energy_forces_stress is None or (strained > 1e-7 and energy_forces_stress[2] is None):
            works.append(np.nan)
            continue
        _, forces, stress = energy_forces_stress
        works.append(-float((forces * moved).sum()) + (0.0 if stress is None else volume * float(stress @ symmetric)))
    return works


def _errors(energies: Array, works: Array, energy: int, force: int) -> tuple[Array, Array, Array]:
    """Of every pair: energy difference less mean work; spread of the works; the larger one. With labels of other frames."""
    pairs = np.arange(len(works)) + energy
    inside = (pairs >= 0) & (pairs < len(works))
    changes = np.where(inside, np.diff(energies)[np.clip(pairs, 0, len(works) - 1)], np.nan)
    first, second = works[:, 1 + force], works[:, 2 + force]
    return changes - (first + second) / 2, np.abs(first - second), np.maximum(np.abs(first), np.abs(second))


def _rms(values: Array) -> float:
    return float(np.sqrt(np.nanmean(values**2)))
