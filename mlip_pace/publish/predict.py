"""What a published potential says about new structures: energies, forces, stresses, uncertainties, extrapolation grades.

Energies (eV) are on the DFT scale, ACE + reference + E0; forces in eV/Å; stress in eV/Å^3, tension positive, where there is a
cell. `energy_uncertainty` (eV) and `forces_uncertainty` (eV/Å, by component) are σ of `ace/uncertainty.py`. `gamma` is the
extrapolation grade of an atom by the active set (Y. Lysogorskiy et al., Phys. Rev. Materials 7, 043801 (2023)), as LAMMPS's
`pace/extrapolation` has it: up to 1 it is interpolation; beyond about 5 to 10 do not trust it.

Several potentials, the members of an ensemble, are taken together: the mean of what they say, the standard deviation between
them as `energy_spread` and `forces_spread`, the root mean square of their σ, the largest of their grades.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mlip_pace.ace import activeset, core
from mlip_pace.ace.activeset import EXTRAPOLATION, Grader
from mlip_pace.ace.basis import FADE_BEGINS
from mlip_pace.ace.calculator import PotentialCalculator
from mlip_pace.ace.uncertainty import Uncertainty
from mlip_pace.arrays import VOIGT, Array
from mlip_pace.collect.audit import Audit, checked, fully_periodic, sound_geometry
from mlip_pace.collect.dataset import ATOMS, CONFIG_TYPE, ENERGY, FORCES, STRESS, structures_of
from mlip_pace.collect.files import InputFile, Unconverged, find_files
from mlip_pace.collect.geometry import shares
from mlip_pace.collect.labels import Broken, labels
from mlip_pace.collect.output import refuse_place
from mlip_pace.errors import DataError
from mlip_pace.publish import coverages, evaluate
from mlip_pace.publish.potential import Potential, intact
from mlip_pace.reference import shortest_distances
from mlip_pace.run import pool
from mlip_pace.settings import DataSettings

CHUNK = 16  # structures that a worker takes at a time
FEW, SHIFTED = 5, 0.1  # structures for each element, part of the error that is left: a shift of scale is told
LARGE = 0.05  # eV/atom; less may be a bias of the potential
NO_LABELS = "no energy and forces"  # of a structure that has neither


@dataclass(frozen=True)
class Prediction:
    """Of a structure: energy (eV), forces (n, 3), stress (3, 3) where there is a cell, grades (n,) where there is an active
    set, σ of energy and forces where the fit gave them, and the standard deviations of an ensemble.
    """

    energy: float
    forces: Array
    stress: Array | None
    gamma: Array | None
    energy_sigma: float | None
    forces_sigma: Array | None
    energy_spread: float | None = None
    forces_spread: Array | None = None

    def results(self) -> dict[str, Any]:
        """For ASE's calculator."""
        found: dict[str, Any] = {"energy": self.energy, "forces": self.forces}
        return found if self.stress is None else found | {"stress": self.stress[VOIGT]}

    def tell(self, atoms: Atoms) -> None:
        """Write the rest into a structure."""
        for name, energy, forces in (
            ("uncertainty", self.energy_sigma, self.forces_sigma),
            ("spread", self.energy_spread, self.forces_spread),
        ):
            if energy is not None and forces is not None:
                atoms.info[f"energy_{name}"], atoms.arrays[f"forces_{name}"] = energy, forces
        if self.gamma is not None:
            atoms.arrays["gamma"], atoms.info["max_gamma"] = self.gamma, float(self.gamma.max())


def opened(sidecar: Path) -> Potential:
    """The potential of a sidecar. Raises `DataError` if it is not whole."""
    potential = intact(sidecar)
    if potential is None:
        raise DataError(f"{sidecar} is not the sidecar of a whole potential", "give the potential.json of an output path")
    return potential


def predict(sidecars: Sequence[Path], data: str, output: Path, workers: int = 1) -> dict[str, Any]:
    """Write the extended XYZ file `output`, whole or not at all, for every structure of the DFT files or structures `data`.

    Returns counts, the largest grade, `errors` if there are labels, `coverage` if there are labels and uncertainties of one
    potential, `unreadable` (source and reason of each that cannot be read or evaluated), how many are `too_close`, and how many
    have labels that are `not_compared`. Raises
    `DataError` if a potential is not whole, knows not all elements, or nothing can be read; `NoInputError`, `OutputError`.
    """
    potentials = [opened(sidecar) for sidecar in sidecars]
    elements = sorted(set.intersection(*(set(potential.elements) for potential in potentials)))
    files = find_files(data)
    refuse_place(output, [file.path for file in files])
    structures, rows, unreadable, unused = _readable(files, elements, len(potentials))
    if not structures:
        raise DataError(
            f"{data}: no structure can be read{Audit(left_out=unreadable).reasons()}",
            "mend these files, or give others to `mlip-pace predict`",
        )
    predicted = together([of_structures(potential, structures, workers) for potential in potentials])
    part = output.with_name(f".{output.name}.part")
    with part.open("w") as file:
        for atoms, label, prediction in zip(structures, rows, predicted, strict=True):
            atoms.calc = SinglePointCalculator(atoms, **prediction.results())
            prediction.tell(atoms)
            if label is not None:
                atoms.info["dft_energy"], atoms.arrays["dft_forces"] = label[0], label[1]
                if label[2] is not None:
                    atoms.info["dft_stress"] = label[2]
            write(file, atoms, format="extxyz")
    part.replace(output)
    grades = [float(one.gamma.max()) for one in predicted if one.gamma is not None]
    sigmas = [one.energy_sigma / len(a) for a, one in zip(structures, predicted, strict=True) if one.energy_sigma is not None]
    close = [told for atoms in structures if (told := too_close(atoms, potentials[0])) is not None]
    summary: dict[str, Any] = {
        "structures": len(structures),
        "atoms": sum(map(len, structures)),
        "unreadable": unreadable,
        **({"not_compared": len(unused), "why_not_compared": unused[0]} if unused else {}),
        **({"too_close": len(close), "closest": close[0]} if close else {}),
        **({"largest_gamma": max(grades), "extrapolating": sum(g > EXTRAPOLATION for g in grades)} if grades else {}),
        **({"largest_energy_uncertainty": max(sigmas)} if sigmas else {}),  # eV/atom
    }
    known = [n for n, label in enumerate(rows) if label is not None]
    if known:
        table = _beside_labels([structures[n] for n in known], [rows[n] for n in known], [predicted[n] for n in known])
        summary["errors"] = evaluate.errors(table)
        if (rest := _but_for_e0(table)) is not None:
            summary["energy_mae_but_for_e0"] = rest
        calibration = potentials[0].calibration
        if len(potentials) == 1 and calibration is not None:
            summary["coverage"] = coverages.by_type(table, calibration)
            summary["coverage_table"] = coverages.table(summary["coverage"], calibration)
    return summary


def _readable(
    files: list[InputFile], elements: Sequence[str], members: int
) -> tuple[list[Atoms], list[Any], list[dict[str, str]], list[str]]:
    """The structures that can be evaluated, the labels of each (energy, forces, stress; None where they cannot be used), source
    and reason of the others, and why labels that are there cannot be used. Raises `DataError` for an element that not all of
    the potentials know.
    """
    structures, rows, unreadable, unused = list[Atoms](), list[Any](), list[dict[str, str]](), list[str]()
    for source, _, frame in chain.from_iterable(structures_of(files)):
        atoms = frame.atoms if isinstance(frame, Unconverged) else frame
        try:
            if isinstance(atoms, str):
                raise Broken(atoms)
            sound_geometry(atoms, cutoff=1.0)
        except Broken as broken:
            unreadable.append({"source": source, "reason": str(broken)})
            continue
        if foreign := sorted(set(atoms.symbols) - set(elements)):
            raise DataError(
                f"{source}: {', '.join(foreign)} not known to {'every' if members > 1 else 'the'} potential",
                f"known are {', '.join(elements) or 'no elements in common'}",
            )
        try:
            if isinstance(frame, Unconverged):
                raise Broken(frame.reason)
            label = checked(atoms, labels(atoms, DataSettings.model_construct()).found, None, cutoff=1.0)[:3]
        except Broken as broken:
            label = None
            if not str(broken).startswith(NO_LABELS):
                unused.append(f"{source}: {broken}")
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        bare.info = {key: atoms.info[key] for key in ("name", "config_type", "group") if key in atoms.info} | {"source": source}
        structures.append(bare)
        rows.append(label)
    return structures, rows, unreadable, unused


def too_close(atoms: Atoms, potential: Potential, share: float = FADE_BEGINS) -> str | None:
    """Which atoms, if any, are closer than this share of the shortest distance that the data have of such a pair, in words.

    There ACE fades out and the reference rules, so that neither grade nor σ tell of it.
    """
    return next((said for _, said in closer_than_data(atoms, potential, share).values()), None)


def closer_than_data(atoms: Atoms, potential: Potential, share: float = FADE_BEGINS) -> dict[str, tuple[float, str]]:
    """The shortest distance (Å) of each pair of elements that is below this share of the shortest that the data have, and that
    in words.
    """
    nearest = core.shortest_of_every_pair(potential.metadata["basis"]["shortest"], potential.elements)
    return {
        pair: (distance, f"{pair} {distance:.2f} Å apart, the shortest distance of the data is {nearest[pair]:.2f}")
        for pair, distance in shortest_distances([atoms], share * max(nearest.values())).items()
        if distance < share * nearest[pair]
    }


def _beside_labels(
    structures: Sequence[Atoms], rows: Sequence[Any], predicted: Sequence[Prediction]
) -> pd.DataFrame:  # fmt: skip
    """The columns that errors and coverage are made of."""
    energy, forces, stress = zip(*rows, strict=True)
    table = pd.DataFrame({ATOMS: structures, ENERGY: energy, FORCES: forces, STRESS: stress})
    table[CONFIG_TYPE] = [str(atoms.info.get("config_type", "")) for atoms in structures]
    table["energy_pred"] = [one.energy for one in predicted]
    table[coverages.ENERGY_SIGMA] = pd.Series([one.energy_sigma for one in predicted], dtype=float)
    for name, values in (
        ("forces_pred", [one.forces for one in predicted]),
        ("stress_pred", [one.stress for one in predicted]),
        (coverages.FORCES_SIGMA, [one.forces_sigma for one in predicted]),
    ):
        table[name] = pd.Series(values, dtype=object)
    return table


def _but_for_e0(table: pd.DataFrame) -> float | None:
    """The mean absolute error of energies (eV/atom) but for a constant of each element, where these are most of the error."""
    counts = table[ATOMS].map(len).to_numpy()
    elements = sorted({symbol for atoms in table[ATOMS] for symbol in set(atoms.symbols)})
    if len(table) < FEW * len(elements):
        return None
    of_elements = shares(table[ATOMS], elements)
    errors = (table.energy_pred - table[ENERGY]).to_numpy(dtype=float) / counts
    rest = errors - of_elements @ np.linalg.lstsq(of_elements, errors, rcond=None)[0]
    before, after = float(np.abs(errors).mean()), float(np.abs(rest).mean())
    return after if before > LARGE and after < SHIFTED * before else None


def of_structures(potential: Potential, structures: Sequence[Atoms], workers: int) -> list[Prediction]:
    """What one potential says of each structure."""
    calculator = PotentialCalculator(potential.path, potential.reference)
    grader = Grader.of(potential.path.parent) if activeset.FILE in potential.metadata["files"] else None
    quantify = potential.uncertainty() if potential.calibration is not None else None
    predict_some = partial(_predict, calculator=calculator, grader=grader, quantify=quantify)
    return list(chain.from_iterable(pool.parallel_map(predict_some, pool.chunks(structures, CHUNK), workers)))


def _predict(
    structures: Sequence[Atoms], calculator: PotentialCalculator, grader: Grader | None, quantify: Uncertainty | None
) -> list[Prediction]:  # fmt: skip
    sound = [fully_periodic(atoms, calculator.cutoff)[0] for atoms in structures]
    grades = grader.of_many(sound) if grader else repeat(None, len(sound))
    sigmas = quantify.of_many(sound) if quantify else repeat((None, None), len(sound))
    return [
        Prediction(*calculator.predict(atoms), gamma, *sigma)
        for atoms, gamma, sigma in zip(structures, grades, sigmas, strict=True)
    ]


def together(members: Sequence[Sequence[Prediction]]) -> list[Prediction]:
    """What an ensemble says of each structure: one member is as it is."""
    return list(members[0]) if len(members) == 1 else [_mean(predictions) for predictions in zip(*members, strict=True)]


def _mean(members: Sequence[Prediction]) -> Prediction:
    def over(name: str, combine: Any) -> Any:
        values = [getattr(one, name) for one in members]
        return None if any(value is None for value in values) else combine(np.array(values))

    def mean(values: Array) -> Array:
        return np.asarray(values.mean(axis=0))

    def root_mean_square(values: Array) -> Array:
        return np.asarray(np.sqrt((values**2).mean(axis=0)))

    def deviation(values: Array) -> Array:
        return np.asarray(values.std(axis=0, ddof=1))

    sigma = over("energy_sigma", root_mean_square)
    return Prediction(
        float(over("energy", mean)), over("forces", mean), over("stress", mean), over("gamma", partial(np.max, axis=0)),
        None if sigma is None else float(sigma), over("forces_sigma", root_mean_square), float(over("energy", deviation)),
        over("forces", deviation),
    )  # fmt: skip
