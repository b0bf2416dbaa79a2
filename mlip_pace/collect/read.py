"""Reading the structures of a file, each format named, none guessed by its contents.

A file that cannot be read, or a frame of it, comes back as a text that says why, never as an exception and never silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from ase import Atoms
from ase.io import iread

from mlip_pace.collect import aims, castep, cp2k, database, deepmd, espresso, extxyz, fitsnap, frames, gpaw, outcar, vasprun
from mlip_pace.collect.extxyz import Piece
from mlip_pace.collect.files import OTHER, Frame, InputFile, NotRead, Unconverged, contents, head, in_one_line, unpacked
from mlip_pace.collect.others import why_not_read
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
        yield NotRead(why_not_read(head(path)))
    elif kind in _READERS:
        yield from _of_a_run(piece.file)
    else:
        with unpacked(path) as plain:
            for atoms in iread(str(plain), index=":", format=kind):
                assert isinstance(atoms, Atoms)
                yield atoms


def _of_a_run(file: InputFile) -> Iterator[Frame]:
    """The frames of a calculation's output; of its other output if this one has none (an empty vasprun.xml) or was cut."""
    content, whole = contents(file.path)
    found = _READERS[file.format](content)
    if file.instead is None:
        yield from found
    else:
        yield from _of_both(list(found), content, file.instead)
    if not whole:
        yield f"its compressed data are cut or broken: what comes after {len(content)} bytes is lost"


def _of_both(frames: list[Frame], content: bytes, outcar_path: Path) -> Iterator[Frame]:
    """The frames of vasprun.xml, and of the OUTCAR those that it does not have."""
    ended = content.rstrip().endswith(b"</modeling>")
    if ended and not all(isinstance(frame, str) for frame in frames):
        yield from frames
        return
    others = list(outcar.read(contents(outcar_path)[0]))
    if all(isinstance(frame, str) for frame in frames):
        yield from others
        return
    known = frames[:-1] if isinstance(frames[-1], str) else frames  # the step within which it ends
    if len(others) > len(known) and _same_step(known[-1], others[len(known) - 1]):
        yield from chain(known, others[len(known) :])
    else:
        yield from frames


def _same_step(one: Frame, other: Frame) -> bool:
    """Whether both outputs are of the same run, from a step of both."""
    ours, theirs = (frame.atoms if isinstance(frame, Unconverged) else frame for frame in (one, other))
    if isinstance(ours, str) or isinstance(theirs, str):
        return False
    energies = [atoms.calc.results["free_energy"] for atoms in (ours, theirs)]
    return list(ours.symbols) == list(theirs.symbols) and abs(energies[0] - energies[1]) < 1e-5
