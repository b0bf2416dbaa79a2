"""VASP: vasprun.xml without the electronic structure."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

from ase import Atoms
from ase.io import iread

from mlip_pace.collect.files import Frame, opened

_ELECTRONS = re.compile(rb"<(eigenvalues|dos|projected)\b.*?</\1>", re.DOTALL)


def read_xml(path: Path) -> Iterator[Frame]:
    """Without the electronic structure, most of the file and of the time that ASE would take for it."""
    with opened(path) as file:
        content = _ELECTRONS.sub(b"", file.read())
    for atoms in iread(io.BytesIO(content), index=":", format="vasp-xml"):
        assert isinstance(atoms, Atoms)
        yield atoms
