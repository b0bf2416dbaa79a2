"""The basis of many elements: which functions it has, and that it is built in seconds."""

import hashlib
import resource
from itertools import combinations_with_replacement, product

import numpy as np
import pytest

from mlip_pace.ace import basis, core, shapes
from mlip_pace.ace.evaluators import pair_energies
from mlip_pace.errors import SettingsError
from mlip_pace.inputs import Inputs
from mlip_pace.run import limits
from mlip_pace.settings import BasisSettings, Settings
from mlip_pace.train import linear

SYMBOLS = ["Al", "Cu", "Mg", "Zn", "Zr", "Ag", "Au", "Co", "Cr", "Fe", "Mn", "Ni"]


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
    monkeypatch.setattr(shapes, "powers_of", lambda *_: [])
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


def test_more_functions_than_there_is_memory_for_are_refused(monkeypatch):
    """The number that the hint names has room."""
    monkeypatch.setattr(limits, "memory", lambda: 24 * 2**30)
    with pytest.raises(SettingsError) as refused:
        linear.refuse_too_many(500, 62)
    assert "31000 functions in all" in refused.value.message
    most = int(refused.value.hint.split()[2])
    linear.refuse_too_many(most, 62)
    with pytest.raises(SettingsError):
        linear.refuse_too_many(most + 1, 62)


def test_check_and_run_refuse_them_before_the_basis_is_built(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "memory", lambda: 24 * 2**30)
    monkeypatch.setattr(basis, "basis_set", None)
    symbols = SYMBOLS[:8]
    shortest = {"-".join(sorted(pair)): 2.0 for pair in combinations_with_replacement(symbols, 2)}
    settings = Settings.model_validate({"data": {"path": str(tmp_path)}, "output": {"path": tmp_path}})
    build = Inputs(settings, [], None, {}, {}, None).builder(symbols, shortest)
    for functions, said in ((7, "some would not see each other"), (10000, "80000 functions in all")):
        with pytest.raises(SettingsError, match=said):
            build(5.0, functions)


def test_a_dimer_of_two_of_many_elements_has_the_energy_of_the_whole_basis():
    """The part of the basis that it is computed with lacks nothing."""
    configuration = section(6, 60).configuration()
    blocks = configuration.funcspecs_blocks
    for n, block in enumerate(blocks):
        block.set_func_coeffs(np.sin(n + np.arange(len(block.get_func_coeffs()))) / 100)
    configuration.funcspecs_blocks = blocks
    r = np.linspace(1.7, 4.5, 20)
    for pair in (("Al", "Al"), ("Cu", "Zr")):
        whole = pair_energies(configuration, *pair, r)
        assert np.ptp(whole) > 0.01
        part = core.part_of(configuration, set(pair))
        np.testing.assert_allclose(pair_energies(part, *pair, r), whole, rtol=0, atol=1e-12)
