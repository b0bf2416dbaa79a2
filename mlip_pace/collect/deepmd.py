"""DeePMD's folders: `type.raw`, `type_map.raw` and `set.*` with coord, box, energy, force, virial as NumPy arrays.

Energies in eV, lengths in Å. A virial (eV) is minus the volume times the stress (ASE's sign). Read by ourselves: dpdata, which
reads them too, brings h5py, lmdb, msgpack and wcmatch with it for what are a dozen of `numpy.load`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from mlip_pace.collect.files import Frame, opened

_WIDTH = {"coord": 3, "force": 3}  # numbers for each atom
_SIZE = {"box": 9, "energy": 1, "virial": 9}  # numbers for each frame


def read(path: Path) -> Iterator[Frame]:
    """The frames of the folder that `path`, its `type.raw`, is in; for a set that cannot be understood, the reason."""
    folder = path.parent
    try:
        names = (folder / "type_map.raw").read_text(encoding="utf-8").split()
    except OSError:
        yield "has no type_map.raw beside it: the elements are not known"
        return
    with opened(path) as file:
        types = np.array(file.read().split(), dtype=int)
    sets = sorted(found for found in folder.glob("set.*") if found.is_dir())
    if not sets:
        yield "has no set.* folder beside it"
    for found in sets:
        yield from _frames(found, types, names, periodic=not (folder / "nopbc").exists())


def _frames(folder: Path, types: Any, names: list[str], periodic: bool) -> Iterator[Frame]:
    arrays = {}
    for name in (*_WIDTH, *_SIZE, "real_atom_types"):
        if (folder / f"{name}.npy").is_file():
            try:
                arrays[name] = np.load(folder / f"{name}.npy", allow_pickle=False)
            except (ValueError, EOFError, OSError):
                yield f"{folder.name}/{name}.npy is no whole NumPy array of numbers"
                return
    if "coord" not in arrays or (periodic and "box" not in arrays):
        yield f"{folder.name} has no coord.npy{' or box.npy' if periodic else ''}"
        return
    frames = len(arrays["coord"]) if arrays["coord"].ndim > 1 else 1  # as DeePMD-kit reads it
    for name, array in arrays.items():
        width = _SIZE.get(name, _WIDTH.get(name, 1) * len(types))
        if array.size != frames * width:
            yield f"{folder.name}/{name}.npy has {array.size} numbers, expected {frames} frames of {width}"
            return
        arrays[name] = array.reshape(frames, -1)
    for n in range(frames):
        of_frame = {name: array[n] for name, array in arrays.items()}
        yield _structure(
            of_frame, of_frame["real_atom_types"].astype(int) if "real_atom_types" in arrays else types, names, periodic
        )


def _structure(arrays: dict[str, Any], types: Any, names: list[str], periodic: bool) -> Frame:
    real = types >= 0  # where systems of several sizes are mixed, the missing atoms have -1
    if types.max(initial=-1) >= len(names):
        return f"type {types.max()} is not in type_map.raw, which has {len(names)}"
    try:
        atoms = Atoms([names[kind] for kind in types[real]], arrays["coord"].reshape(-1, 3)[real].astype(float))
    except (KeyError, ValueError):
        return f"type_map.raw has {', '.join(names)}; chemical elements are expected"
    if periodic:
        atoms.cell, atoms.pbc = arrays["box"].reshape(3, 3).astype(float), True
    atoms.calc = SinglePointCalculator(atoms)
    if "energy" in arrays:
        atoms.calc.results["energy"] = float(arrays["energy"][0])
    if "force" in arrays:
        atoms.calc.results["forces"] = arrays["force"].reshape(-1, 3)[real].astype(float)
    if "virial" in arrays and periodic:
        atoms.info["virial"] = arrays["virial"].astype(float)
    return atoms
