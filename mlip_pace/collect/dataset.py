"""DFT results -> one DataFrame: find, read, audit, E0, split.

Columns (constants below): energies in eV, forces (n, 3) in eV/Å, stress (3, 3) in eV/Å^3, tension positive (as ASE).
Energies are the force-consistent ones (free energy) where a code gives both. Whatever is left out is named: file, frame,
reason. A calculation's output file is one group of the train/test split; in files that are collections (extended XYZ,
databases, data frames) every structure is its own group, unless it has a `group` key.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.data import atomic_numbers

from mlip_pace.collect.audit import Audit, Broken, NotInBasis, checked, fully_periodic, labels
from mlip_pace.collect.extxyz import Piece, pieces_of
from mlip_pace.collect.files import COLLECTIONS, Frame, InputFile, Unconverged
from mlip_pace.collect.read import read_frames
from mlip_pace.errors import DataError
from mlip_pace.run import pool
from mlip_pace.settings import DataSettings

ATOMS, ENERGY, FORCES, STRESS = "ase_atoms", "energy_dft", "forces_dft", "stress_dft"
NAME, SOURCE, CONFIG_TYPE, GROUP, SPLIT = "name", "source", "config_type", "group", "split"
ENERGY_ATOMS = "energy_atoms"  # sum of E0, eV
LONELY = "lonely"  # atoms without a neighbour within the cutoff
WEIGHT = "weight"  # what a structure counts for in the loss: how many of those left out it stands for
TRAIN, TEST = "train", "test"


def save_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write what pacemaker reads. Fast compression: these files are read back once or twice."""
    frame.to_pickle(path, compression={"method": "gzip", "compresslevel": 1}, protocol=4)


def composition(atoms: Atoms) -> str:
    """The reduced formula, the same for every order of the atoms: `Al3Mg`."""
    return str(atoms.symbols.formula.reduce()[0].format("hill"))


def geometry_key(atoms: Atoms) -> bytes:
    """Equal for equal structures (species, cell and positions to 1e-5 Å), whatever their labels."""
    cell = atoms.cell.array if atoms.pbc.any() else np.zeros((3, 3))
    rounded = np.round(np.vstack([cell, atoms.get_positions(wrap=bool(atoms.pbc.any()), eps=1e-6)]) * 1e5).astype(np.int64)
    return hashlib.sha256(atoms.numbers.tobytes() + atoms.pbc.tobytes() + rounded.tobytes()).digest()


Structure = tuple[str, str, Frame]  # source, group, atoms or why there are none


@dataclass(frozen=True)
class FilePiece:
    """The structures of a piece of a file, read when iterated over."""

    piece: Piece

    def __iter__(self) -> Iterator[Structure]:
        file = self.piece.file
        for number, atoms in enumerate(read_frames(self.piece), self.piece.frames):
            source = f"{file.name}#{number}"
            yield source, source if file.format in COLLECTIONS else file.name, atoms


def structures_of(files: list[InputFile]) -> list[FilePiece]:
    """The structures of the files, in pieces that a worker can read by itself."""
    return [FilePiece(piece) for file in files for piece in pieces_of(file)]


@dataclass(frozen=True)
class Rules:
    """How structures are read and judged."""

    data: DataSettings
    elements: Sequence[str] | None = None  # leave out structures of others; None: all are wanted
    cutoff: float = 5.0  # Å; an atom must have a neighbour within it
    seed: int = 42  # of the split
    workers: int = 1  # processes that read


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
    keys: str = ""
    geometry: bytes = b""


def examine(
    structures: Iterable[Structure], data: DataSettings, elements: Sequence[str] | None, cutoff: float, prefix: str
) -> list[Examined]:  # fmt: skip
    """Read and check the structures of a piece. `prefix` goes before source and group."""
    return [_examine(prefix + source, prefix + group, atoms, data, elements, cutoff) for source, group, atoms in structures]


def _examine(
    source: str, group: str, atoms: Frame, data: DataSettings, elements: Sequence[str] | None, cutoff: float
) -> Examined:  # fmt: skip
    if isinstance(atoms, str):
        return Examined(source, reason=atoms, rejected=True)
    if isinstance(atoms, Unconverged):
        return Examined(source, reason=atoms.reason, rejected=True)
    try:
        found, keys = labels(atoms, data)
        energy, forces, stress, lonely = checked(atoms, found, elements, cutoff)
    except Broken as reason:
        return Examined(source, reason=str(reason), rejected=not isinstance(reason, NotInBasis))
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    bare, shrink = fully_periodic(bare, cutoff)
    row = {
        ATOMS: bare,
        ENERGY: energy,
        FORCES: forces,
        STRESS: None if stress is None else stress * shrink,
        NAME: str(atoms.info.get(NAME, source)),
        SOURCE: source,
        CONFIG_TYPE: str(atoms.info.get(CONFIG_TYPE, "default")),
        GROUP: str(atoms.info.get(GROUP, group)),
        LONELY: lonely,
    }
    return Examined(source, row, keys=keys, geometry=geometry_key(bare))


def rows_of(
    pieces: Sequence[Iterable[Structure]], data: DataSettings, elements: Sequence[str] | None, cutoff: float, audit: Audit, *,
    workers: int = 1, prefix: str = "",
) -> list[dict[str, Any]]:  # fmt: skip
    """One row for each sound structure, in their order; the others go to the audit. Pieces are read in worker processes."""
    rows: list[dict[str, Any]] = []
    seen: dict[bytes, dict[str, Any]] = {}
    function = partial(examine, data=data, elements=elements, cutoff=cutoff, prefix=prefix)
    for one in chain.from_iterable(pool.parallel_map(function, pieces, workers)):
        audit.read += 1
        if one.row is None:
            (audit.reject if one.rejected else audit.leave_out)(one.source, one.reason)
            continue
        audit.keys[one.keys] += 1
        first = seen.setdefault(one.geometry, one.row)
        if first is not one.row:
            gap = abs(first[ENERGY] - one.row[ENERGY]) / len(first[ATOMS])
            differs = f"; their energies differ by {1e3 * gap:.3g} meV/atom" if gap > 1e-4 else ""
            audit.leave_out(one.source, f"the same structure as {first[SOURCE]}{differs}")
            continue
        rows.append(one.row)
    return rows


def atoms_to_dataframe(atoms_list: Sequence[Atoms], cutoff: float = 5.0, **data: Any) -> pd.DataFrame:
    """The audited DataFrame of labelled `ase.Atoms`, with the columns of the module docstring.

    `data` are the fields of the DATA settings (`energy_key="my_energy"`, ...). What was left out, with its reason, is in
    `frame.attrs["left_out"]`, E0 (eV) in `frame.attrs["e0"]`. Raises `DataError` if too much of it is wrong.
    """
    given: list[Structure] = [(f"atoms#{n}", f"atoms#{n}", atoms) for n, atoms in enumerate(atoms_list)]
    settings = DataSettings.model_construct().model_copy(update=data)
    frame, about = assemble([given], None, Rules(settings, cutoff=cutoff))
    frame.attrs.update(left_out=about.left_out, e0=about.e0)
    return frame


def collect(
    folder: Path, *, files: list[InputFile], test_files: list[InputFile] | None, rules: Rules
) -> Collected:  # fmt: skip
    """The stage: write `frames.pckl.gzip`."""
    test = None if test_files is None else structures_of(test_files)
    frame, about = assemble(structures_of(files), test, rules)
    save_frame(frame, folder / "frames.pckl.gzip")
    return about


def assemble(
    pieces: Sequence[Iterable[Structure]], test_pieces: Sequence[Iterable[Structure]] | None, rules: Rules
) -> tuple[pd.DataFrame, Collected]:  # fmt: skip
    """Audit, E0 and split. Returns the frame and what became of the structures."""
    audit, data, elements, cutoff = Audit(), rules.data, rules.elements, rules.cutoff
    rows = rows_of(pieces, data, elements, cutoff, audit, workers=rules.workers)
    for row in rows:
        row[SPLIT] = TRAIN
    if test_pieces is not None:
        given = {geometry_key(row[ATOMS]): row[SOURCE] for row in rows}
        for row in rows_of(test_pieces, data, elements, cutoff, audit, workers=rules.workers, prefix="test:"):
            if (same := given.get(geometry_key(row[ATOMS]))) is not None:
                audit.leave_out(row[SOURCE], f"the same structure as {same} of the training data")
            else:
                rows.append({**row, SPLIT: TEST})
    _refuse_bad_data(audit, data.max_rejected)
    rows, isolated = _without_isolated(rows, cutoff, audit)
    if not rows:
        raise DataError("no structure is left to train on" + _first_reasons(audit), "see the reasons above")
    frame = pd.DataFrame(rows)
    if frame[STRESS].isna().all():
        frame = frame.drop(columns=STRESS)
    e0, e0_source = atomic_energies(frame[frame[SPLIT] == TRAIN], isolated, data.e0)
    frame[ENERGY_ATOMS] = [sum(e0.get(symbol, 0.0) for symbol in atoms.symbols) for atoms in frame[ATOMS]]
    frame = _without_extremes(frame, data, audit).reset_index(drop=True)
    if test_pieces is None:
        frame[SPLIT] = split_by_group(frame, data.test_fraction, rules.seed)
    _refuse_too_little(frame, elements, audit)
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
        warnings=_warnings(frame, e0_source, data),
    )
    return frame, about


def _warnings(frame: pd.DataFrame, e0_source: dict[str, str], data: DataSettings) -> list[str]:
    warnings = []
    if "least squares" in e0_source.values():
        warnings.append("E0 by least squares: energies are not relative to free atoms; add isolated atoms to the data")
    if (data.test_path or data.test_fraction > 0) and not (frame[SPLIT] == TEST).any():
        warnings.append(
            "there are no test structures: what is in the test data is also in the training data, or it cannot be split"
        )
    return warnings


def _first_reasons(audit: Audit) -> str:
    shown = [f"\n  {item['source']}: {item['reason']}" for item in audit.left_out[:10]]
    more = len(audit.left_out) - len(shown)
    return "".join(shown) + (f"\n  … and {more} more" if more > 0 else "")


def _refuse_bad_data(audit: Audit, limit: float) -> None:
    if audit.read == 0:
        raise DataError("the files hold no structure at all", "check that they are not empty")
    if audit.rejected > limit * audit.read:
        raise DataError(
            f"{audit.rejected} of {audit.read} structures cannot be used" + _first_reasons(audit),
            f"mend or remove them; MLIP_PACE_DATA_MAX_REJECTED={limit:g} is the fraction that may be left out",
        )


def _refuse_too_little(frame: pd.DataFrame, elements: Sequence[str] | None, audit: Audit) -> None:
    train = frame[frame[SPLIT] == TRAIN]
    trained = {symbol for atoms in train[ATOMS] for symbol in atoms.symbols}
    tested = {symbol for atoms in frame[ATOMS] for symbol in atoms.symbols}
    if len(train) < 2:
        raise DataError(
            f"{len(train)} structure to train on; a fit needs at least 2, better some dozens" + _first_reasons(audit),
            "add structures, or set MLIP_PACE_DATA_TEST_FRACTION=0",
        )
    for missing in sorted((tested | set(elements or [])) - trained):
        where = next((frame[SOURCE][n] for n, a in frame[ATOMS].items() if missing in a.symbols), "MLIP_PACE_BASIS_ELEMENTS")
        raise DataError(
            f"{missing} is in {where} but in no training structure",
            "add training structures with it, or leave it out of MLIP_PACE_BASIS_ELEMENTS and the test data",
        )


def _without_isolated(rows: list[dict[str, Any]], cutoff: float, audit: Audit) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows whose atoms all have neighbours, and the energies (eV) of isolated atoms (the lowest, of several)."""
    kept: list[dict[str, Any]] = []
    isolated: dict[str, float] = {}
    for row in rows:
        atoms, lonely = row[ATOMS], row.pop(LONELY)
        said = row[CONFIG_TYPE].lower().replace("_", "") == "isolatedatom"  # its box may be smaller than the cutoff
        if len(atoms) == 1 and (said or lonely):
            symbol = atoms.symbols[0]
            isolated[symbol] = min(row[ENERGY], isolated.get(symbol, np.inf))
            audit.leave_out(row[SOURCE], f"isolated atom: its energy is E0 of {symbol}")
        elif lonely:
            audit.leave_out(row[SOURCE], f"{lonely} of {len(atoms)} atoms have no neighbour within {cutoff} Å")
        else:
            kept.append(row)
    return kept, isolated


def atomic_energies(train: pd.DataFrame, isolated: dict[str, float], setting: Any) -> tuple[dict[str, float], dict[str, str]]:
    """E0 (eV) of each element and where it came from: given, isolated atom, least squares, or none.

    Least squares: the energies of the training structures against their numbers of atoms, with known E0 held fixed.
    """
    symbols = sorted({symbol for atoms in train[ATOMS] for symbol in atoms.symbols} | set(isolated))
    if setting == "none":
        return dict.fromkeys(symbols, 0.0), dict.fromkeys(symbols, "none")
    if isinstance(setting, dict):
        missing = sorted(set(symbols) - set(setting))
        if missing:
            raise DataError(f"MLIP_PACE_DATA_E0 has no value for {', '.join(missing)}", "give one for each element, or auto")
        return dict(setting), dict.fromkeys(setting, "given")
    e0, origin = dict(isolated), dict.fromkeys(isolated, "isolated atom")
    unknown = [symbol for symbol in symbols if symbol not in e0]
    if unknown:
        counts = np.array([[atoms.numbers.tolist().count(atomic_numbers[s]) for s in symbols] for atoms in train[ATOMS]])
        known = np.array([e0.get(symbol, 0.0) for symbol in symbols])
        free = [symbols.index(symbol) for symbol in unknown]
        solved = np.linalg.lstsq(counts[:, free].astype(float), train[ENERGY].to_numpy() - counts @ known, rcond=None)[0]
        e0.update(zip(unknown, map(float, solved), strict=True))
        origin.update(dict.fromkeys(unknown, "least squares"))
    return e0, origin


def _without_extremes(frame: pd.DataFrame, data: DataSettings, audit: Audit) -> pd.DataFrame:
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


def split_by_group(frame: pd.DataFrame, fraction: float, seed: int) -> list[str]:
    """`train` or `test` for each row: whole groups, about `fraction` of the structures, never the last ones of an element.

    The choice depends on the names of the groups and the seed, not on their order. Where every group is larger than what is
    wanted, the smallest one is taken, unless that is more than half of all.
    """
    sizes = frame.groupby(GROUP).size()
    drawn = sorted(sizes.index, key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest())
    elements: dict[Any, Counter[str]] = {group: Counter() for group in drawn}
    for group, atoms in zip(frame[GROUP], frame[ATOMS], strict=True):
        elements[group].update(set(atoms.symbols))
    remaining = sum(elements.values(), Counter())
    wanted, taken, test = round(fraction * len(frame)) or int(fraction > 0), 0, set()

    def take(group: Any, most: float) -> None:
        nonlocal taken, remaining
        left = remaining - elements[group]
        if taken < wanted and taken + sizes[group] <= most and len(left) == len(remaining):
            test.add(group)
            taken, remaining = taken + sizes[group], left

    for group in drawn:
        take(group, most=min(1.5 * wanted + 1, len(frame) - 2))
    if not test:
        take(min(drawn, key=lambda g: (sizes[g], drawn.index(g))), most=len(frame) / 2)
    return [TEST if group in test else TRAIN for group in frame[GROUP]]
