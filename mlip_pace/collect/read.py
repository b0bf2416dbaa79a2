"""Reading the structures of a file, each format named, none guessed by its contents.

A file that cannot be read, or a frame of it, comes back as a text that says why, never as an exception and never silently.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from ase import Atoms
from ase.io import iread

from mlip_pace.collect import cp2k, database, deepmd, extxyz, fitsnap, frames, gpaw, vasp
from mlip_pace.collect.extxyz import Piece
from mlip_pace.collect.files import Frame, in_one_line, opened, unpacked
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
    elif kind == "cp2k":
        with opened(path) as lines:
            yield from cp2k.read_output(io.TextIOWrapper(lines, errors="replace"))
    elif kind == "gpaw-out":
        yield from gpaw.read(path)
    elif kind == "vasp-xml":
        yield from vasp.read_xml(path)
    else:
        with unpacked(path) as plain:
            for atoms in iread(str(plain), index=":", format=kind):
                assert isinstance(atoms, Atoms)
                yield atoms
