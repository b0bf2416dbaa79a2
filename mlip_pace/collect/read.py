"""Reading the structures of a file, each format named, none guessed by its contents.

A file that cannot be read, or a frame of it, comes back as a text that says why, never as an exception and never silently.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from lzma import LZMAError
from pathlib import Path

from ase import Atoms
from ase.io import iread

from mlip_pace.collect import aims, castep, cp2k, database, deepmd, espresso, extxyz, fitsnap, frames, gpaw, outcar, vasprun
from mlip_pace.collect.extxyz import Piece
from mlip_pace.collect.files import OTHER, Frame, InputFile, NotRead, head, in_one_line, opened, unpacked
from mlip_pace.collect.others import program
from mlip_pace.errors import UnsafeError


def read_frames(piece: Piece) -> Iterator[Frame]:
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
        yield f"cannot be read as {file.format}: it is cut, or not as that format is ({in_one_line(error)})"
        return
    if empty:
        yield f"holds no structure in the format {file.format}"


def _of_text(read: Callable[[str], Iterator[Frame]]) -> Callable[[bytes], Iterator[Frame]]:
    return lambda content: read(content.decode(errors="replace").replace("\r\n", "\n"))


# Readers of what a whole file says; all of them take what is there when it ends too early.
_READERS: dict[str, Callable[[bytes], Iterator[Frame]]] = {
    "vasp-xml": vasprun.read,
    "vasp-out": outcar.read,
    "castep-castep": castep.read,
    "aims-output": aims.read,
    "espresso-out": _of_text(espresso.read_output),
    "cp2k": _of_text(cp2k.read_output),
    "gpaw-out": _of_text(gpaw.read_output),
}


def _structures(piece: Piece) -> Iterator[Frame]:
    path, kind = piece.file.path, piece.file.format
    if kind == "extxyz":
        yield from extxyz.read(piece)
    elif kind == "pacemaker":
        yield from frames.read(path)
    elif kind in ("db", "json"):
        yield from database.read(path, kind)
    elif kind == "fitsnap":
        yield from fitsnap.read(path)
    elif kind == "deepmd":
        yield from deepmd.read(path)
    elif kind == OTHER:
        yield NotRead(f"is of {program(head(path))}, which is not read here; ASE may convert it to extended XYZ")
    elif kind in _READERS:
        yield from _of_a_run(piece.file)
    else:
        with unpacked(path) as plain:
            for atoms in iread(str(plain), index=":", format=kind):
                assert isinstance(atoms, Atoms)
                yield atoms


def _of_a_run(file: InputFile) -> Iterator[Frame]:
    """The frames of a calculation's output; of its other output if this one has none (an empty vasprun.xml, say)."""
    found = _READERS[file.format](_content(file.path))
    reasons: list[Frame] = []
    for frame in found:
        if not isinstance(frame, str) or file.instead is None:
            yield from chain(reasons, [frame], found)
            return
        reasons.append(frame)
    if file.instead is not None:
        yield from _READERS["vasp-out"](_content(file.instead))


def _content(path: Path) -> bytes:
    """All of a file that can be uncompressed; a compressed one can be cut off, too."""
    parts = []
    with opened(path) as file:
        try:
            while part := file.read(2**20):
                parts.append(part)
        except (EOFError, OSError, zlib.error, LZMAError):
            if not parts:
                raise
    return b"".join(parts)
