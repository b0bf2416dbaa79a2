"""Structures and their labels in a file that others read: extended XYZ, or pacemaker's data frame.

Energies (eV) are those of DFT, forces are in eV/Å, stress in eV/Å^3, tension positive. Extended XYZ is written here and not by
ASE, which rounds positions and forces to eight digits: what is read back is the same to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict

from mlip_pace.collect import dataset
from mlip_pace.errors import OutputError, SettingsError

FORMATS = (".xyz", ".extxyz", ".pckl.gzip")


def refuse_unknown_format(path: Path) -> None:
    """Raise `SettingsError` if a file of that name cannot be written."""
    if not path.name.lower().endswith(FORMATS):
        raise SettingsError(f"OUTPUT is {path.name}; a name that ends with {', '.join(FORMATS)} is expected")


def refuse_place(path: Path, read: Iterable[Path]) -> None:
    """Raise `OutputError` where no file can be written, or where it would replace one of those that are read."""
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} is no folder", "make it, or give another OUTPUT")
    if path.is_dir():
        raise OutputError(f"{path} is a folder", "give the name of a file as OUTPUT")
    if path.exists() and any(path.samefile(other) for other in read):
        raise OutputError(f"{path} is one of the files that are read, and its labels would be lost", "give another OUTPUT")


def write(path: Path, frame: pd.DataFrame) -> None:
    """Write a data frame of `dataset.Found` with ENERGY_ATOMS, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        if path.name.lower().endswith(".gzip"):
            dataset.save_frame(_of_pacemaker(frame), part)
        else:
            with part.open("w", encoding="utf-8") as file:
                for values in zip(*(frame[name] for name in frame), strict=True):
                    _write_xyz(file, dict(zip(frame, values, strict=True)))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _of_pacemaker(frame: pd.DataFrame) -> pd.DataFrame:
    """pacemaker's columns: `energy_corrected` is the energy minus E0 of the atoms."""
    return pd.DataFrame(
        {
            "name": frame[dataset.SOURCE],
            "ase_atoms": frame[dataset.ATOMS],
            "energy": frame[dataset.ENERGY],
            "forces": frame[dataset.FORCES],
            "stress": frame[dataset.STRESS],
            "energy_corrected": frame[dataset.ENERGY] - frame[dataset.ENERGY_ATOMS],
            **{key: frame[key] for key in (dataset.SOURCE, dataset.GROUP, dataset.CONFIG_TYPE)},
        }
    )


def _write_xyz(file: IO[str], row: dict[str, Any]) -> None:
    atoms: Atoms = row[dataset.ATOMS]
    about = {key: _quoted(row[key]) for key in (dataset.SOURCE, dataset.GROUP, dataset.CONFIG_TYPE)}
    values = {"energy": repr(float(row[dataset.ENERGY])), **about, "pbc": f'"{" ".join("FT"[int(p)] for p in atoms.pbc)}"'}
    values |= {key: repr(row[key]) for key in dataset.LABEL_WEIGHTS if not np.isnan(row.get(key, np.nan))}
    if row[dataset.STRESS] is not None:
        values["stress"] = _numbers(row[dataset.STRESS].ravel())
    if atoms.cell.any():
        values = {"Lattice": _numbers(atoms.cell.array.ravel()), **values}
    pairs = " ".join(f"{key}={value}" for key, value in values.items())
    file.write(f"{len(atoms)}\nProperties=species:S:1:pos:R:3:forces:R:3 {pairs}\n")
    for symbol, position, force in zip(atoms.symbols, atoms.positions.tolist(), row[dataset.FORCES].tolist(), strict=True):
        file.write(" ".join([symbol, *map(repr, position), *map(repr, force)]) + "\n")


def _numbers(values: Any) -> str:
    return '"' + " ".join(map(repr, values.tolist())) + '"'


def _quoted(text: str) -> str:
    """A text as it has to be written so that ASE reads the same text again, and not the number or array that it looks like."""
    for quoted in (text, f'"{_escaped(text)}"', f'"_JSON {_escaped(json.dumps(text))}"'):
        if _reads(quoted) == text and "\n" not in quoted and "\r" not in quoted:
            return quoted
    return '"' + "".join(letter if letter.isalnum() or letter in "._-/# " else "_" for letter in text) + '"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _reads(quoted: str) -> str | None:
    try:
        read = key_val_str_to_dict(f"x=1 key={quoted} y=2")
    except (ValueError, KeyError, IndexError):
        return None
    value = read.get("key")
    return value if isinstance(value, str) and list(read) == ["x", "key", "y"] else None
