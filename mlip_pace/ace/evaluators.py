"""Energies and forces of a potential, by pyace's fastest evaluator. Energies in eV, distances in Å."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ase import Atoms

from mlip_pace.ace.basis import Basis, BasisFile, basis_set
from mlip_pace.arrays import Array

T = TypeVar("T")


class Predictor:
    """ACE alone with the coefficients of a basis, relative to free atoms. By the fastest evaluator."""

    def __init__(self, basis: Basis) -> None:
        from pyace.calculator import ACECalculator
        from pyace.evaluator import ACERecursiveEvaluator

        self._given = basis
        self._basis = basis_set(basis)
        # Neither does the evaluator keep its basis alive, nor the calculator its evaluator.
        self._product_basis = self._basis.to_ACECTildeBasisSet()
        self._evaluator, self._calculator = ACERecursiveEvaluator(), ACECalculator()
        self._evaluator.set_basis(self._product_basis)
        self._calculator.set_evaluator(self._evaluator)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent as what it is made of: pyace's objects cannot be sent."""
        if isinstance(self._given, BasisFile):
            return from_content, (_of_file, self._given.path.name, self._given.path.read_bytes())
        return Predictor, (self._given,)

    def __call__(self, atoms: Atoms) -> Array:
        """Energy, forces and virial (1 + 3 n + 6,): eV, eV/Å, eV in Voigt's order."""
        from pyace.atomicenvironment import aseatoms_to_atomicenvironment

        elements, cutoff = self._basis.elements_to_index_map, self._basis.cutoffmax
        self._calculator.compute(aseatoms_to_atomicenvironment(atoms, cutoff=cutoff, elements_mapper_dict=elements))
        virial = np.array(self._calculator.virial)[[0, 1, 2, 5, 4, 3]]  # pyace's order is xx, yy, zz, xy, xz, yz
        return np.concatenate([[self._calculator.energy], np.ravel(self._calculator.forces), virial])


def _of_file(path: Path) -> Predictor:
    return Predictor(BasisFile(path))


def from_content(make: Callable[..., T], name: str, content: bytes, *more: Any) -> T:
    """`make(path, *more)` of a file with this name and content: on a worker elsewhere, what was made of a file here."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        return make(path, *more)


def pair_energies(potential: Any, first: str, second: str, distances: Array) -> Array:
    """Energies (eV) of two atoms alone at the distances (Å), relative to infinitely far apart.

    `potential` is what `calculator_of` gives, which is read once for many pairs, or what it takes.
    """
    calculator = potential if hasattr(potential, "calculate") else calculator_of(potential)
    apart = 2 * calculator.cutoff
    # All dimers at once, side by side.
    places = [(apart * n, 0, z) for n, r in enumerate((apart, *distances)) for z in (0, r)]
    calculator.calculate(Atoms([first, second] * (1 + len(distances)), places))
    far, *energies = calculator.results["energies"].reshape(-1, 2).sum(axis=1)
    relative: Array = np.array(energies) - far
    return relative


def calculator_of(potential: Any) -> Any:
    """ASE calculator of ACE alone (E0 of a `.yace` included), of a `.yaml` or `.yace` file or a `BBasisConfiguration`."""
    from pyace import PyACECalculator

    given = str(potential) if isinstance(potential, Path) else potential
    calculator = PyACECalculator(given, recursive_evaluator=True, recursive=True)  # of a .yace: the fastest
    calculator.compute_projections = False
    return calculator
