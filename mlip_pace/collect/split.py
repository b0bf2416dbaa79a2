"""Which structures are trained on and which are held out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from ase import Atoms

TRAIN, TEST = "train", "test"


def split_by_group(groups: Sequence[str], structures: Sequence[Atoms], fraction: float, seed: int) -> list[str]:
    """`train` or `test` for each structure: whole groups, about `fraction` of all, never the last ones of an element.

    The choice depends on the names of the groups and the seed, not on their order. Where every group is larger than what is
    wanted, the smallest one is taken, unless that is more than half of all.
    """
    sizes, count = Counter(groups), len(groups)
    drawn = sorted(sizes, key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest())
    elements: dict[str, Counter[str]] = {group: Counter() for group in drawn}
    for group, atoms in zip(groups, structures, strict=True):
        elements[group].update(set(atoms.symbols))
    remaining = sum(elements.values(), Counter())
    wanted, taken, test = round(fraction * count) or int(fraction > 0), 0, set()

    def take(group: str, most: float) -> None:
        nonlocal taken, remaining
        left = remaining - elements[group]
        if taken < wanted and taken + sizes[group] <= most and len(left) == len(remaining):
            test.add(group)
            taken, remaining = taken + sizes[group], left

    for group in drawn:
        take(group, most=min(1.5 * wanted + 1, count - 2))
    if not test:
        take(min(drawn, key=lambda g: (sizes[g], drawn.index(g))), most=count / 2)
    return [TEST if group in test else TRAIN for group in groups]
