"""What happens below the shortest distance of the data, where ACE knows nothing: ACE fades out, the reference acts alone.

Between r_in (FADE_BEGINS of the shortest distance of a pair in the training data: atoms that move come a little closer than
that) and r_in - FADE the radial functions of ACE go to zero (its inner cutoff, type `distance`). The basis is built so, and
fitted so: a fade that is widened after the fit lets ACE act where nothing has bounded it, and makes holes deeper. Where the
dimer curve of ACE + reference is not higher in the middle of the fade than at r_in, or does not rise from there all the way
down to 0.3 Å, ACE's core repulsion P exp(-r^2)/r is switched on with the fade, as weak as possible. (At the beginning of the
fade it weighs next to nothing: a slope that is a trifle wrong there would ask for a wall of 10^4 eV.) It is chosen after the
fit, pair by pair: no training structure has a distance in that range, so nothing that was fitted changes, and being a repulsion
it can only raise energies. Distances in Å, energies in eV.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np

from mlip_pace.ace.basis import FADE, FADE_BEGINS
from mlip_pace.ace.evaluators import pair_energies
from mlip_pace.arrays import Array
from mlip_pace.reference import Reference, pair_name

CLOSEST, STEP = 0.3, 0.01  # Å; the dimer curves are looked at down to CLOSEST
STRONGEST = 1e5  # eV Å; a stronger core would only hide that something else is wrong


def shortest_of_every_pair(shortest: dict[str, float], elements: list[str]) -> dict[str, float]:
    """`shortest` (Å) by pair, completed: a pair that never meets in the data gets the shortest distance of all."""
    pairs = [pair_name(*pair) for pair in combinations_with_replacement(sorted(elements), 2)]
    return {pair: shortest.get(pair, min(shortest.values())) for pair in pairs}


def distances_below(r_in: float, fade: float) -> Array:
    """r_in, and from the middle of the fade down to CLOSEST (Å)."""
    return np.concatenate([[r_in], np.arange(r_in - fade / 2, CLOSEST - STEP / 2, -STEP)])


def rises(energies: Array) -> bool:
    """Whether energies at falling distances always rise."""
    return bool((np.diff(energies) > 0).all())


@dataclass(frozen=True)
class Core:
    """How ACE ends below the data, of a pair of elements."""

    r_in: float  # Å; below it ACE fades out
    delta_in: float  # Å; over this distance
    core: float  # P, eV Å; 0: no core repulsion
    rises: bool  # whether the dimer curve of ACE + reference rises, from the middle of the fade all the way down to CLOSEST


def settle(potential: Path, reference: Reference, shortest: dict[str, float]) -> dict[str, Core]:
    """Choose the core repulsion of every pair, by pair name, and write it into the B-basis file `potential`.

    A basis from a file that has no inner cutoff gets that of ours, below the `shortest` distances (Å) of the data.
    """
    from pyace.basis import BBasisConfiguration

    settled, configuration = {}, BBasisConfiguration(str(potential))
    for pair, nearest in shortest.items():
        first, second = pair.split("-")
        r_in, fade = _inner_cutoff(configuration, first, second)
        r_in, fade = (r_in, fade) if r_in else (FADE_BEGINS * nearest, FADE)
        r = distances_below(r_in, fade)
        curve = partial(_curve, configuration, reference, (first, second), r_in, fade, r)
        plain = curve(0.0)
        strength = 0.0 if rises(plain) else _weakest(plain, curve(1.0) - plain)
        strength = strength if strength <= STRONGEST else 0.0
        settled[pair] = Core(r_in, fade, strength, rises(curve(strength)))
    part = potential.with_name(f".{potential.stem}.part.yaml")
    configuration.save(str(part))
    part.replace(potential)
    return settled


def _curve(
    configuration: Any, reference: Reference, pair: tuple[str, str], r_in: float, fade: float, r: Array, strength: float
) -> Array:  # fmt: skip
    """Energies of ACE + reference at the distances r, with this core."""
    for block in _blocks(configuration, *pair):
        block.r_in, block.delta_in, block.inner_cutoff_type = r_in, fade, "distance"
        block.core_rep_parameters = [strength, 1.0]
    return pair_energies(part_of(configuration, set(pair)), *pair, r) + reference.pair(*pair, r)[0]


def part_of(configuration: Any, elements: set[str]) -> Any:
    """The part of a B-basis that these elements alone see: with ten elements the splines of all pairs take half a second."""
    from pyace.basis import BBasisConfiguration

    part = BBasisConfiguration()
    part.deltaSplineBins = configuration.deltaSplineBins
    part.funcspecs_blocks = [block for block in configuration.funcspecs_blocks if set(block.block_name.split()) <= elements]
    return part


def _weakest(plain: Array, unit: Array) -> float:
    """The smallest P for which plain + P unit rises at every step, with a margin; infinite if there is none."""
    need, give = -np.diff(plain), np.diff(unit)
    falling = need >= 0
    if (give[falling] <= 0).any():
        return np.inf
    return float(1.2 * (need[falling] / give[falling]).max() + 1e-3)


def _blocks(configuration: Any, first: str, second: str) -> list[Any]:
    """The blocks of a B-basis that hold the bond of a pair of elements."""
    return [b for b in configuration.funcspecs_blocks if sorted(b.block_name.split()) == sorted({first, second})]


def _inner_cutoff(configuration: Any, first: str, second: str) -> tuple[float, float]:
    """r_in and the width of the fade."""
    return max(((block.r_in, block.delta_in) for block in _blocks(configuration, first, second)), default=(0.0, 0.0))
