"""Finding DFT files, and what each of them is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ase import Atoms
from ase.io.formats import open_with_compression

from mlip_pace.errors import NoInputError

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
# Files that hold structures of unrelated calculations.
COLLECTIONS = ("extxyz", "db", "json", "pacemaker")


@dataclass(frozen=True)
class Unconverged:
    """A structure whose calculation is not valid as training data, and why: its SCF did not converge, say."""

    atoms: Atoms
    reason: str


Frame = Atoms | Unconverged | str  # what a reader yields for each frame: the structure, or why there is none


@dataclass(frozen=True)
class InputFile:
    path: Path
    name: str  # as the audit calls it: relative to the data path
    format: str
    instead: Path | None = None  # another output of the same calculation, for when this one has no structure


def find_files(path: str) -> list[InputFile]:
    """The DFT files of a file name, a directory (recursively) or a glob, sorted by name.

    Of a VASP run's two outputs vasprun.xml is taken, and OUTCAR `instead` if it cannot be read. Raises `NoInputError`.
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
    outcars = {(p.parent, _vasp_tag(p)): p for p, kind in found.items() if kind == "vasp-out"}
    files = []
    for p, kind in found.items():
        run = (p.parent, _vasp_tag(p))
        if kind == "vasp-out" and run in runs:
            continue
        name = str(p.relative_to(root)) if p.is_relative_to(root) else str(p)
        files.append(InputFile(p, name, kind, outcars.get(run) if kind == "vasp-xml" else None))
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
        with opened(path) as file:
            return file.read(65536)
    except (OSError, EOFError):
        return b""


def opened(path: Path) -> IO[bytes]:
    """The contents of a file, uncompressed."""
    return open_with_compression(str(path), "rb")


def in_one_line(error: Exception) -> str:
    """What an exception of a library says, for the audit."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
