"""The ACE basis: what pacemaker is told to build, or a file that has one.

Radial functions are those of `pacemaker -t` (python-ace, `input_template.yaml`), radial orders and angular momenta those of
`shapes.py`, cut to the body order asked for. Distances in Å.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlip_pace.ace.shapes import shapes
from mlip_pace.arrays import Array
from mlip_pace.errors import DataError, SettingsError
from mlip_pace.reference import pair_name
from mlip_pace.settings import BasisSettings

if TYPE_CHECKING:  # whoever only predicts needs no compiler
    from mlip_pace.ace.expansion import Expansion, Pair

_EMBEDDINGS = {
    "linear": {"npot": "FinnisSinclair", "fs_parameters": [1, 1], "ndensity": 1},
    "finnis-sinclair": {"npot": "FinnisSinclairShiftedScaled", "fs_parameters": [1, 1, 1, 0.5], "ndensity": 2},
}

# Where ACE fades out, and over what: a little below the shortest distance of a pair in the data, as what moves comes closer.
FADE_BEGINS, FADE = 0.95, 0.2  # of that distance; Å


@dataclass(frozen=True)
class Section:
    """A basis to be built from pacemaker's `potential` section; its coefficients are zero."""

    content: dict[str, Any]

    def __hash__(self) -> int:
        return hash(repr(self.content))

    @property
    def for_pacemaker(self) -> dict[str, Any]:
        """What input.yaml says of it."""
        return self.content

    @property
    def state(self) -> Hashable:
        """Never changes."""
        return None

    def configuration(self) -> Any:
        """pyace's `BBasisConfiguration`."""
        from pyace.basisextension import construct_bbasisconfiguration

        return construct_bbasisconfiguration(self.content)


@dataclass(frozen=True)
class BasisFile:
    """The basis of a B-basis file (`.yaml`), with its coefficients."""

    path: Path

    @property
    def for_pacemaker(self) -> dict[str, Any]:
        """What input.yaml says of it."""
        return {"filename": str(self.path.resolve())}

    @property
    def state(self) -> Hashable:
        """Changes when the file does."""
        found = self.path.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def configuration(self) -> Any:
        """pyace's `BBasisConfiguration`."""
        from pyace.basis import BBasisConfiguration

        return BBasisConfiguration(str(self.path))


Basis = Section | BasisFile


@dataclass(frozen=True)
class Size:
    """Number of functions of each element, and of parameters (function and radial coefficients) in all."""

    functions: dict[str, int]
    parameters: int


def section(settings: BasisSettings, elements: list[str], shortest: dict[str, float]) -> Section:
    """The basis of the settings; what is `auto` in them is as where the search begins.

    A little below the `shortest` distance (Å) of a pair in the data ACE fades out (`core.py`). Raises `SettingsError`.
    """
    orders, (cutoff, functions_per_element) = settings.body_order - 1, settings.first
    bond = {
        "radbase": "SBessel",
        "radparameters": [5.25],
        "rcut": cutoff,
        "dcut": 0.01,
        "NameOfCutoffFunction": "cos",
        "core-repulsion": [0.0, 1.0],
        "delta_in": FADE,
        "inner_cutoff_type": "distance",
    }
    bonds = {}
    for first, second in combinations_with_replacement(sorted(elements), 2):
        bonds[first + second] = {**bond, "r_in": FADE_BEGINS * shortest[pair_name(first, second)]}
    functions: dict[str, Any] = {
        keyword: {"nradmax_by_orders": n, "lmax_by_orders": lmax}
        for keyword, (n, lmax) in shapes(len(elements), orders, functions_per_element).items()
    }
    return Section({
        "deltaSplineBins": 0.001,
        "elements": sorted(elements),
        "embeddings": {"ALL": _EMBEDDINGS[settings.embedding]},
        "bonds": bonds,
        "functions": {"number_of_functions_per_element": functions_per_element, **functions},
    })  # fmt: skip


def to_start_from(start: str) -> BasisFile | None:
    """The basis of MLIP_PACE_TRAINING_START if that is a B-basis file, else nothing. Raises `SettingsError`."""
    if start in ("auto", "linear", "zero"):
        return None
    file, reason = BasisFile(Path(start)), "no such file"
    if file.path.is_file():
        try:
            file.configuration()
            return file
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
    hint = "linear, zero, auto, or a B-basis file (.yaml) is expected"
    raise SettingsError(f"MLIP_PACE_TRAINING_START={start}: {reason}", hint)


def refuse_unusable(basis: Basis, elements: list[str]) -> None:
    """Raise `DataError` if a basis from a file lacks elements of the data, `SettingsError` if one has too few functions."""
    built = basis_set(basis)
    missing = sorted(set(elements) - set(built.elements_name))
    if missing:
        raise DataError(
            f"the potential of MLIP_PACE_TRAINING_START has no {', '.join(missing)}, but the data have",
            "start from a potential that has these elements, or leave MLIP_PACE_TRAINING_START out",
        )
    # With too few functions pyace leaves out those of several elements, or all, without a word.
    functions = [f for one, more in zip(built.basis_rank1, built.basis, strict=True) for f in (*one, *more)]
    seen = {(f.mu0, mu) for f in functions for mu in f.mus}
    pairs = product(range(built.nelements), repeat=2)
    blind = [
        f"{built.elements_name[one]} with {built.elements_name[other]}" for one, other in pairs if (one, other) not in seen
    ]
    if blind:
        raise SettingsError(
            f"so few functions of {built.nelements} elements leave none of {', '.join(blind)}: they would not see each other",
            "give MLIP_PACE_BASIS_FUNCTIONS more: some tens for each element, about a hundred for four",
        )


def basis_set(basis: Basis) -> Any:
    """pyace's `ACEBBasisSet`: functions and coefficients, ready to be evaluated. It is shared: not to be changed."""
    return _shared(basis, basis.state)


def new_basis_set(basis: Basis) -> Any:
    """`basis_set` that may be changed."""
    from pyace.basis import ACEBBasisSet

    return ACEBBasisSet(basis.configuration())


@lru_cache(maxsize=2)
def _shared(basis: Basis, state: Hashable) -> Any:
    """Kept for a basis in one `state`: two, since an iteration reads one and makes another."""
    return new_basis_set(basis)


def size(basis: Basis) -> Size:
    built = basis_set(basis)
    counts = [len(one) + len(more) for one, more in zip(built.basis_rank1, built.basis, strict=True)]
    return Size(dict(zip(built.elements_name, counts, strict=True)), len(built.all_coeffs))


def expansion(basis: Basis) -> Expansion:
    """The basis in arrays: its functions and the derivatives by its coefficients."""
    from mlip_pace.ace.expansion import Expansion

    return Expansion(basis_set(basis))


def cutoff_of(basis: Basis) -> float:
    """The largest cutoff radius (Å)."""
    return float(basis_set(basis).cutoffmax)


def radial_pairs(basis: Basis) -> dict[Pair, slice]:
    """Where the radial coefficients of each pair of elements are among all coefficients, which they precede."""
    built = basis_set(basis)
    slices, first = {}, 0
    for pair in combinations_with_replacement(range(built.nelements), 2):
        last = first + int(np.prod(np.shape(built.map_bond_specifications[pair].radcoefficients)))
        slices[pair] = slice(first, last)
        first = last
    return slices


def radial_coefficients(basis: Basis) -> Array:
    """The coefficients of the radial functions, of one pair of elements after the other."""
    return np.array(basis_set(basis).crad_coeffs)


def function_coefficients(basis: Basis) -> Array:
    """The coefficients of the functions in the first density, (functions,), in the order of the columns of the design rows."""
    built = basis_set(basis)
    count = sum(len(one) + len(more) for one, more in zip(built.basis_rank1, built.basis, strict=True))
    first: Array = np.array(built.all_coeffs)[len(built.crad_coeffs) :].reshape(count, -1)[:, 0]
    return first


def smoothness(basis: Basis) -> Array:
    """Prior scales (functions,), in the order of the columns of the design rows: 1/(1 + Σ (n^2 + l^2)) of each function."""
    built = basis_set(basis)
    functions = [f for one, more in zip(built.basis_rank1, built.basis, strict=True) for f in (*one, *more)]
    return np.array([1 / (1 + sum(n**2 + l**2 for n, l in zip(f.ns, f.ls, strict=True))) for f in functions])  # noqa: E741
