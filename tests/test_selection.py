"""The D-optimal choice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlip_pace import reference, selection
from mlip_pace.collect import dataset
from mlip_pace.collect.files import find_files
from mlip_pace.settings import DataSettings


def random_structures(seed, count=30, functions=6):
    rng = np.random.default_rng(seed)
    return [{"Al": rng.normal(size=(rng.integers(1, 5), functions)), "Mg": rng.normal(size=(2, 4)) ** 3} for _ in range(count)]


def keys_of(structures):
    return [b"".join(block.tobytes() for block in rows.values()) for rows in structures]


def choose(structures, always=(), limit=None):
    """`doptimal` on a copy, which it whitens."""
    copies = [{symbol: block.copy() for symbol, block in rows.items()} for rows in structures]
    return selection.doptimal(copies, keys_of(structures), list(always), limit)


def information(structures, weights):
    """Weighted information of the chosen structures, `{position: weight}`, of the two elements as one matrix."""
    total = np.zeros((10, 10))
    for n, weight in weights.items():
        for symbol, place in (("Al", slice(0, 6)), ("Mg", slice(6, 10))):
            total[place, place] += weight * structures[n][symbol].T @ structures[n][symbol]
    return total


def distance(structures, weights):
    """How far the information of a choice is from that of all structures, in functions whitened by the latter."""
    whole = np.linalg.cholesky(information(structures, dict.fromkeys(range(len(structures)), 1.0)))
    white = np.linalg.solve(whole, np.linalg.solve(whole, information(structures, weights)).T)
    return np.linalg.norm(white - np.eye(10))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), limit=st.one_of(st.none(), st.integers(1, 30)), data=st.data())
def test_the_order_of_the_structures_does_not_matter(seed, limit, data):
    structures = random_structures(seed)
    order = data.draw(st.permutations(range(30)))
    first = choose(structures, [3], limit)
    shuffled = [structures[n] for n in order]
    second = choose(shuffled, [order.index(3)], limit)
    assert sorted(order[n] for n in second.chosen) == first.chosen
    assert {order[n]: grade for n, grade in second.grades.items()} == first.grades
    assert {order[n]: weight for n, weight in zip(second.chosen, second.weights, strict=True)} == dict(
        zip(first.chosen, first.weights, strict=True)
    )
    if limit is not None:
        assert len(first.chosen) == limit


def test_its_information_is_closer_to_that_of_all_than_of_any_random_choice():
    structures = random_structures(1, count=60)
    choice = choose(structures, limit=10)
    rng = np.random.default_rng(2)
    random = [dict.fromkeys(rng.choice(60, 10, replace=False), 6.0) for _ in range(200)]
    found = dict(zip(choice.chosen, choice.weights, strict=True))
    assert distance(structures, found) < min(distance(structures, weights) for weights in random)
    whole = dict.fromkeys(range(60), 1.0)
    loss = np.linalg.slogdet(information(structures, found))[1] - np.linalg.slogdet(information(structures, whole))[1]
    assert choice.efficiency == pytest.approx(np.exp(loss / 10), rel=1e-4)


def test_without_a_number_it_ends_when_nothing_left_out_is_news():
    structures = random_structures(3, count=800)
    choice = choose(structures)
    assert len(choice.chosen) < 800
    assert max(choice.grades.values()) <= selection.GRADE
    assert len(choose(structures, [5, 7], 2).chosen) == 2


def test_singular_data_does_not_crash():
    same = [{"Al": np.ones((2, 5))} for _ in range(12)] + [{"Al": np.zeros((2, 5))}]
    choice = selection.doptimal(same, [bytes([n]) for n in range(13)], [], 6)
    assert len(choice.chosen) == 6


def test_functions_that_follow_from_others_do_not_count():
    """ACE's functions of one element hang together, and those of several elements may not occur: both are no loss."""
    plain = [{"Al": rows["Al"].astype(np.float32)} for rows in random_structures(3, count=60)]
    more = [np.hstack([rows["Al"], rows["Al"].sum(axis=1, keepdims=True), 0 * rows["Al"][:, :1]]) for rows in plain]
    assert choose(plain, limit=30).efficiency > 0.9
    assert choose([{"Al": rows} for rows in more], limit=30).efficiency > 0.9


def test_fewer_atoms_than_functions_are_all_kept():
    rng = np.random.default_rng(4)
    structures = [{"Al": rng.normal(size=(2, 30))} for _ in range(10)]
    choice = choose(structures)
    assert choice.chosen == list(range(10))
    np.testing.assert_allclose(choice.weights, 1, rtol=0.2)


def test_lowest_energies_and_shortest_distances_are_indispensable():
    from conftest import EXAMPLES

    data = DataSettings.model_construct(test_fraction=0.0)
    frame, _ = dataset.assemble(dataset.structures_of(find_files(str(EXAMPLES))), None, dataset.Rules(data, seed=1))
    always = frame.iloc[selection.indispensable(frame, 5.0)]
    assert {"al_fcc_volume_1.00", "mg_hcp_volume_1.00", "al3mg_l12_volume_1.00"} <= set(always.group)
    every = reference.shortest_distances(frame.ase_atoms, 5.0)
    assert reference.shortest_distances(always.ase_atoms, 5.0) == pytest.approx(every)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_left_out_is_known_to_a_third_of_the_noise(seed):
    """Leverage b M^-1 b of every atom left out, computed anew: at most 0.1."""
    structures = random_structures(seed, count=60)
    choice = choose(structures)
    chosen = dict(zip(choice.chosen, choice.weights, strict=True))
    inverse = np.linalg.inv(information(structures, chosen))
    for n in set(range(60)) - set(chosen):
        for symbol, place in (("Al", slice(0, 6)), ("Mg", slice(6, 10))):
            leverages = np.einsum("ai,ij,aj->a", structures[n][symbol], inverse[place, place], structures[n][symbol])
            assert leverages.max() <= 0.1 * (1 + 1e-6)
