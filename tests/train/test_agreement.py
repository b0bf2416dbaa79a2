"""Labels that do not belong together are told before the fit: units and signs of stresses, of forces beside energies."""

import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import EXAMPLES, ROOT

from mlip_pace import reference
from mlip_pace.ace import basis, core
from mlip_pace.collect import dataset
from mlip_pace.collect.files import find_files
from mlip_pace.errors import DataError, SettingsError
from mlip_pace.run.compute import Compute
from mlip_pace.settings import BasisSettings, DataSettings, ReferenceSettings, TrainingSettings
from mlip_pace.train import agreement, search

SILICON = ROOT.parent / "shared" / "data" / "si-zuo2020" / "train.extxyz"


def frames_of(path):
    data = DataSettings.model_construct(test_fraction=0.0)
    return dataset.assemble(dataset.structures_of(find_files(str(path))), None, dataset.Rules(data))[0]


@pytest.fixture(scope="module")
def frames():
    return frames_of(EXAMPLES)


def built(elements, shortest, cutoff, functions):
    return basis.section(BasisSettings(cutoff=cutoff, functions=functions), elements, shortest)


def doubt(frames, build=None):
    elements = sorted({symbol for atoms in frames[dataset.ATOMS] for symbol in atoms.symbols})
    shortest = core.shortest_of_every_pair(reference.shortest_distances(frames[dataset.ATOMS], 5.0), elements)
    return agreement.doubt_about_stresses(frames, build or partial(built, elements, shortest, 5.0), 1, 1)


def scaled(frames, label, factor):
    return frames.assign(**{label: [None if one is None else factor * one for one in frames[label]]})


@pytest.mark.parametrize(
    ("factor", "named"),
    [
        (-1, ["of the other sign?"]),
        (160.22, ["in GPa and taken for eV/Å^3?"]),
        (-1602.2, ["of the other sign and in kbar and taken for eV/Å^3?"]),
        (1 / 160.22, ["in eV/Å^3 and taken for GPa or in Hartree/bohr^3 and taken for eV/Å^3?"]),
        (1e-3, ["in kbar and taken for bar?"]),
        (10, ["in kbar and taken for GPa?"]),
        (1 / 91.82, ["in Rydberg/bohr^3 and taken for eV/Å^3?"]),
        (37, []),
    ],
)
def test_a_stress_in_another_unit_or_of_the_other_sign_is_told_with_what_it_may_be(frames, factor, named):
    said = doubt(scaled(frames, dataset.STRESS, factor))
    assert "are not fitted" in said
    assert float(re.search(r"they are (\S+) times", said)[1]) == pytest.approx(factor, rel=0.1)
    assert re.findall(r": ([^:]*\?);", said) == named


@pytest.mark.parametrize("factor", [1.0, 0.5, 2.0])
def test_stresses_that_belong_are_not_doubted_nor_those_that_a_fit_may_miss(frames, factor):
    assert doubt(scaled(frames, dataset.STRESS, factor)) == ""


@pytest.mark.parametrize("factor", [-1, 51.42, 1 / 25.71, 23.06])
def test_forces_in_another_unit_or_gradients_in_their_place_are_refused(frames, factor):
    with pytest.raises(DataError, match="energies and forces do not belong together") as refused:
        doubt(scaled(frames, dataset.FORCES, factor))
    found, label = re.search(r"are (\S+) times what a fit to the (energies|forces)", refused.value.message).groups()
    assert float(found) == pytest.approx(factor if label == "energies" else 1 / factor, rel=0.1)


@pytest.mark.skipif(not SILICON.exists(), reason="the real data of ../shared are not at hand")
def test_gradients_in_the_place_of_forces_are_refused_of_dft_as_well():
    silicon = frames_of(SILICON)
    assert doubt(silicon) == ""
    with pytest.raises(DataError, match=r"forces are .* times what a fit to the energies alone predicts") as refused:
        doubt(scaled(silicon, dataset.FORCES, -1))
    assert float(re.search(r"are (\S+) times", refused.value.message)[1]) == pytest.approx(-1, rel=0.2)


def test_of_few_structures_or_labels_without_any_relation_nothing_is_said(frames):
    assert doubt(scaled(frames.iloc[: agreement.FEWEST - 1], dataset.STRESS, -1)) == ""
    thirty = frames[[bool(forces.any()) for forces in frames[dataset.FORCES]]].iloc[: agreement.LOOKED_AT]
    wrong = [-stress if n < agreement.FEWEST - 1 else None for n, stress in enumerate(thirty[dataset.STRESS])]
    assert doubt(thirty.assign(**{dataset.STRESS: wrong})) == ""
    rng = np.random.default_rng(1)
    noise = frames.assign(**{dataset.FORCES: [rng.normal(size=forces.shape) for forces in frames[dataset.FORCES]]})
    assert doubt(noise.drop(columns=dataset.STRESS)) == ""
    assert doubt(scaled(frames, dataset.FORCES, 0.0).drop(columns=dataset.STRESS)) == ""


@pytest.mark.parametrize(
    ("label", "weight"),
    [(dataset.FORCES, "energy_weight"), (dataset.FORCES, "forces_weight"), (dataset.STRESS, "stress_weight")],
)
def test_labels_that_the_data_give_no_weight_contradict_nothing(frames, label, weight):
    """Half of the structures are as they are, of the others the labels are of the other sign, but do not count."""
    wrong = frames.assign(**{dataset.SOURCE: "wrong " + frames[dataset.SOURCE]})
    all_count = dict.fromkeys(dataset.LABEL_WEIGHTS, 1.0)
    parts = [frames.assign(**all_count), scaled(wrong, label, -1).assign(**{**all_count, weight: 0.0})]
    both = pd.concat(parts, ignore_index=True)
    assert doubt(both) == ""
    alone = scaled(frames, label, -1)
    if label == dataset.STRESS:
        assert "of the other sign" in doubt(alone.assign(**{weight: 1.0}))
    else:
        with pytest.raises(DataError):
            doubt(alone.assign(**{weight: 1.0}))


def test_stresses_of_crystals_at_rest_do_not_hide_the_forces_of_others(frames):
    rest = [n % 2 == 0 for n in range(len(frames))]
    pairs = list(zip(rest, frames[dataset.FORCES], frames[dataset.STRESS], strict=True))
    forces = [0 * one if at_rest else one / 51.42 for at_rest, one, _ in pairs]
    stresses = [one if at_rest else None for at_rest, _, one in pairs]
    with pytest.raises(DataError, match=r"forces are 0\.0[12]\d* times what a fit to the energies alone predicts"):
        doubt(frames.assign(**{dataset.FORCES: forces, dataset.STRESS: stresses}))


def test_what_the_fit_is_not_sure_of_is_not_compared(frames):
    """Of too few of nine structures is the standard deviation of a prediction below half of it."""
    assert doubt(frames.sample(9, random_state=9)) == ""


def test_all_elements_together_have_so_many_coefficients(frames):
    shortest, asked = dict.fromkeys(("Al-Al", "Al-Mg", "Mg-Mg"), 2.5), []

    def build(functions):
        asked.append(functions)
        return built(["Al", "Mg"], shortest, 5.0, functions)

    doubt(frames, build=build)
    assert asked == [agreement.COEFFICIENTS // 2]


def test_a_file_to_go_on_from_with_very_many_functions_says_nothing(frames):
    """It has as many as it has, whatever is asked for: the least squares of a look would take longer than the job's."""
    shortest = dict.fromkeys(("Al-Al", "Al-Mg", "Mg-Mg"), 2.5)
    large = built(["Al", "Mg"], shortest, 5.0, agreement.MOST)
    assert doubt(scaled(frames, dataset.STRESS, -1), build=lambda _: large) == ""


def test_a_basis_that_cannot_be_so_small_says_nothing(frames):
    def build(_):
        raise SettingsError("too few", "more")

    assert doubt(scaled(frames, dataset.STRESS, -1), build=build) == ""


def test_doubted_stresses_are_not_fitted_and_do_not_choose_the_basis(tmp_path, frames):
    target, subtracted = reference.subtracted_from(scaled(frames, dataset.STRESS, -160.22), ReferenceSettings(), 5.0, 1)
    shortest = core.shortest_of_every_pair(subtracted.shortest, ["Al", "Mg"])
    build = partial(built, ["Al", "Mg"], shortest)
    given = BasisSettings(cutoff="auto", functions=20, body_order=3)
    found = []
    for number, one in enumerate((target, target.drop(columns=[reference.VIRIAL, dataset.STRESS]))):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(search.search(folder, one, build, given, TrainingSettings(), Compute()))
    doubted, without = found
    assert (doubted.stress, without.stress) == (False, True)
    assert [one.log_evidence for one in doubted.tried] == [one.log_evidence for one in without.tried]
    assert reference.VIRIAL not in doubted.fitted(target)
    assert reference.VIRIAL in without.fitted(target)
    assert any("are not fitted" in warning for warning in doubted.warnings)
