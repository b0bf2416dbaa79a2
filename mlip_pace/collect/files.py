"""Finding DFT files and reading the structures in them, each format named to ASE, none guessed by it.

A file that cannot be read, or a frame of it, comes back as a text that says why, never as an exception and never silently.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pandas as pd
from ase import Atoms
from ase.io import iread
from ase.io.extxyz import read_xyz
from ase.io.formats import open_with_compression

from mlip_pace.collect import cp2k
from mlip_pace.errors import NoInputError, UnsafeError

_PROGRAMS = {  # how the text outputs of DFT programs announce themselves -> ASE's name of the format
    b"Program PWSCF": "espresso-out",
    b"CP2K|": "cp2k",
    b"Invoking FHI-aims": "aims-output",
    b"CASTEP version": "castep-castep",
    b"|__ |  _|___|_____|": "gpaw-out",
}
_SUFFIXES = {
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".traj": "traj",
    ".db": "db",
    ".json": "json",
    ".pwo": "espresso-out",
    ".castep": "castep-castep",
    ".pckl.gzip": "pacemaker",
    ".pkl.gzip": "pacemaker",
    ".pckl": "pacemaker",
    ".pkl": "pacemaker",
}
BYTES_IN_PIECE = 2**20  # some hundred structures: seconds of work for a worker
# Files that hold structures of unrelated calculations.
COLLECTIONS = ("extxyz", "db", "json", "pacemaker")


@dataclass(frozen=True)
class InputFile:
    path: Path
    name: str  # as the audit calls it: relative to the data path
    format: str


def find_files(path: str) -> list[InputFile]:
    """The DFT files of a file name, a directory (recursively) or a glob, sorted by name.

    Of a VASP run's OUTCAR and vasprun.xml only the latter is taken. Raises `NoInputError`.
    """
    given = Path(path)
    if given.is_dir():
        root, candidates = given, [p for p in given.rglob("*") if p.is_file()]
    elif given.is_file():
        root, candidates = given.parent, [given]
    else:
        root = Path(given.anchor or ".")
        pattern = str(given.relative_to(given.anchor)) if given.anchor else str(given)
        candidates = [p for p in root.glob(pattern) if p.is_file()] if any(c in path for c in "*?[") else []
        root = Path(os.path.dirname(re.split(r"[*?\[]", path)[0]))
    if not candidates:
        exists = "holds no files" if given.is_dir() else "does not exist"
        raise NoInputError(f"{path} {exists}", "mount the data there, or set MLIP_PACE_DATA_PATH (or _TEST_PATH)")
    found = {p: kind for p in sorted(candidates) if (kind := format_of(p))}
    runs = {(p.parent, _vasp_tag(p)) for p, kind in found.items() if kind == "vasp-xml"}
    files = []
    for p, kind in found.items():
        if kind == "vasp-out" and (p.parent, _vasp_tag(p)) in runs:
            continue
        files.append(InputFile(p, str(p.relative_to(root)) if p.is_relative_to(root) else str(p), kind))
    if not files:
        raise NoInputError(
            f"{path}: none of the {len(candidates)} files there is one that mlip-pace reads",
            "known: extended XYZ, OUTCAR, vasprun.xml, pw.x, CP2K, CASTEP, FHI-aims, GPAW, .traj, .db, .json, .pckl.gzip",
        )
    return files


def _plain_name(path: Path) -> str:
    return re.sub(r"\.(gz|bz2|xz)$", "", path.name, flags=re.IGNORECASE)


def _vasp_tag(path: Path) -> str:
    return re.sub(r"outcar|vasprun|\.xml", "", _plain_name(path), flags=re.IGNORECASE).strip("._-")


def format_of(path: Path) -> str | None:
    """ASE's name of a file's format, by its name; by the program's banner for `.out`, `.log` and `.txt`; else None."""
    name = _plain_name(path).lower()
    if re.match(r"vasprun.*xml", name):
        return "vasp-xml"
    if name.startswith("outcar") or name.endswith(".outcar"):
        return "vasp-out"
    if name.endswith((".out", ".log", ".txt")) or "." not in name:
        start = _head(path)
        return next((kind for banner, kind in _PROGRAMS.items() if banner in start), None)
    kind = next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)
    if kind == "json" and b'"nextid"' not in path.read_bytes():
        return None  # a JSON file, but not one of ASE's databases
    return kind


def _head(path: Path) -> bytes:
    try:
        with _open(path) as file:
            return file.read(65536)
    except (OSError, EOFError):
        return b""


def _open(path: Path) -> IO[bytes]:
    return open_with_compression(str(path), "rb")


@dataclass(frozen=True)
class Piece:
    """A file, or a part of one between two frames, which a worker reads by itself."""

    file: InputFile
    begin: int = 0  # bytes
    end: int | None = None
    frames: int = 0  # that come before it
    lines: int = 0


def pieces_of(file: InputFile) -> list[Piece]:
    """A plain extended XYZ file in pieces of about BYTES_IN_PIECE, any other in one."""
    if file.format != "extxyz" or file.path.name.lower().endswith((".gz", ".bz2", ".xz")):
        return [Piece(file)]
    pieces, here, frames, lines = [Piece(file)], 0, 0, 0
    with file.path.open("rb") as content:
        while (first := content.readline()).strip().isdigit():  # what is no number is for the reader to complain about
            body = [first, *islice(content, int(first) + 1)]
            here, frames, lines = here + sum(map(len, body)), frames + 1, lines + len(body)
            if here - pieces[-1].begin >= BYTES_IN_PIECE:
                pieces[-1] = replace(pieces[-1], end=here)
                pieces.append(Piece(file, here, None, frames, lines))
    return pieces


def read_frames(piece: Piece) -> Iterator[Atoms | str]:
    """The structures of a piece in order; for one that cannot be read, the reason. Raises `UnsafeError`."""
    file, empty = piece.file, piece.frames == 0
    try:
        for structure in _structures(piece):
            empty = False
            yield structure
    except UnsafeError:
        raise
    # The readers of ASE raise whatever a broken file makes them stumble over.
    except Exception as error:
        yield f"cannot be read as {file.format}: {_in_one_line(error)}"
        return
    if empty:
        yield f"holds no structure in the format {file.format}"


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _structures(piece: Piece) -> Iterator[Atoms | str]:
    file = piece.file
    if file.format == "extxyz":
        yield from _read_extxyz(piece)
    elif file.format == "pacemaker":
        yield from _read_data_frame(file.path)
    elif file.format == "cp2k":
        with _open(file.path) as lines:
            yield from cp2k.read_output(io.TextIOWrapper(lines, errors="replace"))
    elif file.format == "gpaw-out":
        yield from _read_gpaw(file.path)
    elif file.format == "vasp-xml":
        yield from _read_vasp_xml(file.path)
    else:
        for atoms in iread(str(file.path), index=":", format=file.format):
            assert isinstance(atoms, Atoms)
            yield atoms


_ELECTRONS = re.compile(rb"<(eigenvalues|dos|projected)\b.*?</\1>", re.DOTALL)


def _read_vasp_xml(path: Path) -> Iterator[Atoms]:
    """Without the electronic structure, most of the file and of the time that ASE would take for it."""
    with _open(path) as file:
        content = _ELECTRONS.sub(b"", file.read())
    for atoms in iread(io.BytesIO(content), index=":", format="vasp-xml"):
        assert isinstance(atoms, Atoms)
        yield atoms


def _read_gpaw(path: Path) -> Iterator[Atoms | str]:
    """ASE reads the energy extrapolated to zero smearing; the one that belongs to the forces is the free energy."""
    with _open(path) as file:
        free = [float(value) for value in re.findall(rb"^Free energy: +(\S+)", file.read(), re.MULTILINE)]
    frames = list(iread(str(path), index=":", format="gpaw-out"))
    for n, atoms in enumerate(frames):
        assert isinstance(atoms, Atoms)
        if len(free) != len(frames):
            yield f"{len(free)} free energies for {len(frames)} structures"
            continue
        atoms.calc.results["free_energy"] = free[n]
        yield atoms


def _read_extxyz(piece: Piece) -> Iterator[Atoms | str]:
    """Frame by frame, so that a broken one does not take the others with it."""
    with _open(piece.file.path) as binary:
        if piece.begin:
            binary.seek(piece.begin)
        content = binary if piece.end is None else io.BytesIO(binary.read(piece.end - piece.begin))
        lines = io.TextIOWrapper(content, encoding="utf-8-sig", errors="replace")
        number = piece.lines
        while first := lines.readline():
            number += 1
            if not first.strip():
                continue
            try:
                count = int(first)
            except ValueError:
                yield f"line {number}: a number of atoms is expected, found {first.strip()[:40]!r}; the rest is not read"
                return
            body = [lines.readline() for _ in range(count + 1)]
            if not body[-1] or (not body[-1].endswith("\n") and len(body[-1].split()) < len(body[-2].split()) and count > 1):
                yield f"line {number}: the file ends within a frame of {count} atoms"
                return
            try:
                yield next(read_xyz(io.StringIO(first + "".join(body)), 0))
            except Exception as error:
                yield f"line {number}: {_in_one_line(error)}"
            number += count + 1


def _read_data_frame(path: Path) -> Iterator[Atoms | str]:
    """pacemaker's data frames and ours: `ase_atoms`, `energy_dft` (`energy`, `energy_corrected`), `forces_dft` (`forces`)."""
    frame = load_frame(path)
    energy = next((key for key in ("energy_dft", "energy", "energy_corrected") if key in frame), None)
    forces = next((key for key in ("forces_dft", "forces") if key in frame), None)
    if "ase_atoms" not in frame or energy is None or forces is None:
        yield f"its columns are {', '.join(map(str, frame.columns))}; ase_atoms, energy and forces are expected"
        return
    columns = {"dft_energy": energy, "dft_forces": forces, "name": "name", "config_type": "config_type", "group": "group"}
    columns["dft_stress"] = "stress_dft" if "stress_dft" in frame else "stress"
    for _, row in frame.iterrows():
        atoms = row["ase_atoms"].copy()
        for key in ("energy", "forces", "stress"):
            atoms.info.pop(f"dft_{key}", None)
        atoms.info.update({key: row[column] for key, column in columns.items() if column in frame})
        yield atoms


_ALLOWED_GLOBALS = {
    ("builtins", "slice"), ("builtins", "set"), ("builtins", "frozenset"), ("builtins", "bytearray"),
    ("builtins", "complex"), ("builtins", "object"), ("_codecs", "encode"), ("copyreg", "_reconstructor"),
    ("collections", "OrderedDict"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy", "bool_"), ("numpy", "float64"), ("numpy", "int64"),
    ("pandas.core.frame", "DataFrame"), ("pandas.core.series", "Series"),
    ("pandas.core.internals.managers", "BlockManager"), ("pandas.core.internals.managers", "SingleBlockManager"),
    ("pandas.core.internals.blocks", "new_block"), ("pandas._libs.internals", "_unpickle_block"),
    ("pandas.core.indexes.base", "_new_Index"), ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.range", "RangeIndex"), ("pandas.core.indexes.multi", "MultiIndex"),
    ("ase.atoms", "Atoms"), ("ase.cell", "Cell"), ("ase.calculators.singlepoint", "SinglePointCalculator"),
    ("ase.calculators.singlepoint", "SinglePointDFTCalculator"), ("ase.constraints", "FixAtoms"),
}  # fmt: skip


class _DataOnly(pickle.Unpickler):
    """Loads pandas, NumPy and ASE data and nothing else: a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("pyace.preparedata", "DataFrameWithMetadata"):
            return pd.DataFrame
        if (module, name) not in _ALLOWED_GLOBALS:
            raise UnsafeError(
                f"the pickle asks for {module}.{name}, which is not plain data",
                "write the data as extended XYZ, or as a DataFrame of ase.Atoms, numbers and NumPy arrays",
            )
        return super().find_class(module, name)


def load_frame(path: Path) -> pd.DataFrame:
    """A pickled DataFrame, compressed or not. Raises `UnsafeError` if it holds anything but plain data."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        try:
            frame = _DataOnly(file).load()
        except UnsafeError as error:
            raise UnsafeError(f"{path.name}: {error.message}", error.hint) from None
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"holds a {type(frame).__name__}, not a DataFrame")
    return frame
