"""How many errors are within the intervals that the potential gives (`ace/uncertainty.py`), of structures with labels.

Energies count once a structure, forces by component; a component that symmetry makes zero does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain

import numpy as np
import pandas as pd
from ase import Atoms

from mlip_pace.ace.uncertainty import Calibration, Scale, Uncertainty
from mlip_pace.arrays import Array
from mlip_pace.collect import columns
from mlip_pace.collect.dataset import ATOMS, CONFIG_TYPE, ENERGY, FORCES
from mlip_pace.run import pool
from mlip_pace.run.pool import Workers

ENERGY_SIGMA, FORCES_SIGMA = "energy_sigma", "forces_sigma"  # columns: eV; (n, 3) eV/Å
EVERYTHING = "all"
CHUNK = 16  # structures that a worker takes at a time
AT_FLOOR = 1 + 1e-6  # times the floor: σ of a component that is zero by symmetry


def sigmas(frame: pd.DataFrame, wanted: Array, quantify: Uncertainty, workers: Workers) -> pd.DataFrame:
    """The columns ENERGY_SIGMA and FORCES_SIGMA of a frame: of the rows that are wanted, none of the others."""
    found = columns.GrowingFrame([FORCES_SIGMA])
    known = iter(of_structures(frame[wanted][ATOMS].array, quantify, workers))
    for want in wanted:
        energy, forces = next(known) if want else (np.nan, None)
        found.append({ENERGY_SIGMA: energy, FORCES_SIGMA: forces})
    return found.frame().set_index(frame.index)


def of_structures(structures: Sequence[Atoms], quantify: Uncertainty, workers: Workers) -> list[tuple[float, Array]]:
    """σ of the energy and the forces of each structure."""
    parts = pool.parallel_map(partial(_some, quantify=quantify), pool.chunks(structures, CHUNK), workers)
    return list(chain.from_iterable(parts))


def _some(structures: Sequence[Atoms], quantify: Uncertainty) -> list[tuple[float, Array]]:
    return list(quantify.of_many(structures))


def errors_and_sigmas(frame: pd.DataFrame, calibration: Calibration) -> dict[str, tuple[Array, Array]]:
    """|error| and σ of energies (eV/atom) and of the force components (eV/Å) that count."""
    counts = frame[ATOMS].map(len).to_numpy()
    energy = np.abs((frame.energy_pred - frame[ENERGY]).to_numpy(dtype=float)) / counts
    forces = np.abs(np.concatenate([(p - t).ravel() for p, t in zip(frame.forces_pred, frame[FORCES], strict=True)]))
    sigma = np.concatenate([np.ravel(s) for s in frame[FORCES_SIGMA]])
    count = sigma > AT_FLOOR * calibration.forces.floor
    return {
        "energy": (energy, frame[ENERGY_SIGMA].to_numpy(dtype=float) / counts),
        "forces": (forces[count], sigma[count]),
    }


def by_type(frame: pd.DataFrame, calibration: Calibration) -> dict[str, dict[str, dict[float, float]]]:
    """Of all and, where there are several, by config_type: what part of the errors of energy and forces is within the
    interval of each share.
    """
    kinds = dict(iter(frame.groupby(CONFIG_TYPE)))
    parts = {EVERYTHING: frame} | (kinds if len(kinds) > 1 else {})
    return {name: of(part, calibration) for name, part in parts.items()}


def of(frame: pd.DataFrame, calibration: Calibration) -> dict[str, dict[float, float]]:
    scales: dict[str, Scale] = {"energy": calibration.energy, "forces": calibration.forces}
    found = {}
    for name, (error, sigma) in errors_and_sigmas(frame, calibration).items():
        if len(error):
            found[name] = {share: float(np.mean(error <= w * sigma)) for share, w in scales[name].widths.items()}
    return found


def table(coverage: dict[str, dict[str, dict[float, float]]], calibration: Calibration) -> str:
    """The coverage as text."""
    shares = list(calibration.energy.widths)
    lines = [f"{'errors within their interval':<30}{'energy':<{8 * len(shares)}}{'forces'}"]
    lines.append(f"{'':<24}" + "".join(f"{share:>8.0%}" for share in shares) * 2)
    for kind, found in coverage.items():
        parts = [found.get(name, {}).get(share) for name in ("energy", "forces") for share in shares]
        lines.append(f"{kind[:24]:<24}" + "".join(f"{'' if part is None else f'{part:.0%}':>8}" for part in parts))
    return "\n".join(lines)
