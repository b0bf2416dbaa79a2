"""Elastic constants from strained cells of the data.

A cell counts if it is a cell of the crystal strained by little, with the atoms where the strain takes them and at rest there.
The constants come from stresses where all have them, σ = C:η, else from energies, E/V = σ:η + η:C:η/2, with Green's strain η;
one that stresses and energies do not agree in is absent, since labels of one of them are wrong.
Strains count in pairs of opposite sign, since the third order cancels in these. A constant that they leave open is absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.units import GPa
from scipy.linalg import polar

from mlip_pace.arrays import VOIGT, Array
from mlip_pace.collect.dataset import ATOMS, STRESS
from mlip_pace.physics import elastic, volumes
from mlip_pace.physics.crystals import SAME_PLACE, Crystal, rotations_of, symmetry_of

AT_REST = 0.05  # eV/Å: largest force
LARGEST, SMALLEST = 0.025, 1e-4  # entries of a strain
OPPOSITE = 0.1  # of a strain, that its opposite may differ by
AGREE = 0.2, 2.0  # relative and GPa: what stresses and energies give of a constant, if it is to be told
SURE = 1e-3  # of a constant, that the strains leave open at most; a shear of ε has ε^2 along the axes, too (F = 1 + ε)


def of_data(crystal: Crystal, alike: pd.DataFrame, same: pd.DataFrame) -> tuple[dict[str, float] | None, int]:
    """The elastic constants (GPa) that strained cells determine, and how many cells these are.

    `alike` are the structures with the composition of the crystal, `same` those that are the crystal; both have `energy`
    (eV/atom) and `force` (the largest, eV/Å).
    """
    rotations = rotations_of(crystal.primitive())
    strains, targets = list[Array](), list[tuple[float, Array | None]]()
    for _, row in same[same.force < AT_REST].sort_values("energy").head(3).iterrows():
        found = [one for one in _strained(row, alike) if one[-1].force < AT_REST]
        if len(found) <= len(strains):
            continue
        stress = _stress(row)
        strains = [strain for strain, _, _ in found]
        targets = [
            ((other.energy - row.energy) * len(row[ATOMS]) / row[ATOMS].cell.volume,
             None if stress is None or (strained := _stress(other)) is None else turned.T @ strained @ turned - stress)
            for _, turned, other in found
        ]  # fmt: skip
        turn = _to_standard(row[ATOMS])
        strains = [turn @ strain @ turn.T for strain in strains]
        targets = [(energy, None if s is None else turn @ s @ turn.T) for energy, s in targets]
    paired = [n for n, one in enumerate(strains) if _has_opposite(one, strains, rotations)]
    if not paired:
        return None, 0
    strains, targets = [strains[n] for n in paired], [targets[n] for n in paired]
    constants = fitted(strains, [energy for energy, _ in targets], None, rotations, crystal.system)
    stresses = [stress for _, stress in targets if stress is not None]
    if len(stresses) == len(strains):
        by_stress = fitted(strains, None, stresses, rotations, crystal.system)
        constants = {name: value for name, value in by_stress.items() if _agree(value, constants.get(name, value))}
    return (constants, len(paired)) if constants else (None, 0)


def _stress(row: Any) -> Array | None:
    """The label (3, 3) of a structure, eV/Å^3, if it has one."""
    stress = row.get(STRESS)
    return stress if isinstance(stress, np.ndarray) else None


def _agree(one: float, other: float) -> bool:
    return abs(one - other) < AGREE[0] * max(abs(one), abs(other)) + AGREE[1]


def _strained(reference: Any, alike: pd.DataFrame) -> Iterator[tuple[Array, Array, Any]]:
    """Of every structure that is the reference strained by little, Green's strain and the rotation (3, 3), and its row."""
    at_rest = reference[ATOMS]
    for _, row in alike.iterrows():
        atoms = row[ATOMS]
        if len(atoms) != len(at_rest) or (atoms.numbers != at_rest.numbers).any():
            continue
        deformation = np.linalg.solve(at_rest.cell.array, atoms.cell.array)
        strain = (deformation @ deformation.T - np.eye(3)) / 2
        apart = atoms.get_scaled_positions() - at_rest.get_scaled_positions()
        apart -= apart[0]
        apart -= np.round(apart)
        if SMALLEST < np.abs(strain).max() < LARGEST and np.abs(apart).max() < volumes.SAME_SHAPE:
            yield strain, polar(deformation.T)[0], row


def _to_standard(atoms: Atoms) -> Array:
    """The rotation (3, 3) of the axes of a crystal to those of its standard cell."""
    found = symmetry_of(atoms, SAME_PLACE)
    rotation: Array = np.eye(3) if found is None else np.array(found.std_rotation_matrix)
    return rotation


def _has_opposite(strain: Array, strains: list[Array], rotations: Array) -> bool:
    """Whether the opposite strain, or what the symmetry makes equal to it, is there as well."""
    turned = np.einsum("nab,mbc,ndc->nmad", rotations, np.array(strains), rotations)
    return bool((np.abs(turned + strain).max(axis=(2, 3)) < OPPOSITE * np.abs(strain).max()).any())


def fitted(
    strains: list[Array], energies: list[float] | None, stresses: list[Array] | None, rotations: Array, system: str
) -> dict[str, float]:
    """The independent constants (GPa) that strains (3, 3) determine, with stresses (3, 3), or else energies, in eV/Å^3."""
    basis = _basis(rotations)
    if stresses is not None:
        rows = [np.einsum("kijmn,mn->kij", basis, strain)[:, *VOIGT].T for strain in strains]
        wanted = [stress[VOIGT] for stress in stresses]
    else:
        pressed = np.array([_symmetric(np.eye(3)[i][:, None] * np.eye(3)[j], rotations) for i, j in zip(*VOIGT, strict=True)])
        second = [np.einsum("kijmn,ij,mn->k", basis, strain, strain) / 2 for strain in strains]
        first = [np.einsum("kij,ij->k", pressed, strain) for strain in strains]
        rows = [np.concatenate(both)[None] for both in zip(second, first, strict=True)]
        wanted = [np.array([energy]) for energy in energies or []]
    design, values = np.concatenate(rows), np.concatenate(wanted)
    sizes = np.abs(design).max(axis=0)
    constants = np.arange(len(sizes)) < len(basis)  # the other columns are those of the pressure on the crystal
    scale = np.where(constants, sizes[constants].max(), max([SMALLEST, *sizes[~constants]]))
    _, singular, right = np.linalg.svd(design / scale, full_matrices=True)
    rank = int((singular > 1e-6 * singular[0]).sum())
    solution = np.linalg.lstsq(design / scale, values, rcond=1e-6)[0] / scale
    nothing = right[rank:, : len(basis)]  # what the strains leave open
    matrices = np.array([one[VOIGT][:, *VOIGT] for one in basis])
    matrix = np.einsum("k,kmn->mn", solution[: len(basis)], matrices) / GPa
    found = elastic.named(matrix, system)
    open_ones = [elastic.named(np.einsum("k,kmn->mn", one, matrices), system) for one in nothing]
    return {name: value for name, value in found.items() if all(abs(one.get(name, 0.0)) < SURE for one in open_ones)}


def _basis(rotations: Array) -> Array:
    """Tensors (k, 3, 3, 3, 3) of which all with this symmetry are sums."""
    tensors = []
    for m in range(6):
        for n in range(m, 6):
            unit = np.zeros((3, 3, 3, 3))
            unit[VOIGT[0][m], VOIGT[1][m], VOIGT[0][n], VOIGT[1][n]] = 1.0
            tensors.append(elastic.symmetrised(unit, rotations).ravel())
    _, singular, right = np.linalg.svd(np.array(tensors))
    result: Array = right[: int((singular > 1e-8).sum())].reshape(-1, 3, 3, 3, 3)
    return result


def _symmetric(tensor: Array, rotations: Array) -> Array:
    turned: Array = np.einsum("nab,bc,ndc->ad", rotations, tensor + tensor.T, rotations) / len(rotations)
    return turned
