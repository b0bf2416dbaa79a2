"""ASE's databases, SQLite or JSON: key-value pairs and data count as info and arrays of a structure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase.db
import numpy as np

from mlip_pace.collect.files import Frame, unpacked


def read(path: Path, kind: str) -> Iterator[Frame]:
    """Row by row. Energies and forces can be a calculator's, or under keys such as `dft_energy` and `dft_forces`."""
    with unpacked(path) as database:
        for row in ase.db.connect(str(database), type=kind, use_lock_file=False).select():
            atoms = row.toatoms()
            atoms.info.update(row.key_value_pairs)
            for key, value in row.data.items():
                array = np.asarray(value) if isinstance(value, (list, np.ndarray)) else None
                if array is not None and array.shape == (len(atoms), 3) and key not in atoms.arrays:
                    atoms.arrays[key] = array
                else:
                    atoms.info.setdefault(key, value)
            yield atoms
