"""The ACE basis: what pacemaker is told to build, and what pyace computes with it. The one place that imports pyace.

Radial functions, radial orders and angular momenta are those of `pacemaker -t` (python-ace, `input_template.yaml`), cut to
the body order asked for. Distances in Å.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms

from mlip_pace.reference import pair_name
from mlip_pace.settings import BasisSettings

Array = npt.NDArray[np.float64]

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
        species: {"nradmax_by_orders": n[:orders], "lmax_by_orders": l[:orders]} for species, (n, l) in _ORDERS.items()
    }
    return {
        "deltaSplineBins": 0.001,
        "elements": sorted(elements),
        "embeddings": {"ALL": _EMBEDDINGS[basis.embedding]},
        "bonds": bonds,
        "functions": {"number_of_functions_per_element": basis.functions, **functions},
    }


def build(section: dict[str, Any]) -> Any:
    """pyace's `BBasisConfiguration` of a potential section, coefficients zero."""
    from pyace.basisextension import construct_bbasisconfiguration

    return construct_bbasisconfiguration(section)


def size(section: dict[str, Any]) -> dict[str, int]:
    """Number of functions of each element and of parameters (function and radial coefficients) in all."""
    from pyace.basis import ACEBBasisSet

    basis = ACEBBasisSet(build(section))
    counts = [len(one) + len(more) for one, more in zip(basis.basis_rank1, basis.basis, strict=True)]
    return {**dict(zip(basis.elements_name, counts, strict=True)), "parameters": len(basis.all_coeffs)}


def projections(section: dict[str, Any], structures: Iterable[Atoms]) -> list[dict[str, Array]]:
    """The basis functions of every atom: for each structure, by element, an array (atoms of it, functions)."""
    from pyace.atomicenvironment import aseatoms_to_atomicenvironment
    from pyace.basis import ACEBBasisSet
    from pyace.calculator import ACECalculator
    from pyace.evaluator import ACEBEvaluator

    basis = ACEBBasisSet(build(section))
    evaluator = ACEBEvaluator(basis)  # the calculator does not keep it alive
    calculator = ACECalculator(evaluator)
    rows = []
    for atoms in structures:
        environment = aseatoms_to_atomicenvironment(
            atoms, cutoff=basis.cutoffmax, elements_mapper_dict=basis.elements_to_index_map
        )
        calculator.compute(environment, compute_projections=True)
        values = calculator.projections
        symbols = np.array(list(atoms.symbols))
        rows.append({s: np.array([values[n] for n in np.flatnonzero(symbols == s)]) for s in sorted(set(symbols))})
    return rows


def pair_energies(potential: Path, first: str, second: str, distances: Array) -> Array:
    """Energies (eV) of two atoms alone at the distances (Å), relative to infinitely far apart, by a `.yaml` or `.yace` file."""
    calculator = calculator_of(potential)
    cutoff = calculator.cutoff
    far, *energies = (_energy(calculator, Atoms([first, second], [(0, 0, 0), (0, 0, r)])) for r in (2 * cutoff, *distances))
    return np.array(energies) - far


def _energy(calculator: Any, atoms: Atoms) -> float:
    atoms.calc = calculator
    return float(atoms.get_potential_energy())


def calculator_of(potential: Path) -> Any:
    """ASE calculator of ACE alone (E0 of a `.yace` included)."""
    from pyace import PyACECalculator

    calculator = PyACECalculator(str(potential))
    calculator.compute_projections = False
    return calculator
