"""Which structures are trained on and which are held out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from ase import Atoms

from mlip_pace.settings import DataSettings

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


def untested(groups: Sequence[str], split: Sequence[str], data: DataSettings) -> list[str]:
    """Why there are no test structures, if some were asked for."""
    if not (data.test_path or data.test_fraction > 0) or TEST in set(split):
        return []
    if data.test_path:
        return ["there are no test structures: all of the test data is also in the training data"]
    if len(set(groups)) == 1:
        return [
            f"there are no test structures: all are of one calculation ({next(iter(groups))}), whose frames are alike; give "
            "others by MLIP_PACE_DATA_TEST_PATH, or, if they are of several, as extended XYZ or with a `group` each"
        ]
    return ["there are no test structures: there are too few calculations, or elements that only one of them has"]
