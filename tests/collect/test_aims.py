"""FHI-aims: every label is that of its own step; what did not converge, or is not whole, is named."""

import re

import numpy as np
import pytest
from ase import Atoms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written import aims, damaged, frames

from mlip_pace.collect import aims as reader
from mlip_pace.collect.consistency import contradiction
from mlip_pace.collect.files import Unconverged

RUN = frames(4)
WAYS = {"relaxation": False, "molecular dynamics": True}


def read(text):
    return list(reader.read(text.encode()))


def same(one: Atoms, other: Atoms, energy: float = 0.0) -> bool:
    """Equal in all that is read, to the digits that FHI-aims prints; a stress can be missing from `one`."""
    ours, theirs = one.calc.results, other.calc.results
    return (
        list(one.symbols) == list(other.symbols)
        and np.allclose(one.cell, other.cell, atol=1e-6)
        and np.allclose(one.positions, other.positions, atol=1e-6)
        and np.isclose(ours.get("free_energy", ours["energy"]), theirs["free_energy"] + energy, atol=1e-6)
        and ("forces" not in ours or np.allclose(ours["forces"], theirs["forces"], atol=1e-5))
        and ("stress" not in ours or np.allclose(ours["stress"], theirs["stress"], atol=1e-7))
    )


@pytest.mark.parametrize("way", WAYS)
def test_every_step_comes_with_its_own_labels(way):
    found = read(aims(RUN, dynamics=WAYS[way]))
    assert len(found) == len(RUN)
    assert all(same(ours, theirs) and "stress" in ours.calc.results for ours, theirs in zip(found, RUN, strict=True))
    assert all(atoms.pbc.all() for atoms in found)
    assert contradiction(found) is None


@pytest.mark.parametrize("way", WAYS)
def test_what_did_not_converge_is_named(way):
    found = read(aims(RUN, dynamics=WAYS[way], converged=False))
    assert len(found) == len(RUN)
    assert all(isinstance(frame, Unconverged) and "converge" in frame.reason for frame in found)


def test_labels_of_another_frame_are_noticed():
    """The energies of a run, one frame late: each is a number of the file, and none belongs to its forces."""
    found = read(aims(RUN))
    energies = [atoms.calc.results["free_energy"] + 0.5 * n for n, atoms in enumerate(found)]
    for atoms, energy in zip(found, energies, strict=True):
        atoms.calc.results["free_energy"] = energy
    assert contradiction(found) is not None


def test_a_killed_job_gives_its_whole_steps_and_names_the_last():
    text = aims(RUN)
    *found, reason = read(text[: text.rindex("Total atomic forces")])
    assert all(same(a, b) for a, b in zip(found, RUN, strict=False))
    assert len(found) == 3
    assert isinstance(reason, str) or "forces" not in reason.calc.results


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), dynamics=st.booleans())
def test_a_damaged_file_gives_frames_that_are_in_it_or_reasons(data, dynamics):
    found = read(data.draw(damaged(aims(RUN, dynamics=dynamics))))
    kept = [frame.atoms if isinstance(frame, Unconverged) else frame for frame in found if not isinstance(frame, str)]
    assert all(any(same(atoms, other) for other in RUN) for atoms in kept)
    assert all(reason and "Error" not in reason for reason in found if isinstance(reason, str))


@pytest.mark.parametrize("text", ["", "Invoking FHI-aims ...\n", aims(RUN[:1])[:400]])
def test_a_file_without_a_frame_gives_none(text):
    assert not any(isinstance(frame, Atoms) for frame in read(text))


def test_a_step_of_other_atoms_is_of_another_run():
    """Into which the file goes on without the beginning of that run."""
    other = aims(RUN).replace(" Si\n", " Ge\n")
    begins = "          Begin self-consistency loop: Re-init"
    *sound, stranger = read(aims(RUN[:2]) + other[other.rindex("  Updated atomic", 0, other.rindex(begins)) :])
    assert all(same(ours, theirs) for ours, theirs in zip(sound, RUN[:2], strict=True))
    assert stranger == "its atoms are not those of the run: it is of another"


@pytest.mark.parametrize("way", WAYS)
def test_iterations_that_are_missing_are_named(way):
    """Where another program moves the atoms (i-PI), steps have no numbers, and nothing else tells."""
    text = aims(RUN, dynamics=WAYS[way])
    _, second, third, *_ = (match.start() for match in re.finditer(".*Begin self-consistency iteration", text))
    reason, *sound = read(text[:second] + text[third:])
    assert reason == "iteration 1 is followed by 3: something is missing or mixed in"
    assert all(same(ours, theirs) for ours, theirs in zip(sound, RUN[1:], strict=True))
