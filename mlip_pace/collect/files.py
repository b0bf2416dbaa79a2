"""Finding DFT files, and what each of them is."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms

from mlip_pace.collect import others
from mlip_pace.errors import NoInputError
from mlip_pace.run.steps import sha256

_PROGRAMS = {  # how the text outputs of DFT programs announce themselves -> ASE's name of the format
    b"Program PWSCF": "espresso-out",
    b"CP2K|": "cp2k",
    b"Invoking FHI-aims": "aims-output",
    b"CASTEP version": "castep-castep",
    b"|__ |  _|___|_____|": "gpaw-out",
}
# Where a name says nothing, a line must begin with the banner: scripts and notes may quote it.
_BEGINS = re.compile(
    rb"^[ \t|*]*(?:Welcome to [\w ]*|Materials Studio )?(" + b"|".join(map(re.escape, _PROGRAMS)) + rb")"
    rb"|\A\s*vasp\.\d.*\s+executed on",
    re.MULTILINE,
)
_VASP_XML = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<modeling>")
_SUFFIXES = {
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".traj": "traj",
    ".db": "db",
    ".json": "json",
    ".pwo": "espresso-out",
    ".castep": "castep-castep",
    ".pckl": "pacemaker",
    ".pkl": "pacemaker",
    ".pickle": "pacemaker",
}
NOTE = "mlip_pace_note"  # in a structure's info: what a user should know of its labels
FIELD = "forces and energy are those in an external electric field"
OTHER = "other"  # the format of programs that are not read
# Files that hold structures of unrelated calculations.
COLLECTIONS = ("extxyz", "db", "json", "pacemaker", "deepmd")
_PACKED = re.compile(r"\.(gz|gzip|bz2|xz)$", re.IGNORECASE)
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


@dataclass(frozen=True)
class Unconverged:
    """A structure whose calculation is not valid as training data, and why: its SCF did not converge, say."""

    atoms: Atoms
    reason: str


class NotRead(str):
    """Why a file is not read that nothing is wrong with."""


Frame = Atoms | Unconverged | str  # what a reader yields for each frame: the structure, or why there is none


@dataclass(frozen=True)
class InputFile:
    path: Path
    name: str  # as the audit calls it: relative to the data path
    format: str
    instead: Path | None = None  # another output of the same calculation, for when this one has no structure

    def sha256(self) -> str:
        """Of all that is read: of DeePMD's folders more than the file by which they are known."""
        if self.format != "deepmd":
            return sha256(self.path)
        parts = sorted(path for path in self.path.parent.rglob("*") if path.suffix in (".raw", ".npy") or path.name == "nopbc")
        content = "".join(f"{path.relative_to(self.path.parent)} {sha256(path)}\n" for path in parts)
        return hashlib.sha256(content.encode()).hexdigest()


def find_files(path: str) -> list[InputFile]:
    """The DFT files of a file name, a directory (recursively) or a glob, sorted by name.

    Of a VASP run's two outputs vasprun.xml is taken, and OUTCAR `instead` if it cannot be read. Those of programs that are not
    read are there to be named. Raises `NoInputError`.
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
        raise NoInputError(
            f"{printable(given)} {exists}",
            "mount the data there, or give another path (of a job: MLIP_PACE_DATA_PATH, _TEST_PATH)",
        )
    found = {p: kind for p in sorted(candidates) if (kind := format_of(p))}
    runs = {(p.parent, _vasp_tag(p)) for p, kind in found.items() if kind == "vasp-xml"}
    outcars = {(p.parent, _vasp_tag(p)): p for p, kind in found.items() if kind == "vasp-out"}
    files = []
    for p, kind in found.items():
        run = (p.parent, _vasp_tag(p))
        if kind == "vasp-out" and run in runs:
            continue
        name = printable(p.relative_to(root) if p.is_relative_to(root) else p)
        instead = outcars.get(run) if kind == "vasp-xml" else None
        files.append(InputFile(p.absolute(), name, kind, instead and instead.absolute()))  # workers may be elsewhere
    if all(file.format == OTHER for file in files):
        starts = [head(file.path) for file in files]
        programs = sorted({kind for start in starts if (kind := others.container(start) or others.program(start))})
        raise NoInputError(
            f"{printable(given)}: none of the {len(candidates)} files there is one that mlip-pace reads"
            + (f", {len(files)} are of {', '.join(programs)}" if files else ""),
            "known: extended XYZ, OUTCAR, vasprun.xml, pw.x, CP2K, CASTEP, FHI-aims, GPAW, .traj, .db, .json, .pckl.gzip, "
            "FitSNAP's JSON, DeePMD's folders; archives have to be unpacked",
        )
    return files


def printable(path: Path) -> str:
    """A path as text: of a name that is not UTF-8 with escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _plain_name(path: Path) -> str:
    return _PACKED.sub("", path.name)


def _vasp_tag(path: Path) -> str:
    return re.sub(r"outcar|vasprun|\.xml", "", _plain_name(path), flags=re.IGNORECASE).strip("._-")


def format_of(path: Path) -> str | None:
    """ASE's name of a file's format, by its name, or by the program's banner; else None."""
    name = _plain_name(path).lower()
    if others.container(head(path, 512)):
        return OTHER  # whatever its name: `OUTCAR.tar.gz` holds several
    if re.match(r"vasprun.*xml", name):
        return "vasp-xml"
    kind = next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)
    if (name.startswith("outcar") and kind is None) or name.endswith(".outcar"):
        return "vasp-out"
    if re.search(r"\.(out|log|txt)(\W|_|\d|$)", name) or "." not in name:  # also `pw.out.1`
        start = head(path)
        if known := next((kind for banner, kind in _PROGRAMS.items() if banner in start), None):
            return known
    if name == "type.raw":
        return "deepmd"
    if kind == "json":
        return _json_format(path)
    if kind is None:
        start = head(path)
        if banner := _BEGINS.search(start):  # `cell.OUTCAR.2`, `job.o1234`
            return _PROGRAMS.get(banner[1], "vasp-out")
        if _VASP_XML.match(start):
            return "vasp-xml"
        return OTHER if others.program(start) else None
    return kind


def _json_format(path: Path) -> str | None:
    """Of the many files that are JSON, ASE's databases and FitSNAP's structures are ours."""
    start = head(path, 512)
    if b'"Dataset"' in start:
        return "fitsnap"
    try:
        with opened(path) as file:
            content = file.read()
    except (OSError, EOFError, lzma.LZMAError):
        return None
    if b'"nextid"' in content:
        return "json"
    return "fitsnap" if b'"Dataset"' in content and b'"AtomTypes"' in content else None


def head(path: Path, size: int = 65536) -> bytes:
    """The first bytes of a file, uncompressed; none if it cannot be read."""
    try:
        return contents(path, size)[0]
    except OSError:
        return b""


def contents(path: Path, size: int = sys.maxsize) -> tuple[bytes, bool]:
    """The first bytes of a file that can be uncompressed, and whether these are all: a compressed file can be cut off, too."""
    parts, count = [], 0
    with opened(path) as file:
        try:
            while count < size and (part := file.read1(min(size - count, 2**20))):
                parts.append(part)
                count += len(part)
        except (EOFError, OSError, zlib.error, lzma.LZMAError):
            if not packed(path):
                raise
            return b"".join(parts), False
    return b"".join(parts), True


def packed(path: Path) -> bool:
    """Whether a file is compressed (gzip, bzip2 or xz), by its first bytes: names can be wrong."""
    return _opener(path) is not open


def _opener(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(6)
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), open)


def opened(path: Path) -> io.BufferedReader:
    """The contents of a file of any format, uncompressed."""
    content: io.BufferedReader = _opener(path)(path, "rb")
    return content


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The file itself, or an uncompressed copy with the suffix of its format, for a library that wants a file by name."""
    if not packed(path):
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=Path(_plain_name(path)).suffix) as copy, opened(path) as content:
        shutil.copyfileobj(content, copy)
        copy.flush()
        yield Path(copy.name)


def in_one_line(error: Exception) -> str:
    """What an exception of a library says, for the audit."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def digests_of(files: list[InputFile]) -> dict[str, str]:
    """The SHA-256 of each file, and of what is read in its place if it has no structure."""
    digests = {file.name: file.sha256() for file in files}
    others = [(file, file.instead) for file in files if file.instead is not None]
    return digests | {str(Path(file.name).with_name(printable(Path(other.name)))): sha256(other) for file, other in others}
