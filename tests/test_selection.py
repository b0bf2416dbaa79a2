"""The D-optimal choice."""

import numpy as np
import pytest
from conftest import EXAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st

from mlip_pace import reference, selection
from mlip_pace.ace import basis, core
from mlip_pace.ace.projections import Projections
from mlip_pace.collect import dataset
from mlip_pace.collect.files import find_files
from mlip_pace.settings import BasisSettings, DataSettings, ReferenceSettings, SelectionSettings

PLACES = {"Al": slice(0, 6), "Mg": slice(6, 10)}


def random_structures(seed, count=30, functions=6):
    rng = np.random.default_rng(seed)
    return [{"Al": rng.normal(size=(rng.integers(1, 5), functions)), "Mg": rng.normal(size=(2, 4)) ** 3} for _ in range(count)]


def stored(folder, structures):
    """The rows of some structures in files, as `projections.on_disk` writes them."""
    symbols = sorted({symbol for rows in structures for symbol in rows})
    files, which, functions = {}, {}, {}
    for symbol in symbols:
        blocks = [rows[symbol] for rows in structures if symbol in rows]
        files[symbol] = folder / symbol
        np.concatenate(blocks).tofile(files[symbol])
        which[symbol] = np.repeat(np.arange(len(structures)), [len(rows.get(symbol, [])) for rows in structures])
        functions[symbol] = blocks[0].shape[1]
    return Projections(files, which, functions, np.float64, len(structures))


@pytest.fixture(scope="module")
def choose(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return lambda structures, number, always=(): selection.doptimal(stored(folder, structures), list(always), number)


def information(structures, weights):
    """Weighted information of structures, `{position: weight}`, of the two elements as one matrix."""
    total = np.zeros((10, 10))
    for n, weight in weights.items():
        for symbol, place in PLACES.items():
            total[place, place] += weight * structures[n][symbol].T @ structures[n][symbol]
    return total


def distance(structures, weights):
    """How far the information of a choice is from that of all structures, in functions whitened by the latter."""
    whole = np.linalg.cholesky(information(structures, dict.fromkeys(range(len(structures)), 1.0)))
    white = np.linalg.solve(whole, np.linalg.solve(whole, information(structures, weights)).T)
    return np.linalg.norm(white - np.eye(10))


def test_its_information_is_closer_to_that_of_all_than_of_any_random_choice(choose):
    structures = random_structures(1, count=60)
    choice = choose(structures, 10)
    rng = np.random.default_rng(2)
    random = [dict.fromkeys(rng.choice(60, 10, replace=False), 6.0) for _ in range(200)]
    found = dict(zip(choice.chosen, choice.weights, strict=True))
    assert distance(structures, found) < min(distance(structures, weights) for weights in random)
    whole = dict.fromkeys(range(60), 1.0)
    loss = np.linalg.slogdet(information(structures, found))[1] - np.linalg.slogdet(information(structures, whole))[1]
    assert choice.efficiency == pytest.approx(np.exp(loss / 10), rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), number=st.integers(1, 29), outliers=st.integers(0, 3))
def test_weights_are_bounded_and_add_up_whatever_the_data(choose, seed, number, outliers):
    """Also where one structure alone has anything of a function: at the cutoff (1e-6), or far from all others (1e4)."""
    structures = random_structures(seed)
    for n in range(outliers):
        structures[n]["Al"][:, 5] = 10.0 ** (10 * n - 6)
    for rows in structures[outliers:]:
        rows["Al"][:, 5] = 0.0
    choice = choose(structures, number)
    assert len(choice.chosen) == number
    assert sum(choice.weights) == pytest.approx(30, rel=1e-6)
    assert max(choice.weights) <= 2 * 30 / number * (1 + 1e-9)
    assert min(choice.weights) > 0
    assert choice.effective_number == pytest.approx(sum(choice.weights) ** 2 / np.square(choice.weights).sum())
    assert 0 < choice.efficiency <= 2


def test_grades_are_variances_of_the_weighted_fit(choose):
    """Against fits to labels of pure noise: the variance of the energy of each atom left out, over many draws."""
    structures = random_structures(5, count=20)
    choice = choose(structures, 8)
    rng, draws = np.random.default_rng(0), 4000
    for symbol in PLACES:
        rows = np.concatenate([structures[n][symbol] for n in choice.chosen])
        weights = np.repeat(choice.weights, [len(structures[n][symbol]) for n in choice.chosen])
        noise = rng.normal(size=(len(rows), draws))
        fitted = np.linalg.solve(rows.T @ (weights[:, None] * rows), rows.T @ (weights[:, None] * noise))
        for n in set(range(20)) - set(choice.chosen):
            assert (structures[n][symbol] @ fitted).var(axis=1).max() <= 1.15 * choice.grades[n]
    largest = {}
    for n in choice.grades:
        for symbol in PLACES:
            rows = np.concatenate([structures[m][symbol] for m in choice.chosen])
            w = np.repeat(choice.weights, [len(structures[m][symbol]) for m in choice.chosen])
            solve = np.linalg.inv(rows.T @ (w[:, None] * rows)) @ rows.T * w
            largest[n] = max(largest.get(n, 0), ((structures[n][symbol] @ solve) ** 2).sum(axis=1).max())
    assert choice.grades == pytest.approx(largest, rel=1e-4)


def test_singular_data_does_not_crash(choose):
    same = [{"Al": np.ones((2, 5))} for _ in range(12)] + [{"Al": np.zeros((2, 5))}]
    assert len(choose(same, 6).chosen) == 6
    nothing = [{"Al": np.zeros((2, 5))} for _ in range(5)]
    assert len(choose(nothing, 3).chosen) == 3


def test_functions_that_follow_from_others_do_not_count(choose):
    """ACE's functions of one element hang together, and those of several elements may not occur: both are no loss."""
    plain = [{"Al": rows["Al"]} for rows in random_structures(3, count=60)]
    more = [{"Al": np.hstack([rows["Al"], rows["Al"].sum(axis=1, keepdims=True), 0 * rows["Al"][:, :1]])} for rows in plain]
    assert choose(plain, 30).efficiency > 0.9
    assert choose(more, 30).efficiency > 0.9


def test_those_always_to_be_chosen_are_chosen(choose):
    structures = random_structures(3)
    assert {5, 7} <= set(choose(structures, 10, [5, 7]).chosen)
    assert choose(structures, 2, [5, 7, 9]).chosen == [5, 7]


def test_more_structures_never_lower_the_number_that_is_enough():
    rng, atoms, before = np.random.default_rng(0), [], 0
    for _ in range(300):
        atoms.append([None] * int(rng.integers(1, 200)))
        now = selection.enough(atoms, 20)
        assert before <= now <= len(atoms)
        before = now
    # The smallest ones that have 64 rows of forces for each of 20 coefficients, counted one by one.
    rows = [max(3 * size, 24) for size in sorted(map(len, atoms))]
    assert sum(rows[: before - 1]) < 64 * 20 <= sum(rows[:before])


@pytest.fixture(scope="module")
def examples():
    """Training structures of the example data, and a small basis."""
    data = DataSettings.model_construct(test_fraction=0.0)
    frame, _ = dataset.assemble(dataset.structures_of(find_files(str(EXAMPLES))), None, dataset.Rules(data, seed=1))
    target = reference.delta(reference.choose(ReferenceSettings(), frame, 5.0), frame)
    shortest = core.shortest_of_every_pair(reference.shortest_distances(frame.ase_atoms, 5.0), ["Al", "Mg"])
    return target, basis.section(BasisSettings(cutoff=5.0, functions=20), ["Al", "Mg"], shortest)


def test_the_order_of_the_structures_does_not_matter(examples, tmp_path):
    target, on = examples
    asked = SelectionSettings(max_structures=15)
    first, about = selection.choose(target, on, asked, 1, tmp_path)
    second, _ = selection.choose(target.sample(frac=1, random_state=3), on, asked, 2, tmp_path)
    assert first.weights == second.weights
    assert first.grades == second.grades
    assert (about.method, about.chosen, about.reason) == ("doptimal", 15, "15 were asked for")
    assert len(first.weights) == 15
    assert set(first.weights) | set(first.grades) == set(target.source)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "iterations", "reason"),
    [
        ({"method": "none"}, 1, "none was asked for"),
        ({}, 0, "without iterations a choice would save no time"),
        ({}, 1, "so many are needed for"),
        ({"max_structures": 10**6}, 1, "1000000 were asked for"),
    ],
)
def test_where_a_choice_saves_no_time_none_is_made(examples, tmp_path, asked, iterations, reason):
    target, on = examples
    chosen, about = selection.choose(target, on, SelectionSettings(**asked), 1, tmp_path, iterations)
    assert about.method == "none"
    assert about.reason.startswith(reason)
    assert chosen.weights == dict.fromkeys(target.source, 1.0)
    assert about.d_efficiency is None


def test_lowest_energies_and_shortest_distances_are_indispensable(examples):
    frame, _ = examples
    always = frame.iloc[selection.indispensable(frame, 5.0)]
    assert {"al_fcc_volume_1.00", "mg_hcp_volume_1.00", "al3mg_l12_volume_1.00"} <= set(always.group)
    every = reference.shortest_distances(frame.ase_atoms, 5.0)
    assert reference.shortest_distances(always.ase_atoms, 5.0) == pytest.approx(every)
