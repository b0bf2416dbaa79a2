"""The ACE basis: what pacemaker is told to build, and what pyace computes with it. The one place that imports pyace.

Radial functions, radial orders and angular momenta are those of `pacemaker -t` (python-ace, `input_template.yaml`), cut to
the body order asked for. Distances in Å.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlip_pace.ace.expansion import Expansion, Pair
from mlip_pace.arrays import Array
from mlip_pace.errors import DataError, SettingsError
from mlip_pace.reference import pair_name
from mlip_pace.settings import BasisSettings

# nradmax and lmax for correlation orders 1, 2, ... (body order minus one), by number of different elements in a function.
_ORDERS = {
    "UNARY": ([15, 6, 4, 3, 2, 2], [0, 3, 3, 2, 2, 1]),
    "BINARY": ([15, 6, 3, 2, 2, 1], [0, 3, 2, 1, 1, 0]),
    "TERNARY": ([15, 3, 3, 2, 1], [0, 2, 2, 1, 1]),
    "ALL": ([15, 3, 2, 1, 1], [0, 2, 2, 1, 1]),
}
_EMBEDDINGS = {
    "linear": {"npot": "FinnisSinclair", "fs_parameters": [1, 1], "ndensity": 1},
    "finnis-sinclair": {"npot": "FinnisSinclairShiftedScaled", "fs_parameters": [1, 1, 1, 0.5], "ndensity": 2},
}


def potential_section(basis: BasisSettings, elements: list[str], shortest: dict[str, float]) -> dict[str, Any]:
    """pacemaker's `potential` section. Below the `shortest` distance (Å) of a pair in the data ACE fades out (`core.py`)."""
    orders = basis.body_order - 1
    bond = {
        "radbase": "SBessel",
        "radparameters": [5.25],
        "rcut": basis.cutoff,
        "dcut": 0.01,
        "NameOfCutoffFunction": "cos",
        "core-repulsion": [0.0, 1.0],
        "delta_in": 0.2,
        "inner_cutoff_type": "distance",
    }
    bonds = {}
    for first, second in combinations_with_replacement(sorted(elements), 2):
        bonds[first + second] = {**bond, "r_in": shortest[pair_name(first, second)]}
    functions: dict[str, Any] = {
        species: {"nradmax_by_orders": n[:orders], "lmax_by_orders": lmax[:orders]} for species, (n, lmax) in _ORDERS.items()
    }
    return {
        "deltaSplineBins": 0.001,
        "elements": sorted(elements),
        "embeddings": {"ALL": _EMBEDDINGS[basis.embedding]},
        "bonds": bonds,
        "functions": {"number_of_functions_per_element": basis.functions, **functions},
    }


def from_file(start: str) -> dict[str, Any] | None:
    """The potential section of MLIP_PACE_TRAINING_START if that is a B-basis file, else nothing. Raises `SettingsError`."""
    if start in ("auto", "linear", "zero"):
        return None
    section, reason = {"filename": str(Path(start).resolve())}, "no such file"
    if Path(start).is_file():
        try:
            build(section)
            return section
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
    hint = "linear, zero, auto, or a B-basis file (.yaml) is expected"
    raise SettingsError(f"MLIP_PACE_TRAINING_START={start}: {reason}", hint)


def refuse_other_elements(potential: dict[str, Any], elements: list[str]) -> None:
    """Raise `DataError` if a basis read from a file lacks elements of the data."""
    from pyace.basis import ACEBBasisSet

    missing = sorted(set(elements) - set(ACEBBasisSet(build(potential)).elements_name))
    if missing:
        raise DataError(
            f"the potential of MLIP_PACE_TRAINING_START has no {', '.join(missing)}, but the data have",
            "start from a potential that has these elements, or leave MLIP_PACE_TRAINING_START out",
        )


def build(potential: dict[str, Any]) -> Any:
    """pyace's `BBasisConfiguration` of a potential section: coefficients zero, or those of the file that it names."""
    from pyace.basis import BBasisConfiguration
    from pyace.basisextension import construct_bbasisconfiguration

    return BBasisConfiguration(potential["filename"]) if "filename" in potential else construct_bbasisconfiguration(potential)


def size(potential: dict[str, Any]) -> dict[str, int]:
    """Number of functions of each element and of parameters (function and radial coefficients) in all."""
    from pyace.basis import ACEBBasisSet

    basis = ACEBBasisSet(build(potential))
    counts = [len(one) + len(more) for one, more in zip(basis.basis_rank1, basis.basis, strict=True)]
    return {**dict(zip(basis.elements_name, counts, strict=True)), "parameters": len(basis.all_coeffs)}


def expansion(potential: dict[str, Any]) -> Expansion:
    """The basis of a potential section in arrays: its functions and the derivatives by its coefficients."""
    from pyace.basis import ACEBBasisSet

    return Expansion(ACEBBasisSet(build(potential)))


def design_rows(potential: dict[str, Any], structures: Iterable[Atoms]) -> Iterator[Array]:
    """For each structure the rows (1 + 3 n + 6, functions) of its energy, its forces and its virial, without weights.

    Columns are the functions of the elements in the order of the basis; times the coefficients they give eV, eV/Å and eV.
    """
    return (rows for rows, _ in expansion(potential).rows(structures, stress=True))


def radial_pairs(potential: dict[str, Any]) -> dict[Pair, slice]:
    """Where the radial coefficients of each pair of elements are among all coefficients, which they precede."""
    from pyace.basis import ACEBBasisSet

    basis = ACEBBasisSet(build(potential))
    slices, first = {}, 0
    for pair in combinations_with_replacement(range(basis.nelements), 2):
        last = first + int(np.prod(np.shape(basis.map_bond_specifications[pair].radcoefficients)))
        slices[pair] = slice(first, last)
        first = last
    return slices


class Predictor:
    """ACE alone with the coefficients of a potential section, relative to free atoms. By the fastest evaluator."""

    def __init__(self, potential: dict[str, Any]) -> None:
        from pyace.basis import ACEBBasisSet
        from pyace.calculator import ACECalculator
        from pyace.evaluator import ACERecursiveEvaluator

        self._basis = ACEBBasisSet(build(potential))
        # Neither does the evaluator keep its basis alive, nor the calculator its evaluator.
        self._product_basis = self._basis.to_ACECTildeBasisSet()
        self._evaluator, self._calculator = ACERecursiveEvaluator(), ACECalculator()
        self._evaluator.set_basis(self._product_basis)
        self._calculator.set_evaluator(self._evaluator)

    def __call__(self, atoms: Atoms) -> Array:
        """Energy, forces and virial (1 + 3 n + 6,): eV, eV/Å, eV in Voigt's order."""
        from pyace.atomicenvironment import aseatoms_to_atomicenvironment

        elements, cutoff = self._basis.elements_to_index_map, self._basis.cutoffmax
        self._calculator.compute(aseatoms_to_atomicenvironment(atoms, cutoff=cutoff, elements_mapper_dict=elements))
        virial = np.array(self._calculator.virial)[[0, 1, 2, 5, 4, 3]]  # pyace's order is xx, yy, zz, xy, xz, yz
        return np.concatenate([[self._calculator.energy], np.ravel(self._calculator.forces), virial])


def smoothness(potential: dict[str, Any]) -> Array:
    """Prior scales (functions,), in the order of the columns of `design_rows`: 1/(1 + Σ (n^2 + l^2)) of each function."""
    from pyace.basis import ACEBBasisSet

    basis = ACEBBasisSet(build(potential))
    functions = [f for one, more in zip(basis.basis_rank1, basis.basis, strict=True) for f in (*one, *more)]
    return np.array([1 / (1 + sum(n**2 + l**2 for n, l in zip(f.ns, f.ls, strict=True))) for f in functions])  # noqa: E741


def radial_coefficients(potential: dict[str, Any]) -> Array:
    """The coefficients of the radial functions, of one pair of elements after the other."""
    from pyace.basis import ACEBBasisSet

    return np.array(ACEBBasisSet(build(potential)).crad_coeffs)


def write_linear(target: Path, potential: dict[str, Any], coefficients: Array, radial: Array | None = None) -> None:
    """Write a B-basis file with these coefficients (functions,) in the first density and zeros in the others.

    `radial` are the coefficients of the radial functions, if they are to be other than in `potential`.
    """
    from pyace.basis import ACEBBasisSet

    basis = ACEBBasisSet(build(potential))
    values = np.array(basis.all_coeffs)
    count = len(basis.crad_coeffs)
    if radial is not None:
        values[:count] = radial
    densities = np.zeros((len(coefficients), (len(values) - count) // len(coefficients)))
    densities[:, 0] = coefficients
    values[count:] = densities.ravel()
    basis.all_coeffs = values
    part = target.with_name(f".{target.stem}.part.yaml")
    basis.to_BBasisConfiguration().save(str(part))
    part.replace(target)


def cutoff_of(potential: dict[str, Any]) -> float:
    """The largest cutoff radius (Å) of a potential section."""
    from pyace.basis import ACEBBasisSet

    return float(ACEBBasisSet(build(potential)).cutoffmax)


def pair_energies(potential: Any, first: str, second: str, distances: Array) -> Array:
    """Energies (eV) of two atoms alone at the distances (Å), relative to infinitely far apart.

    `potential` is a `.yaml` or `.yace` file, or a `BBasisConfiguration`.
    """
    calculator = calculator_of(potential)
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
