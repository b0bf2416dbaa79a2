"""The search for the basis."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import EXAMPLES, design_rows

from mlip_pace import reference
from mlip_pace.ace import basis, core
from mlip_pace.collect import dataset
from mlip_pace.collect.dataset import ATOMS
from mlip_pace.collect.files import find_files
from mlip_pace.errors import SettingsError
from mlip_pace.run.compute import Compute
from mlip_pace.settings import CUTOFFS, BasisSettings, DataSettings, ReferenceSettings, TrainingSettings
from mlip_pace.train import linear, search

TRAINING = TrainingSettings()


@pytest.fixture(scope="module")
def target():
    data = DataSettings.model_construct(test_fraction=0.0)
    frames, _ = dataset.assemble(dataset.structures_of(find_files(str(EXAMPLES))), None, dataset.Rules(data, cutoffs=CUTOFFS))
    return reference.delta(reference.choose(ReferenceSettings(), frames, 5.0), frames)


@pytest.fixture(scope="module")
def build(target):
    shortest = core.shortest_of_every_pair(reference.shortest_distances(target[ATOMS], 5.0), ["Al", "Mg"])

    def of(cutoff, functions):
        settings = BasisSettings(cutoff=cutoff, functions=min(functions, 20), body_order=3)
        return basis.section(settings, ["Al", "Mg"], shortest)

    return of


@pytest.mark.parametrize("summit", CUTOFFS)
def test_the_climb_finds_a_summit_wherever_it_is_and_looks_no_further(summit):
    looked = []

    def height(value):
        looked.append(value)
        return -abs(math.log(value / summit))

    assert search.climb(CUTOFFS, 5.0, height) == summit
    assert len(set(looked)) <= 5 or summit == 8.0
    assert search.climb(CUTOFFS, 5.0, lambda _: -np.inf) == 5.0


@pytest.mark.parametrize("true", [4.5, 6.0])
def test_labels_of_a_potential_tell_its_cutoff(tmp_path, target, build, true):
    """Energies and forces of an ACE with a cutoff, and 1 meV/Å of noise: the evidence finds that cutoff among all."""
    on, rng = build(true, 20), np.random.default_rng(1)
    coefficients = rng.normal(size=40) * basis.smoothness(on)
    rows = design_rows(on, target[ATOMS])
    made = target.assign(
        energy_corrected=[float(row[0] @ coefficients) for row in rows],
        forces=[(row[1:-6] @ coefficients + rng.normal(0, 1e-3, len(row) - 7)).reshape(-1, 3) for row in rows],
    ).drop(columns="virial")
    found = search.search(tmp_path, made, build, BasisSettings(functions=20), TRAINING, Compute(threads=2))
    assert found.cutoff == true
    assert found.functions == 20
    best = max(found.tried, key=lambda one: one.log_evidence)
    assert best.cutoff == true
    assert best.errors.forces_mae == min(one.errors.forces_mae for one in found.tried)
    assert all(one.md_step_us_per_atom > 0 for one in found.tried)
    if true == 6.0:
        assert found.warnings == []
    else:
        (said,) = found.warnings
        assert said.startswith(
            "the evidence is highest for the shortest cutoff that is tried, 4.5 Å; a shorter one may be better"
        )


def test_what_has_been_tried_is_not_tried_again(tmp_path, target, build):
    settings = BasisSettings(functions=20)
    first = search.search(tmp_path, target, build, settings, TRAINING, Compute(threads=2))
    tried = json.loads((tmp_path / search.TRIED).read_text())
    (tmp_path / search.TRIED).write_text(json.dumps(tried[:2]))
    built = []

    def counting(cutoff, functions):
        built.append(cutoff)
        return build(cutoff, functions)

    second = search.search(tmp_path, target, counting, settings, TRAINING, Compute(threads=2))
    assert [replace(one, seconds=0, md_step_us_per_atom=0) for one in second.tried] == [
        replace(one, seconds=0, md_step_us_per_atom=0) for one in first.tried
    ]
    assert [one.seconds for one in second.tried[:2]] == [one["seconds"] for one in tried[:2]]
    # The first two are to say whether stresses belong, and how large the sample is.
    assert built[2:] == [one.cutoff for one in first.tried[2:]]
    assert second.cutoff == first.cutoff


def test_fixed_values_are_not_searched_for(tmp_path, target, build):
    settings = BasisSettings(cutoff=5.2, functions=70)
    assert search.search(tmp_path, target, build, settings, TRAINING, Compute()) == search.Searched(5.2, 70)
    assert search.wanted(settings) == []
    assert list(tmp_path.iterdir()) == []


def test_it_keeps_to_its_time(tmp_path, target, build):
    found = search.search(tmp_path, target, build, BasisSettings(), TRAINING, Compute(threads=2, deadline=-math.inf))
    assert len(found.tried) == 1  # something has to be found
    assert found.cutoff == 5.0
    assert "share of the time limit" in found.warnings[-1]


def test_the_number_of_functions_by_evidence(tmp_path, target):
    """Of those with which the elements see each other; the cutoff is fixed."""
    shortest = core.shortest_of_every_pair(reference.shortest_distances(target[ATOMS], 5.0), ["Al", "Mg"])

    def of(cutoff, functions):
        if functions == 125:
            raise SettingsError("so few functions leave none of Al with Mg")
        return basis.section(BasisSettings(cutoff=cutoff, functions=functions // 25), ["Al", "Mg"], shortest)

    settings = BasisSettings(cutoff=5.0, functions="auto")
    found = search.search(tmp_path, target.iloc[::4], of, settings, TRAINING, Compute(threads=2))
    assert [one.functions for one in found.tried] == [250, 500, 1000]
    assert found.functions == max(found.tried, key=lambda one: one.log_evidence).functions
    assert {one.cutoff for one in found.tried} == {5.0}


def test_the_sample_has_enough_rows_and_no_more_whatever_the_order(target):
    shortest = dict.fromkeys(("Al-Al", "Al-Mg", "Mg-Mg"), 2.5)
    on = basis.section(BasisSettings(cutoff=5.0, functions=2, body_order=2), ["Al", "Mg"], shortest)
    drawn = linear.sample(target, on, 1)
    assert 0 < len(drawn) < len(target)
    rows, functions = 3 * drawn[ATOMS].map(len), sum(basis.size(on).functions.values())
    assert 24 * functions <= rows.sum() < 24 * functions + rows.max()
    shuffled = linear.sample(target.sample(frac=1, random_state=1), on, 1)
    assert shuffled.index.sort_values().equals(drawn.index)
    assert not linear.sample(target, on, 2).index.equals(drawn.index)


def test_what_might_be_tried_is_said_before():
    assert search.wanted(BasisSettings()) == [(cutoff, 500) for cutoff in (5.0, 4.5, 5.5, 6.0, 7.0, 8.0)]
    both = search.wanted(BasisSettings(functions="auto"))
    assert {functions for _, functions in both} == {125, 250, 500, 1000}
    assert search.wanted(BasisSettings(cutoff=6.0, functions="auto")) == [(6.0, 500), (6.0, 125), (6.0, 250), (6.0, 1000)]
