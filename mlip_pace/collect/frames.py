"""Data frames in pickles, pacemaker's and ours, read without running any code."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from ase import Atoms

from mlip_pace.errors import UnsafeError


def read(path: Path) -> Iterator[Atoms | str]:
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
