"""Reading the structures of a file, each format named, none guessed by its contents.

A file that cannot be read, or a frame of it, comes back as a text that says why, never as an exception and never silently.
"""

from __future__ import annotations

from collections.abc import Iterator

from ase import Atoms
from ase.io import iread

from mlip_pace.collect import cp2k, espresso, extxyz, frames, gpaw, vasp
from mlip_pace.collect.extxyz import Piece
from mlip_pace.collect.files import Frame, in_one_line, opened
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
        yield f"cannot be read as {file.format}: {in_one_line(error)}"
        return
    if empty:
        yield f"holds no structure in the format {file.format}"


_TEXTS = {"espresso-out": espresso.read_output, "cp2k": cp2k.read_output, "gpaw-out": gpaw.read_output}


def _structures(piece: Piece) -> Iterator[Frame]:
    path, kind = piece.file.path, piece.file.format
    if kind == "extxyz":
        yield from extxyz.read(piece)
    elif kind == "pacemaker":
        yield from frames.read(path)
    elif kind in _TEXTS:
        with opened(path) as content:
            yield from _TEXTS[kind](content.read().decode(errors="replace").replace("\r\n", "\n"))
    elif kind == "vasp-xml":
        yield from vasp.read_xml(path)
    else:
        for atoms in iread(str(path), index=":", format=kind):
            assert isinstance(atoms, Atoms)
            yield atoms
