"""The basis of many elements: which functions it has, and that it is built in seconds."""

import hashlib
import resource
from itertools import combinations_with_replacement, product

import pytest

from mlip_pace.ace import basis, shapes
from mlip_pace.errors import SettingsError
from mlip_pace.settings import BasisSettings

SYMBOLS = "Al Cu Mg Zn Zr Ag Au Co Cr Fe Mn Ni Ti V W".split()


def section(elements, functions, body_order=5):
    symbols = SYMBOLS[:elements]
    shortest = {"-".join(sorted(pair)): 2.0 for pair in combinations_with_replacement(symbols, 2)}
    return basis.section(BasisSettings(cutoff=5.0, functions=functions, body_order=body_order), symbols, shortest)


def described(configuration):
    """Each set of elements with the sizes of its radial functions, and its functions."""
    return {
        block.block_name: (
            (block.nradbaseij, block.nradmaxi, block.lmaxi),
            [(tuple(f.elements), tuple(f.ns), tuple(f.ls), tuple(f.LS)) for f in block.funcspecs],
        )
        for block in configuration.funcspecs_blocks
    }


@pytest.mark.parametrize(
    ("elements", "functions", "body_order", "expected"),
    [
        (1, 500, 5, "903916540ab968c4"),
        (2, 100, 5, "743f29072cdfbbc3"),
        (3, 100, 5, "b69528e4e2ce7775"),
        (4, 100, 5, "0522dad2f684cf39"),
        (4, 20, 3, "22beb7107dadb0cc"),
    ],
)
def test_the_basis_of_few_elements_is_what_it_was(elements, functions, body_order, expected):
    """Functions and their order, as hash: results of earlier versions depend on them."""
    found = described(section(elements, functions, body_order).configuration())
    assert hashlib.sha256(repr(found).encode()).hexdigest()[:16] == expected


@pytest.mark.parametrize(("elements", "functions", "body_order"), [(8, 100, 5), (8, 500, 5), (12, 300, 5), (12, 12, 2)])
def test_the_basis_of_many_elements_is_built_in_seconds_and_every_pair_is_in_it(elements, functions, body_order):
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    on = section(elements, functions, body_order)
    built = basis.basis_set(on)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - begin < 60  # 1 to 6 s; minutes to days in the keyword ALL
    basis.refuse_unusable(on, SYMBOLS[:elements])
    # As many radial functions as functions of one neighbour, for each pair.
    assert all(bond.nradbasemax >= 1 for bond in built.map_bond_specifications.values())
    seen = {(f.mu0, *f.mus) for functions in built.basis_rank1 for f in functions}
    assert seen == set(product(range(elements), repeat=2))
    counts = basis.size(on).functions.values()
    assert functions * 2 / 3 <= min(counts) <= max(counts) <= functions


@pytest.mark.parametrize(("functions", "body_order"), [(60, 5), (200, 5), (400, 4), (300, 3), (60, 2), (400, 7)])
def test_no_function_is_lost_by_smaller_shapes(monkeypatch, functions, body_order):
    """What pacemaker takes of the shapes for many elements is what it takes of the same sets of elements in full."""
    monkeypatch.setattr(shapes, "FEW", 2)
    small = section(3, functions, body_order).configuration()
    monkeypatch.setattr(shapes, "_powers", lambda *_: [])
    assert described(section(3, functions, body_order).configuration()) == described(small)


def test_sets_of_elements_grow_with_the_functions():
    """Of five and four elements where each set has ten functions, else of three or two."""
    asked = [(6, 500), (7, 500), (8, 500), (10, 500), (12, 500), (10, 100), (62, 500)]
    found = [shapes.sets_of_many(elements, 4, functions) for elements, functions in asked]
    assert found == [(5, 16), (4, 11), (3, 17), (3, 10), (2, 41), (2, 10), (2, 8)]
    assert shapes.sets_of_many(6, 2, 500) == (3, 31)  # three atoms are of three elements at most


def test_fewer_functions_than_elements_are_refused_before_anything_is_built():
    with pytest.raises(SettingsError) as refused:
        section(12, 11)
    assert "MLIP_PACE_BASIS_FUNCTIONS=11: of 12 elements" in refused.value.message
    assert "at least 12" in refused.value.hint
