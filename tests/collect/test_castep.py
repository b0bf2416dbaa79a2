"""CASTEP's output: every label is that of its own step; what did not converge, or is not whole, is named."""

import re

import numpy as np
import pytest
from ase import Atoms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written import castep, damaged, frames

from mlip_pace.collect import castep as reader
from mlip_pace.collect.consistency import contradiction
from mlip_pace.collect.files import Unconverged

RUN = frames(4)


def read(text):
    return list(reader.read(text.encode()))


def same(one: Atoms, other: Atoms, energy: float = 0.0) -> bool:
    """Equal in all that is read, to the digits that CASTEP prints; a stress can be missing from `one`."""
    ours, theirs = one.calc.results, other.calc.results
    return (
        list(one.symbols) == list(other.symbols)
        and np.allclose(one.cell, other.cell, atol=1e-6)
        and np.allclose(one.positions, other.positions, atol=1e-6)
        and np.isclose(ours.get("free_energy", ours["energy"]), theirs["free_energy"] + energy, atol=1e-6)
        and ("forces" not in ours or np.allclose(ours["forces"], theirs["forces"], atol=1e-5))
        and ("stress" not in ours or np.allclose(ours["stress"], theirs["stress"], atol=1e-7))
    )


def test_every_step_comes_with_its_own_labels():
    found = read(castep(RUN))
    assert len(found) == len(RUN)
    assert all(same(ours, theirs) and "stress" in ours.calc.results for ours, theirs in zip(found, RUN, strict=True))
    assert all(atoms.pbc.all() for atoms in found)
    assert contradiction(found) is None


def test_the_energy_is_that_with_dispersion():
    assert all(same(ours, theirs, -0.8) for ours, theirs in zip(read(castep(RUN, dispersion=-0.8)), RUN, strict=True))


def test_what_did_not_converge_is_named():
    found = read(castep(RUN, converged=False))
    assert len(found) == len(RUN)
    assert all(isinstance(frame, Unconverged) and "converge" in frame.reason for frame in found)


def test_labels_of_another_frame_are_noticed():
    """The energies of a run, one frame late: each is a number of the file, and none belongs to its forces."""
    found = read(castep(RUN))
    energies = [atoms.calc.results["free_energy"] + 0.5 * n for n, atoms in enumerate(found)]
    for atoms, energy in zip(found, energies, strict=True):
        atoms.calc.results["free_energy"] = energy
    assert contradiction(found) is not None


def test_a_flaw_in_the_stress_costs_the_stress_alone_or_its_step():
    text = castep(RUN)
    place = text.index("Stress Tensor", text.index("iteration          1"))
    broken = text[:place] + text[place:].replace(" *  x ", " *  x ****", 1)
    whole = [frame for frame in read(broken) if isinstance(frame, Atoms)]
    assert len(whole) >= 3
    assert all(any(same(atoms, other) for other in RUN) for atoms in whole)


def test_a_killed_job_gives_its_whole_steps_and_names_the_last():
    text = castep(RUN)
    *found, reason = read(text[: text.rindex("Forces")])
    assert all(same(a, b) for a, b in zip(found, RUN, strict=False))
    assert len(found) == 3
    assert isinstance(reason, str) or "forces" not in reason.calc.results


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_file_gives_frames_that_are_in_it_or_reasons(data):
    found = read(data.draw(damaged(castep(RUN))))
    kept = [frame.atoms if isinstance(frame, Unconverged) else frame for frame in found if not isinstance(frame, str)]
    assert all(any(same(atoms, other) for other in RUN) for atoms in kept)
    assert all(reason and "Error" not in reason for reason in found if isinstance(reason, str))


@pytest.mark.parametrize("text", ["", "CASTEP version 23.1\n", castep(RUN[:1])[:400]])
def test_a_file_without_a_frame_gives_none(text):
    assert not any(isinstance(frame, Atoms) for frame in read(text))


def optimisation(run) -> str:
    """As `castep` writes it, of an optimisation whose second step is a trial and an improved one, after which it goes back."""
    first, *steps = castep(run).split(" Starting MD iteration")
    trial, line, last = (step.partition("\n")[2].partition(" ... finished")[0] for step in steps)
    table = " |  previous  |    0.000000 | <-- min LBFGS\n | trial step |    1.000000 | <-- min LBFGS\n"
    atoms = "            x  Element" + trial.partition("            x  Element")[2].partition("\n\n")[0] + "\n\n"
    return (
        f"{first} LBFGS: finished iteration     0 with enthalpy= -1.0E+001 eV\n Starting LBFGS iteration          1 ...\n"
        f" LBFGS: starting iteration         1 with trial guess (lambda=  1.000000)\n{trial}{table}"
        f" LBFGS: improving iteration         1 with line minimization (lambda=  0.4)\n{line}{table}"
        f" |  line step |    0.4000000 | <-- min LBFGS\n LBFGS: reverting to earlier configuration\n{atoms}"
        " LBFGS: finished iteration     1 with enthalpy= -1.0E+001 eV\n Starting LBFGS iteration          2 ...\n"
        f" LBFGS: starting iteration         2 with trial guess (lambda=  1.000000)\n{last}"
        " LBFGS: finished iteration     2 with enthalpy= -1.0E+001 eV\n Total time          =      1.20 s\n"
    )


def test_a_step_after_one_that_is_taken_back_has_its_own_atoms():
    found = read(optimisation(RUN))
    assert all(same(ours, theirs) for ours, theirs in zip(found, RUN, strict=True))


def test_forces_after_a_step_that_is_taken_back_are_not_those_of_the_last():
    text = optimisation(RUN)
    end = text.index(" LBFGS: finished iteration     1")
    start = text.index(" ***************** Forces")
    again = text[start : text.index(" ***************** Stress", start)].replace("Forces *", "Unconstrained Forces *")
    assert all(same(ours, theirs) for ours, theirs in zip(read(text[:end] + again), RUN[:3], strict=True))


def test_mixtures_of_elements_are_named():
    table = "        x  Mixture   Fractional coordinates of atoms  Components  Weights  x\n"
    assert read(castep(RUN).replace("Total time", table + "Total time")) == ["its atoms are mixtures of elements (VCA)"] * 4


def test_iterations_that_do_not_follow_from_each_other_are_named():
    """Of two calculations, whose parts number their iterations without a gap."""
    text = castep(RUN)
    second, third = [match.start() for match in re.finditer(r"^ +2 .*<-- SCF", text, re.MULTILINE)][:2]
    found = read(text[:second] + text[third:])
    assert len(found) == 3
    assert isinstance(found[0], str)
    assert same(found[2], RUN[3])


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_optimisation_gives_frames_that_are_in_it_or_reasons(data):
    found = read(data.draw(damaged(optimisation(RUN))))
    kept = [frame.atoms if isinstance(frame, Unconverged) else frame for frame in found if not isinstance(frame, str)]
    assert all(any(same(atoms, other) for other in RUN) for atoms in kept)


@pytest.mark.parametrize("banner", ["Welcome to Academic Release CASTEP version 23.1", "Materials Studio CASTEP version 2024"])
def test_runs_in_one_file_are_read_each_by_itself(banner):
    """A cell that is printed at the beginning of each does not change within them."""
    text = castep(RUN).replace("Welcome to Academic Release CASTEP version 23.1", banner)
    text = re.sub(r"(Starting MD iteration .*\n\n)        Real Lattice(?:.*\n){5}", r"\1", text)
    found = read(text + text)
    assert len(found) == 2 * len(RUN)
    assert all(same(ours, theirs) for ours, theirs in zip(found, RUN + RUN, strict=True))
