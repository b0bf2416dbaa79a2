"""How large n and l of a function may be, by its order and by the number of different elements in it, the central one included.

For few elements radial orders and angular momenta are those of `pacemaker -t` (python-ace, `input_template.yaml`). Its keyword
ALL stands for every set of elements, 2^(N-1) for each central atom, and each set gets the same number of functions: with ten
elements none at all. Before that, python-ace finds the sets by trying (N-1)^(N-1) lists of elements, and makes and checks all
functions of all sets: 15 s for 6 elements, minutes for 7. So with many elements functions are of a few elements only, and n and
l no larger than those of the functions that it takes.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement, product

from mlip_pace.errors import SettingsError

Shape = tuple[list[int], list[int]]  # nradmax and lmax for orders 1, 2, ... (body order minus one)

_SHAPES: dict[str, Shape] = {
    "UNARY": ([15, 6, 4, 3, 2, 2], [0, 3, 3, 2, 2, 1]),
    "BINARY": ([15, 6, 3, 2, 2, 1], [0, 3, 2, 1, 1, 0]),
    "TERNARY": ([15, 3, 3, 2, 1], [0, 2, 2, 1, 1]),
    "ALL": ([15, 3, 2, 1, 1], [0, 2, 2, 1, 1]),
}
_KINDS = ("UNARY", "BINARY", "TERNARY", "QUATERNARY", "QUINARY")
FEW = 5  # elements; the basis of more is another
SHARE = 10  # functions that every set of elements has before there are sets of one element more


def shapes(elements: int, orders: int, functions: int) -> dict[str, Shape]:
    """By pacemaker's keyword, for so many orders and functions of each element. Raises `SettingsError`."""
    if elements <= FEW:
        return {keyword: (n[:orders], lmax[:orders]) for keyword, (n, lmax) in _SHAPES.items()}
    kinds, share = sets_of_many(elements, orders, functions)
    if share < 1:
        raise SettingsError(
            f"MLIP_PACE_BASIS_FUNCTIONS={functions}: of {elements} elements some would not see each other",
            f"give at least {elements}, one function for each pair; better {SHARE * elements}",
        )
    return {_KINDS[kind - 1]: _shape(kind, orders, share) for kind in range(1, kinds + 1)}


def sets_of_many(elements: int, orders: int, functions: int) -> tuple[int, int]:
    """How many different elements the functions of more than FEW may have, and how many functions each set of elements has.

    Pairs at least, more as long as every set has its SHARE. A function of order ν is of ν + 1 elements at most.
    """
    kinds, sets = 2, elements
    for more in range(3, min(orders + 1, len(_KINDS)) + 1):
        larger = sum(math.comb(elements - 1, others) for others in range(more))
        if functions // larger < SHARE:
            break
        kinds, sets = more, larger
    return kinds, functions // sets


def _shape(kinds: int, orders: int, share: int) -> Shape:
    """The smallest that has the `share` functions of a set which pacemaker takes, those of the lowest power: order + Σ (n + l).

    With one n above 1 the power is at least 2 order + n - 1. An l is balanced by the others: 2 order + 2 l.
    """
    n, lmax = (most[:orders] for most in _SHAPES.get(_KINDS[kinds - 1], _SHAPES["ALL"]))
    ascending = powers_of(kinds, n, lmax)
    power = ascending[share - 1] if share <= len(ascending) else math.inf
    there = [order for order in range(1, len(n) + 1) if 2 * order <= power]
    return (
        [int(min(n[order - 1], power - 2 * order + 1)) for order in there],
        [int(min(lmax[order - 1], (power - 2 * order) / 2)) for order in there],
    )


def powers_of(kinds: int, n: list[int], lmax: list[int]) -> list[int]:
    """Those of all functions of orders 1 and 2 of a set of elements, ascending; higher orders only add to them."""
    powers = [1 + one for one in range(1, n[0] + 1)] if kinds < 3 else []
    if len(n) > 1:
        of_same: list[tuple[int, ...]] = list(combinations_with_replacement(range(1, n[1] + 1), 2))
        of_two: list[tuple[int, ...]] = list(product(range(1, n[1] + 1), repeat=2))
        pairs = {1: of_same, 2: of_same + of_two, 3: of_two}.get(kinds, [])
        powers += [2 + sum(pair) + 2 * angular for pair in pairs for angular in range(lmax[1] + 1)]
    return sorted(powers)
