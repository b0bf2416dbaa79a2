"""The words at the top of the page and what to mind, against metadata made by hand: nothing here is read from a run."""

import re

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from mlip_pace.report import verdict

JUST = 1 + 1e-9


def frame_of(subset="test", force=1.0):
    """Two dimers whose force components are ±`force` (eV/Å), so that this is also their spread."""
    forces = force * np.array([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    row = {"ase_atoms": Atoms("H2", [(0, 0, 0), (0, 0, 1)]), "subset": subset, "energy_atoms": 0.0, "energy_dft": -1.0,
           "energy_pred": -1.0, "forces_dft": forces, "forces_pred": forces}  # fmt: skip
    return pd.DataFrame([row, {**row, "energy_dft": -1.5}])


def of(energy=0.001, forces=0.01, n=50):
    """Errors of a subset: RMSE in eV/atom and eV/Å."""
    return {"energy_rmse": energy, "forces_rmse": forces, "energy_mae": energy, "forces_mae": forces,
            "n_structures": n, "n_atoms": 2 * n}  # fmt: skip


def metadata(**changes):
    """A run that nothing is to be said about."""
    quiet = {
        "complete": True, "quality_gate_missed": [], "warnings": [], "worse_than_nothing": [],
        "reference": {"requires_overlay": False},
        "errors": {"train": of(), "test": of()}, "errors_by_config_type": {"train": {"a": of()}, "test": {"a": of()}},
    }  # fmt: skip
    return quiet | changes


# Upper limits of each word, as docs/howto/report.md has them: meV/atom, and the RMSE of forces in % of their spread.
LIMITS = [("very good", 2, 5), ("good", 5, 10), ("fair", 10, 20), ("rough", 26, 35)]
ORDER = [*(word for word, *_ in LIMITS), "poor"]


@pytest.mark.parametrize("place", range(4))
def test_each_word_ends_at_its_limit(place):
    word, energy, forces = LIMITS[place]
    at = metadata(errors={"test": of(energy / 1000 / JUST, forces / 100 / JUST)})
    assert verdict.verdict_word(at, frame_of()) == word
    beyond = metadata(errors={"test": of(energy / 1000 * JUST, forces / 100 * JUST)})
    assert verdict.verdict_word(beyond, frame_of()) == ORDER[place + 1]


@pytest.mark.parametrize("force", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("place", range(4))
def test_forces_are_judged_by_their_spread(place, force):
    word, _, percent = LIMITS[place]
    for factor, expected in ((1 / JUST, word), (JUST, ORDER[place + 1])):
        found = verdict.verdict_word(metadata(errors={"test": of(1.0, force * percent / 100 * factor)}), frame_of(force=force))
        assert found == ("poor" if expected == "poor" else f"{expected} forces, poor energies")


@given(st.floats(1e-6, 1.0), st.floats(1e-6, 2.0))
def test_words_never_get_better_with_larger_errors(energy, forces):
    def ranks(energy, forces):
        found = verdict.verdict_word(metadata(errors={"test": of(energy, forces)}), frame_of())
        parts = dict(reversed(part.rsplit(" ", 1)) for part in found.split(", ")) if "," in found else {}
        return ORDER.index(parts.get("energies", found)), ORDER.index(parts.get("forces", found))

    for larger in ((2 * energy, forces), (energy, 2 * forces)):
        assert all(after >= before for before, after in zip(ranks(energy, forces), ranks(*larger), strict=True))


@pytest.mark.parametrize(("share", "word"), [(0.49, "very good"), (0.51, "rough"), (0.89, "rough"), (0.91, "poor")])
def test_small_energy_errors_are_no_merit_where_all_energies_are_alike(share, word):
    """Of the spread of all energies, 0.125 eV/atom in `frame_of`, made a thousand times smaller."""
    alike = frame_of()
    alike["energy_dft"] = [-1.0, -1.0005]
    found = verdict.verdict_word(metadata(errors={"test": of(share * 0.000125)}), alike)
    assert found == (word if word == "very good" else f"very good forces, {word} energies")


def test_without_forces_only_energies_are_judged():
    assert verdict.verdict_word(metadata(), frame_of(force=0.0)) == "very good energies"
    assert "%" not in verdict.verdict(metadata(), frame_of(force=0.0))


def test_the_test_set_is_judged_and_without_one_the_training_set():
    both = metadata(errors={"train": of(0.001, 0.01), "test": of(0.1, 1.0)})
    assert verdict.verdict_word(both, frame_of("test")) == "poor"
    alone = metadata(errors={"train": of(0.001, 0.01)})
    assert verdict.verdict_word(alone, frame_of("train")) == "very good"
    assert "there is no test set" in verdict.verdict(alone, frame_of("train"))
    assert "that it has not seen" in verdict.verdict(both, frame_of("test"))


def test_the_sentence_has_the_numbers_of_the_sidecar():
    told = verdict.verdict(metadata(errors={"test": of(0.01234, 0.0567, 17)}), frame_of(force=0.5))
    for number in ("17 structures", "34 atoms", "12.34 meV/atom", "0.057 eV/Å", "11.3 % of their spread"):
        assert number in told


def test_the_sentence_counts_as_one_speaks():
    one = metadata(errors={"train": of(), "test": of(n=1)})
    assert verdict.verdict(one, frame_of()).startswith("On 1 structure that it has not seen, with 2 atoms")
    assert "The test set has only 1 structure:" in verdict.advice(one)[0]
    alone = metadata(errors={"train": of(n=100)})
    assert verdict.verdict(alone, frame_of("train")).startswith(
        "On the 100 structures that it was trained on (there is no test"
    )


@pytest.mark.parametrize(("lost", "said"), [
    ([], "very good"),
    (["H2O"], "very good on the data, but H2O does not hold together"),
    (["A", "B", "C", "D", "E"], "very good on the data, but A, B, C and 2 more do not hold together"),
])  # fmt: skip
def test_what_falls_apart_is_in_the_headline(lost, said):
    assert verdict.verdict_word(metadata(physics={"falls_apart": lost}), frame_of()) == said


def test_the_words_are_those_of_the_page_that_explains_them():
    page = (ROOT / "docs" / "howto" / "report.md").read_text()
    energies, words = re.search(r"up to ([\d, ]+) meV/atom: ([a-z, ]+?)\)", page).groups()
    forces = re.search(r"\(([\d, ]+) %\)", page)[1]
    assert [(w, int(e), int(f)) for w, e, f in zip(*(t.split(", ") for t in (words, energies, forces)), strict=True)] == LIMITS


def test_a_quiet_run_needs_no_advice():
    assert verdict.advice(metadata()) == []


# What is said, and the change of a quiet run that it is for.
NEEDED = {
    "Worse than no fit, do not use it: too bad": {"worse_than_nothing": ["too bad"], "warnings": ["too bad"]},
    "time limit": {"complete": False},
    "quality gate was missed: energy RMSE": {"quality_gate_missed": ["energy RMSE 0.1 eV/atom on the test set is above 0.01"]},
    "Nothing was held out": {"errors": {"train": of()}},
    "only 9 structures": {"errors": {"train": of(), "test": of(n=9)}},
    "The energy error on the test set is 2.1 times": {"errors": {"train": of(0.001), "test": of(0.0021)}},
    "The force error on the test set is 2.1 times": {"errors": {"train": of(forces=0.01), "test": of(forces=0.021)}},
    "worst for “b”: 1.6 meV/atom": {"errors_by_config_type": {"test": {"a": of(0.0001), "b": of(0.0016)}}},
    "Use it with its reference potential": {"reference": {"requires_overlay": True}},
    "Warning of the job: mind this": {"warnings": ["mind this"]},
}


@pytest.mark.parametrize("said", NEEDED)
def test_each_advice_is_given_when_it_is_needed_and_alone(said):
    (found,) = verdict.advice(metadata(**NEEDED[said]))
    assert said in found


# Just not enough for a word.
ENOUGH = [
    {"errors": {"train": of(), "test": of(n=10)}},
    {"errors": {"train": of(0.001, 0.01), "test": of(0.00199, 0.0199)}},
    {"errors": {"train": of(0.001, 0.01), "test": of(0.0001, 0.001)}},
    {"errors_by_config_type": {"test": {"a": of(0.0001), "b": of(0.0014)}}},
    {"errors_by_config_type": {"test": {"only": of(0.1)}}},
]


@pytest.mark.parametrize("changes", ENOUGH)
def test_no_advice_is_given_without_need(changes):
    assert verdict.advice(metadata(**changes)) == []


def test_the_most_important_comes_first_and_none_is_lost():
    bad = {
        "complete": False, "quality_gate_missed": ["one", "two"], "warnings": ["first", "useless", "second"],
        "worse_than_nothing": ["useless"],
        "reference": {"requires_overlay": True}, "errors": {"train": of(0.001, 0.01), "test": of(0.01, 0.1, 3)},
        "errors_by_config_type": {"test": {"a": of(0.0001), "b": of(0.02)}},
    }  # fmt: skip
    order = [
        "useless",
        "time limit",
        "one",
        "two",
        "only 3",
        "energy error",
        "force error",
        "“b”",
        "reference",
        "first",
        "second",
    ]
    found = verdict.advice(metadata(**bad))
    assert len(found) == len(order)
    assert all(word in line for word, line in zip(order, found, strict=True))
