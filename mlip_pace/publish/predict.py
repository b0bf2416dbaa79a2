"""What a published potential says about new structures: energies, forces, stresses, extrapolation grades.

Energies (eV) are on the DFT scale, ACE + reference + E0; forces in eV/Å; stress in eV/Å^3, tension positive, where there is a
cell. `gamma` is the extrapolation grade of an atom by the active set (Y. Lysogorskiy et al., Phys. Rev. Materials 7, 043801
(2023)), as LAMMPS's `pace/extrapolation` has it: up to 1 it is interpolation; beyond about 5 to 10 do not trust it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mlip_pace.ace.calculator import PotentialCalculator
from mlip_pace.ace.evaluators import calculator_of
from mlip_pace.arrays import VOIGT, Array
from mlip_pace.collect.audit import checked, fully_periodic
from mlip_pace.collect.dataset import ATOMS, ENERGY, FORCES, STRESS, structures_of
from mlip_pace.collect.files import Unconverged, find_files
from mlip_pace.collect.labels import Broken, labels
from mlip_pace.errors import DataError
from mlip_pace.publish import evaluate
from mlip_pace.publish.potential import intact
from mlip_pace.run import pool
from mlip_pace.settings import DataSettings

CHUNK = 16  # structures that a worker takes at a time
EXTRAPOLATION = 5.0  # a grade beyond which a structure is spoken of


def predict(sidecar: Path, data: str, output: Path, workers: int = 1) -> dict[str, Any]:
    """Write the extended XYZ file `output`, whole or not at all, for every structure of the DFT files or structures `data`.

    Returns counts, the largest grade, `errors` if there are labels, and `unreadable` (source and reason of each). Raises
    `DataError` if the potential is not whole, knows not all elements, or nothing can be read; `NoInputError`.
    """
    potential = intact(sidecar)
    if potential is None:
        raise DataError(f"{sidecar} is not the sidecar of a whole potential", "give the potential.json of an output path")
    structures, rows, unreadable = [], [], []
    for source, _, frame in chain.from_iterable(structures_of(find_files(data))):
        atoms = frame.atoms if isinstance(frame, Unconverged) else frame
        if isinstance(atoms, str) or len(atoms) == 0:
            unreadable.append({"source": source, "reason": atoms if isinstance(atoms, str) else "no atoms"})
            continue
        if foreign := sorted(set(atoms.symbols) - set(potential.elements)):
            raise DataError(
                f"{source}: the potential does not know {', '.join(foreign)}",
                f"its elements are {', '.join(potential.elements)}",
            )
        try:
            if isinstance(frame, Unconverged):
                raise Broken(frame.reason)
            label = checked(atoms, labels(atoms, DataSettings.model_construct()).found, None, cutoff=1.0)[:3]
        except Broken:
            label = None
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        bare.info = {key: atoms.info[key] for key in ("name", "config_type", "group") if key in atoms.info} | {"source": source}
        structures.append(bare)
        rows.append(label)
    if not structures:
        reasons = "".join(f"\n  {u['source']}: {u['reason']}" for u in unreadable)
        raise DataError(f"{data}: no structure can be read{reasons}", "mend these files, or give others to `mlip-pace predict`")
    calculator, grader = PotentialCalculator(potential.path, potential.reference), None
    if "potential.asi" in potential.metadata["files"]:
        grader = calculator_of(potential.path.parent / "potential.yaml")
        grader.compute_projections = True  # grades are made of them
        grader.set_active_set(str(potential.path.parent / "potential.asi"))
    predict_some = partial(_predict, calculator=calculator, grader=grader)
    done = pool.parallel_map(predict_some, pool.chunks(structures, CHUNK), workers)
    predicted = [one for part in done for one in part]
    part = output.with_name(f".{output.name}.part")
    with part.open("w") as file:
        for atoms, label, (energy, forces, stress, gamma) in zip(structures, rows, predicted, strict=True):
            results = {"energy": energy, "forces": forces} | ({} if stress is None else {"stress": stress[VOIGT]})
            atoms.calc = SinglePointCalculator(atoms, **results)
            if gamma is not None:
                atoms.arrays["gamma"], atoms.info["max_gamma"] = gamma, float(gamma.max())
            if label is not None:
                atoms.info["dft_energy"], atoms.arrays["dft_forces"] = label[0], label[1]
                if label[2] is not None:
                    atoms.info["dft_stress"] = label[2]
            write(file, atoms, format="extxyz")
    part.replace(output)
    grades = [float(gamma.max()) for *_, gamma in predicted if gamma is not None]
    summary: dict[str, Any] = {
        "structures": len(structures),
        "atoms": sum(map(len, structures)),
        "unreadable": unreadable,
        **({"largest_gamma": max(grades), "extrapolating": sum(g > EXTRAPOLATION for g in grades)} if grades else {}),
    }
    known = [n for n, label in enumerate(rows) if label is not None]
    if known:
        energy, forces, stress = zip(*(rows[n] for n in known), strict=True)
        columns = {ATOMS: [structures[n] for n in known], ENERGY: energy, FORCES: forces, STRESS: stress}
        table = pd.DataFrame(columns)
        for place, name in enumerate(("energy_pred", "forces_pred", "stress_pred")):
            table[name] = pd.Series([predicted[n][place] for n in known], dtype=object if place else float)
        summary["errors"] = evaluate.errors(table)
    return summary


def _predict(
    structures: Sequence[Atoms], calculator: PotentialCalculator, grader: Any
) -> list[tuple[float, Array, Array | None, Array | None]]:  # fmt: skip
    rows: list[tuple[float, Array, Array | None, Array | None]] = []
    for atoms in structures:
        gamma = None
        if grader is not None:
            grader.calculate(fully_periodic(atoms, calculator.cutoff)[0])
            gamma = np.array(grader.results["gamma"], dtype=float)
        rows.append((*calculator.predict(atoms), gamma))
    return rows
