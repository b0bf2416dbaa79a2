"""Whether the data tell of pressure: stresses do, and structures of the same composition at several volumes."""

from __future__ import annotations

from collections.abc import Sequence

from ase import Atoms

from mlip_pace.collect.cells import is_bulk
from mlip_pace.collect.geometry import composition

SAME = 0.01  # part of the volume of an atom that volumes differ by which tell nothing
LOOKED_AT = 2000  # structures, about


def unknown(structures: Sequence[Atoms], stresses: bool) -> list[str]:
    """What a user should know of structures to train on whose bulk ones have one volume for each composition and, as `stresses`
    says, no stress.
    """
    alike: dict[str, list[Atoms]] = {}
    for atoms in [] if stresses else structures[:: 1 + len(structures) // LOOKED_AT]:
        alike.setdefault(composition(atoms), []).append(atoms)
    names = []
    for name, several in alike.items():
        if len(several) < 2 or not is_bulk(several[0]):
            continue
        volumes = [float(atoms.cell.volume) / len(atoms) for atoms in several]
        if max(volumes) > (1 + SAME) * min(volumes):
            return []
        names.append(name)
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [
        f"all structures of {', '.join(names[:3])}{more} have one volume, and there is no stress to fit: the data tell nothing "
        "of pressure, so that lattice and elastic constants of the potential are not to be relied on; add structures of other "
        "volumes, or stresses"
    ]
