"""`mlip-pace suggest`: of many structures those whose DFT would teach a potential most.

What a structure would teach is how much its energy and forces narrow what all candidates may be: a posterior covariance of the
coefficients, at first a^2 ν A^-1 (`ace/uncertainty.py`), gives mean variances of the candidates' energies per atom and of their
force components, and the gain is what the logarithms of both fall by together, so that energies and forces count alike whatever
their units (D. A. Cohn, Z. Ghahramani, M. I. Jordan, J. Artif. Intell. Res. 4, 129 (1996)). The structures are taken one after
the other, and the posterior is narrowed by each, so that the next is not one like it: with M the information so far, M = 1 at
first, and Y the rows of a structure in units of that posterior, weighted as those of the fit, M becomes M + Y^T Y. The largest
gain of log det M instead takes extremes, and errors are larger (docs/design.md). Gains hardly ever rise, so that few of
them have to be computed again (M. Minoux, in: Optimization Techniques, Springer (1978), 234). Where atoms are closer than in
the data no variance tells of what is unknown: of each such pair of elements the closest structure comes first.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write as write_structures
from scipy.linalg import cholesky, solve_triangular
from threadpoolctl import threadpool_limits

from mlip_pace.ace.activeset import EXTRAPOLATION
from mlip_pace.ace.uncertainty import Uncertainty
from mlip_pace.arrays import Array
from mlip_pace.collect import columns, lammps
from mlip_pace.collect.audit import Audit, fully_periodic, sound_geometry
from mlip_pace.collect.dataset import ATOMS, Structure, structures_of
from mlip_pace.collect.files import Unconverged, find_files
from mlip_pace.collect.geometry import geometry_key
from mlip_pace.collect.labels import Broken
from mlip_pace.collect.output import refuse_place
from mlip_pace.errors import DataError, NoInputError, OutputError
from mlip_pace.publish.potential import Potential
from mlip_pace.publish.predict import Prediction, closer_than_data, of_structures, opened, too_close
from mlip_pace.run import pool

FILES = (".xyz", ".extxyz")  # what OUTPUT ends with, if it is no folder
VACUUM = 12.0  # Å; between images of what is not periodic
SKETCH = 256  # random sums of rows that stand for all of them in mean variances
NOTHING = 1e-16  # of all variances: what rounding leaves of zero
CLOSEST = 0.8  # of the shortest distance of a pair in the data: DFT of nearer atoms is of no use to a simulation
AT_A_TIME = 16  # gains that are computed together; fixed, so that the choice does not depend on the number of workers


@dataclass(frozen=True)
class Suggestion:
    """A structure to compute: where it comes from, what is expected of it, its gain and why it was taken."""

    source: str
    atoms: Atoms
    prediction: Prediction
    gain: float
    reason: str

    def written(self, rank: int) -> Atoms:
        """The structure with all that is said of it."""
        atoms: Atoms = self.atoms.copy()
        atoms.info = {"source": self.source, "rank": rank, "gain": self.gain, "reason": self.reason}
        self.prediction.tell(atoms)
        return atoms


@dataclass(frozen=True)
class Suggested:
    """What was found: structures to compute, best first; those that were refused, with `source` and `reason`; how many others
    would teach less; and what was assumed.
    """

    suggestions: list[Suggestion]
    left_out: list[dict[str, str]]
    others: int
    assumed: list[str] = field(default_factory=list)


def suggest(sidecar: Path, candidates: str, number: int, workers: int = 1) -> Suggested:
    """The `number` structures of the files `candidates` (whatever the job reads, and LAMMPS dumps) to compute next.

    Raises `DataError` if the potential is not whole or has no uncertainty, or no structure can be used; `NoInputError`.
    """
    potential = opened(sidecar)
    quantify = potential.uncertainty()
    found, assumed = _structures(candidates, potential.elements)
    sources, structures, left_out = _usable(found, potential)
    if not structures:
        reasons = Audit(left_out=left_out).reasons()
        raise DataError(f"{candidates}: none of the structures can be suggested{reasons}", "give other candidates")
    closest = _closest(structures, potential)
    taken = choose(structures, quantify, number, workers, list(closest))
    chosen = [structures[n] for n, _ in taken]
    predictions = of_structures(potential, chosen, workers)
    energies, forces = zip(*(_sigmas(*one) for one in zip(chosen, predictions, strict=True)), strict=True)
    typical = float(np.median(energies)), float(np.median([of_atoms.max() for of_atoms in forces]))
    suggestions = [
        Suggestion(sources[n], structures[n], prediction, gain,
                   closest.get(n) or _reason(structures[n], prediction, quantify, typical))
        for (n, gain), prediction in zip(taken, predictions, strict=True)
    ]  # fmt: skip
    return Suggested(suggestions, left_out, len(structures) - len(taken), assumed)


def _files(candidates: str) -> list[Path]:
    given = Path(candidates)
    found = [given] if given.is_file() else sorted(given.rglob("*") if given.is_dir() else map(Path, glob(candidates)))
    return [path for path in found if path.is_file()]


def _structures(candidates: str, elements: list[str]) -> tuple[Iterator[Structure], list[str]]:
    """All structures of the files, and what is assumed of them."""
    given = Path(candidates)
    root = given if given.is_dir() else given.parent
    dumps = [path for path in _files(candidates) if lammps.is_dump(path)]
    assumed = [
        f"{path.name} has no column `element`: types {', '.join(f'{n} is {e}' for n, e in enumerate(elements, 1))}"
        for path in dumps
        if not lammps.names_elements(path)
    ]
    try:
        others = [] if [given] == dumps else find_files(candidates)
    except NoInputError:
        others = []
        if not dumps:
            raise

    def every() -> Iterator[Structure]:
        for path in dumps:
            yield from lammps.read(path, str(path.relative_to(root)) if path.is_relative_to(root) else str(path), elements)
        for piece in structures_of(others):
            yield from piece

    return every(), assumed


def _usable(found: Iterator[Structure], potential: Potential) -> tuple[list[str], list[Atoms], list[dict[str, str]]]:
    """Sources and structures that can be suggested, and why the others cannot."""
    known = dict.fromkeys(_trained_on(potential), "of the data")
    sources, structures, left_out = [], list[Atoms](), []
    for source, _, frame in found:
        atoms = frame.atoms if isinstance(frame, Unconverged) else frame
        reason = atoms if isinstance(atoms, str) else _refused(atoms, potential)
        if reason is None and not isinstance(atoms, str):
            key = geometry_key(atoms)
            if key in known:
                reason = f"the same as one {known[key]}"
            known.setdefault(key, f"before it, {source}")
        if reason is not None:
            left_out.append({"source": source, "reason": reason})
        elif not isinstance(atoms, str):
            sources.append(source)
            structures.append(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc))
    return sources, structures, left_out


def _trained_on(potential: Potential) -> list[bytes]:
    """Keys of the structures of the data, where the job has left them."""
    frames = potential.path.parent / "work" / "1-collect" / "frames"
    return [geometry_key(atoms) for atoms in columns.load(frames)[ATOMS]] if frames.exists() else []


def _refused(atoms: Atoms, potential: Potential) -> str | None:
    """Why a structure cannot be suggested."""
    try:
        sound_geometry(atoms, cutoff=1.0)
    except Broken as broken:
        return str(broken)
    if foreign := sorted(set(atoms.symbols) - set(potential.elements)):
        return f"the potential does not know {', '.join(foreign)}"
    if len(atoms) == 1 and not atoms.pbc.any():
        return "an atom alone: its energy is E0"
    return too_close(atoms, potential, CLOSEST)


def _closest(structures: Sequence[Atoms], potential: Potential) -> dict[int, str]:
    """Of each pair of elements that comes closer than in the data the structure in which it is closest, and that in words.

    ACE fades out there, and neither σ nor gains know anything of it.
    """
    closest = dict[str, tuple[float, int, str]]()
    for n, atoms in enumerate(structures):
        for pair, (distance, said) in closer_than_data(atoms, potential).items():
            if pair not in closest or distance < closest[pair][0]:
                closest[pair] = distance, n, said
    return {n: said for _, n, said in closest.values()}


@threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]  # one thread gives the same bits
def choose(
    structures: Sequence[Atoms], quantify: Uncertainty, number: int, workers: int, first: Sequence[int] = ()
) -> list[tuple[int, float]]:  # fmt: skip
    """Positions and gains of the structures that teach most together, in the order in which they are taken; `first` those that
    are taken in any case.
    """
    numbered = list(enumerate(structures))
    (everything,) = pool.parallel_sums(partial(_sketch, quantify=quantify), [numbered], workers)
    size = len(quantify.factor)
    information = np.eye(size)
    bounds = np.full(len(structures), np.inf)  # of the gains: those that they had with less information
    left, taken = set(range(len(structures))), list[tuple[int, float]]()
    while left and len(taken) < number:
        whitener = solve_triangular(cholesky(information, lower=True), np.eye(size), lower=True)
        gain_of = partial(_gain, quantify=quantify, whitener=whitener, everything=everything.times(whitener.T))
        fresh = set[int]()
        given = first[len(taken) : len(taken) + 1]
        while True:
            best = given[0] if given else max(left, key=lambda n: (bounds[n], -n))
            if best in fresh:
                break
            order = sorted(left - fresh, key=lambda n: (-bounds[n], n))
            batch = given or (order if np.isinf(bounds[best]) else order[:AT_A_TIME])
            for n, gain in zip(batch, pool.parallel_map(gain_of, [structures[n] for n in batch], workers), strict=True):
                bounds[n] = gain
            fresh |= set(batch)
        rows = whitened(structures[best], quantify)
        information += rows.T @ rows
        taken.append((best, float(bounds[best])))
        left.remove(best)
    return taken


@dataclass(frozen=True)
class _Sketch:
    """Random sums of the rows of energies and of forces of many structures, (SKETCH, functions) each: the squares of what
    a matrix makes of them are, on average, those of all rows.
    """

    energies: Array
    forces: Array

    def __add__(self, other: _Sketch) -> _Sketch:
        return _Sketch(self.energies + other.energies, self.forces + other.forces)

    def times(self, matrix: Array) -> _Sketch:
        return _Sketch(self.energies @ matrix, self.forces @ matrix)


def _sketch(numbered: tuple[int, Atoms], quantify: Uncertainty) -> _Sketch:
    """What a structure adds to the sums; energies per atom."""
    number, atoms = numbered
    rows, signs = whitened(atoms, quantify), np.random.default_rng(number)
    return _Sketch(signs.normal(size=(SKETCH, 1)) * rows[:1], signs.normal(size=(SKETCH, len(rows) - 1)) @ rows[1:])


def _gain(atoms: Atoms, quantify: Uncertainty, whitener: Array, everything: _Sketch) -> float:
    rows, abouts = whitened(atoms, quantify) @ whitener.T, (everything.energies, everything.forces)
    total = sum(float((about**2).sum()) for about in abouts)
    # Forces that symmetry keeps at zero are nothing to learn.
    return -sum(float(np.log(_left(rows, a) / (a**2).sum())) for a in abouts if (a**2).sum() > NOTHING * total)


def _left(rows: Array, about: Array) -> float:
    """The sum of the variances of the rows `about`, once `rows` are known but for their noise.

    It is tr about (1 + rows^T rows)^-1 about^T.
    """
    if len(rows) < rows.shape[1]:
        known = cholesky(np.eye(len(rows)) + rows @ rows.T, lower=True)
        gone = solve_triangular(known, rows @ about.T, lower=True)
        return max(float((about**2).sum() - (gone**2).sum()), 1e-12 * float((about**2).sum()))
    known = cholesky(np.eye(rows.shape[1]) + rows.T @ rows, lower=True)
    return float((solve_triangular(known, about.T, lower=True) ** 2).sum())


def whitened(atoms: Atoms, quantify: Uncertainty) -> Array:
    """The rows of energy and forces, weighted as those of the fit, in units of the posterior: (1 + 3 n, functions)."""
    calibration = quantify.calibration
    sound, _ = fully_periodic(atoms, quantify.expansion.cutoff)
    ((of_c, _),) = quantify.expansion.rows([sound])
    of_energy = calibration.energy_weight / len(atoms) ** 2
    weights = np.r_[of_energy, np.full(3 * len(atoms), calibration.forces_weight)]
    rows: Array = calibration.forces.slope * np.sqrt(weights)[:, None] * (of_c @ quantify.factor.T)
    return rows


def _sigmas(atoms: Atoms, prediction: Prediction) -> tuple[float, Array]:
    """σ of the energy (eV/atom), and the largest of the forces on each atom (n,) (eV/Å)."""
    assert prediction.energy_sigma is not None  # potentials without uncertainties are refused
    assert prediction.forces_sigma is not None
    return prediction.energy_sigma / len(atoms), prediction.forces_sigma.max(axis=1)


def _reason(atoms: Atoms, prediction: Prediction, quantify: Uncertainty, typical: tuple[float, float]) -> str:
    """Why a structure was taken, in words; `typical` are σ of the energy (eV/atom) and of the forces of those taken."""
    said, gamma, calibration = [], prediction.gamma, quantify.calibration
    of_energy, of_atoms = _sigmas(atoms, prediction)
    if gamma is not None and gamma.max() > EXTRAPOLATION:
        said.append(f"the potential extrapolates at {atoms.symbols[int(gamma.argmax())]} {int(gamma.argmax())}")
    if of_atoms.max() > 2 * max(typical[1], calibration.forces.floor):
        atom = int(of_atoms.argmax())
        said.append(f"forces on {atoms.symbols[atom]} {atom} uncertain by {of_atoms[atom]:.2f} eV/Å")
    if of_energy > 2 * max(typical[0], calibration.energy.floor):
        said.append(f"energy uncertain by {1e3 * of_energy:.1f} meV/atom")
    return ", ".join(said) or "unlike the data and those before it"


def refuse_output(output: Path, candidates: str) -> None:
    """Raise `OutputError` where `write` could not, or would replace what is read or was written before."""
    if output.suffix in FILES:
        refuse_place(output, _files(candidates))
    elif not output.parent.is_dir() or (output.exists() and not output.is_dir()):
        raise OutputError(f"{output} cannot be a new folder", "make the folder above it, or give another, or a file .xyz")
    elif output.is_dir() and any(output.iterdir()):
        raise OutputError(f"{output} is there, and not empty", "give a new folder, or a file .xyz")


def write(suggested: Suggested, output: Path) -> None:
    """Write an extended XYZ file, or a folder `output` with `001/POSCAR`, …: whole or not at all."""
    structures = [one.written(rank) for rank, one in enumerate(suggested.suggestions, 1)]
    part = output.with_name(f".{output.name}.part")
    if output.suffix in FILES:
        write_structures(part, structures, format="extxyz")
        part.replace(output)
        return
    shutil.rmtree(part, ignore_errors=True)
    for rank, atoms in enumerate(structures, 1):
        place = part / f"{rank:03d}"
        place.mkdir(parents=True)
        write_structures(place / "POSCAR", atoms if atoms.pbc.all() else boxed(atoms), format="vasp", sort=True)
    part.replace(output)


def boxed(atoms: Atoms) -> Atoms:
    """The structure in a cell, with VACUUM around it where it is not periodic: VASP knows no other."""
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    atoms.center(vacuum=VACUUM / 2, axis=np.flatnonzero(~atoms.pbc))
    return atoms


def table(suggested: Suggested) -> str:
    """The suggestions as text."""
    lines = [f"{'':>4}{'gain':>8}{'grade':>10}{'σ, meV/atom':>13}{'σ, eV/Å':>9}  structure"]
    for rank, one in enumerate(suggested.suggestions, 1):
        said = one.prediction
        grade = "" if said.gamma is None else f"{said.gamma.max():.4g}"
        energy = "" if said.energy_sigma is None else f"{1e3 * said.energy_sigma / len(one.atoms):.2f}"
        forces = "" if said.forces_sigma is None else f"{said.forces_sigma.max():.3f}"
        lines.append(f"{rank:>4}{one.gain:>8.3f}{grade:>10}{energy:>13}{forces:>9}  {one.source}: {one.reason}")
    return "\n".join(lines)


def summary_of(suggested: Suggested) -> dict[str, Any]:
    """What the last line of the log has."""
    rows = []
    for one in suggested.suggestions:
        said, row = one.prediction, {"source": one.source, "atoms": len(one.atoms), "gain": one.gain, "reason": one.reason}
        if said.gamma is not None:
            row["max_gamma"] = float(said.gamma.max())
        if said.energy_sigma is not None and said.forces_sigma is not None:
            row |= {"energy_uncertainty": said.energy_sigma, "largest_forces_uncertainty": float(said.forces_sigma.max())}
        rows.append(row)
    return {"suggested": rows, "left_out": suggested.left_out, "others": suggested.others, "assumed": suggested.assumed}
