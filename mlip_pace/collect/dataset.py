"""DFT results -> one DataFrame: find, read, audit, E0, split.

Columns (constants below): energies in eV, forces (n, 3) in eV/Å, stress (3, 3) in eV/Å^3, tension positive (as ASE).
Energies are the force-consistent ones (free energy) where a code gives both. Whatever is left out is named: file, frame,
reason. A calculation's output file is one group of the train/test split; in files that are collections (extended XYZ,
databases, data frames) every structure is its own group, unless it has a `group` key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms

from mlip_pace.collect import atomic_energies, columns, pressure
from mlip_pace.collect.audit import Audit, NotInBasis, checked, far_apart, fully_periodic, label_weights
from mlip_pace.collect.consistency import contradiction
from mlip_pace.collect.extxyz import Piece, pieces_of
from mlip_pace.collect.files import COLLECTIONS, Frame, InputFile, NotRead, Unconverged
from mlip_pace.collect.geometry import geometry_key, seems_periodic, too_long
from mlip_pace.collect.labels import Broken, kinds_of_energy, labels
from mlip_pace.collect.read import read_frames
from mlip_pace.collect.split import TEST, TRAIN, split_by_group, untested
from mlip_pace.errors import DataError
from mlip_pace.run import pool
from mlip_pace.settings import DataSettings

ATOMS, ENERGY, FORCES, STRESS = "ase_atoms", "energy_dft", "forces_dft", "stress_dft"
NAME, SOURCE, CONFIG_TYPE, GROUP, SPLIT = "name", "source", "config_type", "group", "split"
LABEL_WEIGHTS = ("energy_weight", "forces_weight", "stress_weight")  # of a structure in the loss, where the data have them
ENERGY_ATOMS = "energy_atoms"  # sum of E0, eV
LONELY = "lonely"  # atoms without a neighbour within the cutoff
SCALARS = (ENERGY, NAME, SOURCE, CONFIG_TYPE, GROUP, LONELY, SPLIT)  # of each structure that is found
WEIGHT = "weight"  # what a structure counts for in the loss: how many of those left out it stands for


def save_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write what pacemaker reads."""
    columns.pickle(columns.plain(frame), path)


Structure = tuple[str, str, Frame]  # source, group, atoms or why there are none


@dataclass(frozen=True)
class FilePiece:
    """The structures of a piece of a file, read when iterated over."""

    piece: Piece

    def __iter__(self) -> Iterator[Structure]:
        file = self.piece.file
        group, symbols = file.name, ""
        for number, frame in enumerate(read_frames(self.piece), self.piece.frames):
            source, atoms = f"{file.name}#{number}", frame.atoms if isinstance(frame, Unconverged) else frame
            if not isinstance(atoms, str):
                other, symbols = symbols and symbols != str(atoms.symbols), str(atoms.symbols)
                if other:  # no calculation changes its atoms
                    group = source
            yield source, source if file.format in COLLECTIONS else group, frame


def structures_of(files: list[InputFile]) -> list[FilePiece]:
    """The structures of the files, in pieces that a worker can read by itself."""
    return [FilePiece(piece) for file in files for piece in pieces_of(file)]


@dataclass(frozen=True)
class Rules:
    """How structures are read and judged."""

    data: DataSettings
    elements: Sequence[str] | None = None  # leave out structures of others; None: all are wanted
    cutoffs: Sequence[float] = (5.0,)  # Å, that the potential may come to have, ascending
    seed: int = 42  # of the split
    as_they_are: bool = False  # slabs and wires; else they become fully periodic, as pacemaker takes them

    @property
    def cutoff(self) -> float:
        """Å; an atom must have a neighbour within it."""
        return self.cutoffs[0]

    @property
    def vacuum(self) -> float:
        """Å; periodic images of what is not periodic are at least so far away."""
        return self.cutoffs[-1]


@dataclass(frozen=True)
class Collected:
    """What became of the structures. `left_out` has those that the audit excluded, each with `source` and `reason`."""

    read: int  # structures, the unreadable ones included
    used: int
    train: int
    test: int
    atoms: int  # of the structures that are used
    elements: list[str]
    e0: dict[str, float]  # eV
    e0_source: dict[str, str]
    keys: dict[str, int]  # where labels were, and of how many structures
    left_out: list[dict[str, str]]
    warnings: list[str]


@dataclass(frozen=True)
class Examined:
    """A structure as the audit sees it: its row of the DataFrame, or why it has none."""

    source: str
    row: dict[str, Any] | None = None
    reason: str = ""
    rejected: bool = False  # wrong, and not only not asked for
    unconverged: bool = False
    keys: str = ""
    notes: tuple[str, ...] = ()
    geometry: bytes = b""
    copies: bytes = b""  # `audit.Checked`


def examine(structures: Iterable[Structure], rules: Rules, prefix: str) -> list[Examined]:
    """Read and check the structures of a piece. `prefix` goes before source and group."""
    given = list(structures)
    examined = [_examine(prefix + source, prefix + group, frame, rules) for source, group, frame in given]
    doubt = contradiction([frame for source, group, frame in given if source != group])  # a run; collections have none
    used = next((n for n, one in enumerate(examined) if one.row is not None), None)
    if doubt is not None and used is not None:
        note = f"the labels of a run do not go together, look at it before you use it: {doubt}"
        examined[used] = replace(examined[used], notes=(*examined[used].notes, note))
    return examined


def _examine(source: str, group: str, frame: Frame, rules: Rules) -> Examined:
    if isinstance(frame, str):
        return Examined(source, reason=frame, rejected=not isinstance(frame, NotRead))
    unconverged = isinstance(frame, Unconverged)
    if isinstance(frame, Unconverged):
        if rules.data.unconverged == "leave_out":
            return Examined(source, reason=frame.reason, unconverged=True)
        frame = frame.atoms
    try:
        found, keys, notes = labels(frame, rules.data)
        weights = label_weights(frame, LABEL_WEIGHTS)
        energy, forces, stress, lonely, flaws, copies = checked(frame, found, rules.elements, rules.cutoff)
    except Broken as reason:
        return Examined(source, reason=str(reason), rejected=not isinstance(reason, NotInBasis))
    bare = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
    periodic, shrink = fully_periodic(bare, rules.vacuum)
    if seems_periodic(bare):
        flaws += ("it is not periodic along all of its cell's vectors, yet would fill the cell if it were: is pbc missing?",)
    row = {
        ATOMS: bare if rules.as_they_are else periodic,
        ENERGY: energy,
        FORCES: forces,
        STRESS: stress if stress is None or rules.as_they_are else stress * shrink,
        NAME: str(frame.info.get(NAME, source)),
        SOURCE: source,
        CONFIG_TYPE: str(frame.info.get(CONFIG_TYPE, "default")),
        GROUP: str(frame.info.get(GROUP, group)),
        LONELY: lonely,
        **weights,
    }
    return Examined(source, row, "", False, unconverged, keys, notes + flaws, geometry_key(periodic), copies)


class Found:
    """The sound structures, one row each, in their order: columns ATOMS, ENERGY, …, LONELY.

    `folder` takes the arrays, so that there may be more of them than memory holds; else they are in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.rows = columns.GrowingFrame([FORCES, STRESS], [ATOMS], SCALARS, folder)
        self.known: dict[bytes, int] = {}  # row by geometry, and by labels

    def add(
        self, pieces: Sequence[Iterable[Structure]], rules: Rules, audit: Audit, split: str = TRAIN, workers: pool.Workers = 1
    ) -> None:  # fmt: skip
        """Have pieces read by workers. What is left out, and what was found before, goes to the audit."""
        function = partial(examine, rules=rules, prefix="test:" if split == TEST else "")
        for one in chain.from_iterable(pool.parallel_map(function, pieces, workers)):
            audit.read += 1
            audit.unconverged += one.unconverged
            if one.row is None:
                (audit.reject if one.rejected else audit.leave_out)(one.source, one.reason)
                continue
            audit.keys[one.keys] += 1
            audit.note(one.source, one.notes)
            if known := self._known(one):
                audit.leave_out(one.source, known)
                continue
            self.known |= {key: self.rows.count for key in (one.geometry, one.copies) if key}
            self.rows.append({**one.row, SPLIT: split})

    def _known(self, one: Examined) -> str:
        """What a structure is the same as, in words; empty if it is new."""
        n = self.known.get(one.geometry, self.known.get(one.copies))
        if n is None or one.row is None:
            return ""
        scalars = self.rows.scalars
        gap = abs(scalars[ENERGY][n] - one.row[ENERGY]) / len(one.row[ATOMS])
        differs = f"; their energies differ by {1e3 * gap:.3g} meV/atom" if gap > 1e-4 else ""
        moved = "" if one.geometry in self.known else ", moved, turned or with its atoms in another order"
        trained = " of the training data" if scalars[SPLIT][n] == TRAIN and one.source.startswith("test:") else ""
        return f"the same structure as {scalars[SOURCE][n]}{trained}{moved}{differs}"

    def frame(self) -> pd.DataFrame:
        return self.rows.frame()


def atoms_to_dataframe(atoms_list: Sequence[Atoms], cutoff: float = 5.0, **data: Any) -> pd.DataFrame:
    """The audited DataFrame of labelled structures in memory.

    Parameters
    ----------
    atoms_list
        With energies (eV) and forces (eV/Å) in the calculator's results or under `REF_*`/`dft_*` keys.
    cutoff
        Å; an atom without a neighbour within it is no part of a structure that is fitted.
    **data
        Fields of the DATA settings, as in `energy_key="my_energy"`.

    Returns
    -------
    pandas.DataFrame
        With the columns of the module docstring; `frame.attrs["left_out"]` has what was left out, with its reason,
        `frame.attrs["e0"]` E0 (eV).

    Raises
    ------
    errors.DataError
        If too much of it is wrong.
    """
    given: list[Structure] = [(f"atoms#{n}", f"atoms#{n}", atoms) for n, atoms in enumerate(atoms_list)]
    settings = DataSettings.model_construct().model_copy(update=data)
    frame, about = assemble([given], None, Rules(settings, cutoffs=[cutoff]))
    frame = columns.plain(frame)
    frame.attrs.update(left_out=about.left_out, e0=about.e0)
    return frame


def collect(
    folder: Path, files: list[InputFile], test_files: list[InputFile] | None, rules: Rules, workers: pool.Workers = 1
) -> Collected:  # fmt: skip
    """The stage: write `frames`."""
    test = None if test_files is None else structures_of(test_files)
    frame, about = assemble(structures_of(files), test, rules, workers, folder)
    columns.save(frame, folder / "frames")
    return about


def assemble(
    pieces: Sequence[Iterable[Structure]], test_pieces: Sequence[Iterable[Structure]] | None, rules: Rules,
    workers: pool.Workers = 1, scratch: Path | None = None,
) -> tuple[pd.DataFrame, Collected]:  # fmt: skip
    """Audit, E0 and split. Returns the frame, its slabs and wires fully periodic, and what became of the structures.

    The arrays of the frame are in files in `scratch`, or in memory.
    """
    audit, data, found = Audit(), rules.data, Found(scratch)
    found.add(pieces, rules, audit, TRAIN, workers)
    if test_pieces is not None:
        found.add(test_pieces, rules, audit, TEST, workers)
    refuse_bad_data(audit, data, data.max_rejected)
    frame, isolated = without_isolated(found.frame(), rules.cutoff, audit)
    apart = found.rows.count - len(frame) - len(isolated)
    leave_out_isolated(isolated, audit)
    if frame.empty:
        hint = far_apart(apart, audit.read, rules.cutoff, data.max_rejected) or ["see the reasons above"]
        raise DataError("no structure is left to train on" + audit.reasons(), hint[0], audit.left_out)
    frame = frame.fillna({column: 1.0 for column in LABEL_WEIGHTS if column in frame})
    if frame[STRESS].isna().all():
        frame = frame.drop(columns=STRESS)
    e0, e0_source = energies_of_atoms(frame[frame[SPLIT] == TRAIN], isolated, data)
    frame[ENERGY_ATOMS] = [sum(e0.get(symbol, 0.0) for symbol in atoms.symbols) for atoms in frame[ATOMS]]
    frame = without_extremes(frame, data, audit).reset_index(drop=True)
    if test_pieces is None:
        frame[SPLIT] = split_by_group(list(frame[GROUP]), frame[ATOMS].array, data.test_fraction, rules.seed)
    _refuse_too_little(frame, rules.elements, audit)
    used = sorted({symbol for atoms in frame[ATOMS] for symbol in atoms.symbols})
    about = Collected(
        read=audit.read,
        used=len(frame),
        train=int((frame[SPLIT] == TRAIN).sum()),
        test=int((frame[SPLIT] == TEST).sum()),
        atoms=int(frame[ATOMS].map(len).sum()),
        elements=used,
        e0={symbol: e0[symbol] for symbol in used},
        e0_source={symbol: e0_source[symbol] for symbol in used},
        keys=dict(audit.keys),
        left_out=audit.left_out,
        warnings=warnings(audit, data)
        + far_apart(apart, audit.read, rules.cutoff, data.max_rejected)
        + atomic_energies.warnings(e0, e0_source, frame[ATOMS], frame[ENERGY])
        + atomic_energies.of_several_setups(frame[ATOMS], frame[ENERGY], frame[FORCES])
        + too_long(frame[ATOMS].array)
        + pressure.unknown(frame[ATOMS][frame[SPLIT] == TRAIN].array, STRESS in frame)
        + untested(frame[GROUP], frame[SPLIT], data),
    )
    return frame, about


def leave_out_isolated(isolated: pd.DataFrame, audit: Audit) -> None:
    for source, atoms in zip(isolated[SOURCE], isolated[ATOMS], strict=True):
        audit.leave_out(source, f"isolated atom: its energy is E0 of {atoms.symbols[0]}")


def energies_of_atoms(
    frame: pd.DataFrame, isolated: pd.DataFrame, data: DataSettings
) -> tuple[dict[str, float], dict[str, str]]:  # fmt: skip
    """E0 (eV) of each element and where it is from; of several isolated atoms of an element the lowest energy."""
    lowest: dict[str, float] = {}
    for atoms, energy in zip(isolated[ATOMS], isolated[ENERGY], strict=True):
        symbol = str(atoms.symbols[0])
        lowest[symbol] = min(energy, lowest.get(symbol, np.inf))
    return atomic_energies.atomic_energies(frame[ATOMS].array, frame[ENERGY].to_numpy(dtype=float), lowest, data.e0)


def warnings(audit: Audit, data: DataSettings) -> list[str]:
    """What a user should know of the labels that are used."""
    said = audit.warnings() + kinds_of_energy(audit.keys)
    if audit.unconverged and data.unconverged == "keep":
        said.append(
            f"{audit.unconverged} structures of calculations that are not valid are used (MLIP_PACE_DATA_UNCONVERGED=keep)"
        )
    return said


def refuse_bad_data(audit: Audit, data: DataSettings, limit: float) -> None:
    """Raise `DataError` if nothing was read, too much of it is wrong, or a named stress is nowhere."""
    if audit.read == 0:
        raise DataError("the files hold no structure at all", "check that they are not empty")
    if audit.rejected > limit * audit.read:
        raise DataError(
            f"{audit.rejected} of {audit.read} structures cannot be used" + audit.reasons(),
            f"mend or remove them; MLIP_PACE_DATA_MAX_REJECTED={limit:g} is the fraction that may be left out",
            audit.left_out,
        )
    named = data.stress_key not in ("auto", "none")
    if named and audit.keys and not any(f"stress={data.stress_key}" in keys.split() for keys in audit.keys):
        raise DataError(
            f"no structure has a stress under the key {data.stress_key!r} (MLIP_PACE_DATA_STRESS_KEY)",
            "name the key that they have; `none` if there is no stress, `auto` to have it found",
        )


def _refuse_too_little(frame: pd.DataFrame, elements: Sequence[str] | None, audit: Audit) -> None:
    train = frame[frame[SPLIT] == TRAIN]
    trained = {symbol for atoms in train[ATOMS] for symbol in atoms.symbols}
    tested = {symbol for atoms in frame[ATOMS] for symbol in atoms.symbols}
    if len(train) < 2:
        raise DataError(
            f"{len(train)} structure to train on; a fit needs at least 2, better some dozens" + audit.reasons(),
            "add structures, or set MLIP_PACE_DATA_TEST_FRACTION=0",
            audit.left_out,
        )
    for missing in sorted((tested | set(elements or [])) - trained):
        where = next((frame[SOURCE][n] for n, a in frame[ATOMS].items() if missing in a.symbols), "MLIP_PACE_BASIS_ELEMENTS")
        raise DataError(
            f"{missing} is in {where} but in no training structure",
            "add training structures with it, or leave it out of MLIP_PACE_BASIS_ELEMENTS and the test data",
        )


def without_isolated(frame: pd.DataFrame, cutoff: float, audit: Audit) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows whose atoms all have neighbours within the cutoff (Å), and those of isolated atoms."""
    counts, lonely = (column.to_numpy(dtype=int) for column in (frame[ATOMS].map(len), frame[LONELY]))
    # The box of what is said to be one may be smaller than the cutoff.
    said = np.array([kind.lower().replace("_", "") == "isolatedatom" for kind in frame[CONFIG_TYPE]], dtype=bool)
    isolated = (counts == 1) & (said | (lonely > 0))
    broken = ~isolated & (lonely > 0)
    for source, some, of in zip(frame[SOURCE][broken], lonely[broken], counts[broken], strict=True):
        audit.leave_out(source, f"{some} of {of} atoms have no neighbour within {cutoff} Å")
    frame = frame.drop(columns=LONELY)
    return frame[~isolated & ~broken], frame[isolated]


def without_extremes(frame: pd.DataFrame, data: DataSettings, audit: Audit) -> pd.DataFrame:
    """Drop what lies beyond MAX_FORCE and MAX_ENERGY, with the reason."""
    largest = frame[FORCES].map(lambda f: np.linalg.norm(f, axis=1).max())
    binding = (frame[ENERGY] - frame[ENERGY_ATOMS]) / frame[ATOMS].map(len)
    above = binding - binding.min()
    keep = pd.Series(True, index=frame.index)
    for values, limit, name, unit in (
        (largest, data.max_force, "MAX_FORCE", "eV/Å"), (above, data.max_energy, "MAX_ENERGY", "eV/atom above the lowest"),
    ):  # fmt: skip
        for row in frame.index[keep & (values > (np.inf if limit is None else limit))]:
            audit.leave_out(frame[SOURCE][row], f"{values[row]:.3g} {unit}, beyond MLIP_PACE_DATA_{name}={limit:g}")
            keep[row] = False
    return frame[keep]
