"""Structures and their labels in a file that others read: extended XYZ, or pacemaker's data frame.

Energies (eV) are those of DFT, forces are in eV/Å, stress in eV/Å^3, tension positive. Extended XYZ is written here and not by
ASE, which rounds positions and forces to eight digits: what is read back is the same to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import pandas as pd
from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict

from mlip_pace.collect import dataset
from mlip_pace.errors import SettingsError

FORMATS = (".xyz", ".extxyz", ".pckl.gzip")


def refuse_unknown_format(path: Path) -> None:
    """Raise `SettingsError` if a file of that name cannot be written."""
    if not path.name.lower().endswith(FORMATS):
        raise SettingsError(f"OUTPUT is {path.name}; a name that ends with {', '.join(FORMATS)} is expected")


def write(path: Path, rows: Iterable[dict[str, Any]], e0: dict[str, float]) -> None:
    """Write rows of `dataset.rows_of`, whole or not at all. `e0` (eV) is for pacemaker's `energy_corrected`."""
    part = path.with_name(f".{path.name}.part")
    try:
        if path.name.lower().endswith(".gzip"):
            dataset.save_frame(_frame(rows, e0), part)
        else:
            with part.open("w", encoding="utf-8") as file:
                for row in rows:
                    _write_xyz(file, row)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _frame(rows: Iterable[dict[str, Any]], e0: dict[str, float]) -> pd.DataFrame:
    """pacemaker's columns: `energy_corrected` is the energy minus E0 of the atoms."""
    return pd.DataFrame(
        {
            "name": row[dataset.SOURCE],
            "ase_atoms": row[dataset.ATOMS],
            "energy": row[dataset.ENERGY],
            "forces": row[dataset.FORCES],
            "stress": row[dataset.STRESS],
            "energy_corrected": row[dataset.ENERGY] - sum(e0.get(symbol, 0.0) for symbol in row[dataset.ATOMS].symbols),
            **{key: row[key] for key in (dataset.SOURCE, dataset.GROUP, dataset.CONFIG_TYPE)},
        }
        for row in rows
    )


def _write_xyz(file: IO[str], row: dict[str, Any]) -> None:
    atoms: Atoms = row[dataset.ATOMS]
    about = {key: _quoted(row[key]) for key in (dataset.SOURCE, dataset.GROUP, dataset.CONFIG_TYPE)}
    values = {"energy": repr(float(row[dataset.ENERGY])), **about, "pbc": f'"{" ".join("FT"[int(p)] for p in atoms.pbc)}"'}
    values |= {key: repr(row[key]) for key in dataset.LABEL_WEIGHTS if key in row}
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
