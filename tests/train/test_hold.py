"""Holes: one that is put into a potential is found; those that a fit has are closed, at little cost to the data, and by any
number of workers in the same way."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from conftest import EXAMPLES, design_rows

from mlip_pace import reference
from mlip_pace.ace import basis
from mlip_pace.ace.calculator import PotentialCalculator
from mlip_pace.ace.files import write_linear
from mlip_pace.collect import dataset
from mlip_pace.collect.dataset import ATOMS, GROUP
from mlip_pace.collect.files import find_files
from mlip_pace.collect.neighbours import neighbours
from mlip_pace.probe import ground, hunt
from mlip_pace.probe.cells import random_cell
from mlip_pace.run.compute import Compute
from mlip_pace.settings import BasisSettings, DataSettings, ProbeSettings, ReferenceSettings
from mlip_pace.train import crossvalidation, hold, linear

KAPPA = 0.01


@pytest.fixture(scope="module", autouse=True)
def fewer_trials():
    """A search of seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name, number in (("RANDOM", 16), ("COMPRESSED", 4), ("DYNAMICS", 2), ("STEPS", 100)):
            patch.setattr(hunt, name, number)
        yield


@pytest.fixture(scope="module")
def target():
    data = DataSettings(path=str(EXAMPLES), test_fraction=0)
    frames, _ = dataset.assemble(dataset.structures_of(find_files(str(EXAMPLES))), None, dataset.Rules(data))
    frames = frames[frames[ATOMS].map(lambda atoms: set(atoms.symbols) == {"Al"})]
    return reference.subtracted_from(frames, ReferenceSettings(), 5.0)


@pytest.fixture(scope="module")
def fitted(target):
    """A basis, and its least squares: few data for many functions."""
    frame, subtracted = target
    on = basis.section(BasisSettings(cutoff=5.0, functions=200), ["Al"], subtracted.shortest)
    last = crossvalidation.validate(linear.labelled(frame), frame[GROUP].tolist(), on, KAPPA, 2)
    return on, hold.Data(last.normal, last.solution, last.unseen, basis.smoothness(on))


def search(target, rounds=2, workers=2, deadline=math.inf, share=1.0):
    frame, subtracted = target
    settings, compute = ProbeSettings(rounds=rounds, share=share), Compute(workers, deadline=deadline)
    return hold.Search(frame, subtracted.reference, subtracted.shortest, settings, 42, compute, time.monotonic())


@pytest.fixture(scope="module")
def held(target, fitted, tmp_path_factory):
    on, data = fitted
    return hold.hold(tmp_path_factory.mktemp("held"), on, data, search(target, rounds=8))


def test_random_cells_have_their_volume_and_no_atoms_that_are_too_close():
    closest = {"Al-Al": 2.2, "Al-Mg": 2.0, "Mg-Mg": 2.4}
    for seed in range(20):
        atoms = random_cell(["Al", "Mg"] * 4, 8 * 12.0, closest, np.random.default_rng(seed))
        assert atoms.cell.volume == pytest.approx(96.0)
        for i, j, distance in zip(*neighbours("ijd", atoms, 3.0), strict=True):
            assert distance >= closest["-".join(sorted((atoms.symbols[i], atoms.symbols[j])))]
    assert random_cell(["Al"] * 8, 8 * 3.0, {"Al-Al": 2.4}, np.random.default_rng(0)) is None  # denser than any packing


def test_the_curve_is_birch_murnaghan(target, fitted, tmp_path):
    frame, subtracted = target
    on, data = fitted
    write_linear(tmp_path / "p.yaml", on, data.solution.coefficients)
    calculator = PotentialCalculator(tmp_path / "p.yaml", subtracted.reference)
    al = ground.ground(frame, lambda atoms: calculator.predict(atoms)[0]).curve(["Al"])
    assert al.volume == pytest.approx(16.5, abs=0.3)
    assert al.modulus * 160.2177 == pytest.approx(78, abs=15)  # GPa, PBE
    h = 1e-3 * al.volume
    curvature = (al.above(al.volume - 2 * h) - 2 * al.above(al.volume - h)) / h**2
    assert al.volume * curvature == pytest.approx(al.modulus, rel=0.02)  # B = V E''
    slope = (al.above(0.7 * al.volume - h) - al.above(0.7 * al.volume + h)) / (2 * h)
    assert al.pressure(0.7 * al.volume) == pytest.approx(slope, rel=1e-3)
    assert al.above(1.2 * al.volume) == 0


def test_between_compositions_the_hull_and_a_margin_beyond_them_nothing():
    crystals = [bulk("Al"), bulk("Mg"), Atoms("AlMg", [(0, 0, 0), (1.6, 1.6, 1.6)], cell=[3.2] * 3, pbc=True)]
    curves = [ground.Curve(-3.4, 16.0, 0.5), ground.Curve(-1.4, 23.0, 0.2), ground.Curve(-2.5, 19.0, 0.3)]
    whole = ground.Ground(crystals, curves)
    assert whole.curve(["Mg", "Al"]) == curves[2]
    mixed = whole.curve(["Al", "Al", "Al", "Mg"])  # half Al, half AlMg
    assert mixed.energy == pytest.approx((-3.4 - 2.5) / 2 - ground.UNSEEN)
    assert (mixed.volume, mixed.modulus) == pytest.approx((17.5, 0.4))
    part = ground.Ground(crystals[1:], curves[1:])
    assert part.curve(["Al"]) is None
    compositions = hunt.Hunted(part, [], {}, 1).compositions
    assert sorted(map("".join, compositions)) == ["AlAlAlAlMgMgMgMg", "Mg" * 8]


def alone(formula):
    atoms = Atoms(
        formula, scaled_positions=np.random.default_rng(0).random((len(Atoms(formula)), 3)), cell=8 * np.eye(3), pbc=True
    )
    return hunt.Hunted(ground.Ground([atoms], [ground.Curve(-4.0, 12.0, 1.0)]), [atoms], {}, 0)


@pytest.mark.parametrize(("formula", "cell"), [
    ("CoCrFeMnNi", "CoCoCrCrFeFeMnMnNiNi"), ("H2O", "HHHHHHOOO"), ("SiO2", "OOOOOOSiSiSi"), ("NaCl", "ClClClClNaNaNaNa"),
    ("Al4O6", "AlAlAlAlOOOOOO"),
])  # fmt: skip
def test_random_cells_have_whole_formula_units(formula, cell):
    hunted = alone(formula)
    assert ["".join(symbols) for symbols in hunted.compositions] == [cell]
    assert {trial.kind for trial in hunt.trials(hunted, 0)} == set(hunt.KINDS)


def test_a_formula_too_large_for_a_cell_is_compressed_alone():
    hunted = alone("Li10GeP2S12")
    assert hunted.compositions == []
    assert {trial.kind for trial in hunt.trials(hunted, 0)} == {"compressed", "volumes"}


class Flat(Calculator):
    """The same energy for every atom, anywhere, and no forces; keeps what it was asked for."""

    implemented_properties = ("energy", "forces")

    def __init__(self, energy):
        super().__init__()
        self.energy, self.asked = energy, []

    def calculate(self, atoms=None, properties=(), system_changes=()):
        self.asked.append(atoms.copy())
        self.results = {"energy": self.energy * len(atoms), "forces": np.zeros((len(atoms), 3))}


def test_trials_are_what_docs_physics_says():
    """Where the trials of two rounds begin: number of atoms, volumes relative to that of the curve, shortest distances."""
    crystal = bulk("Cu", cubic=True)
    curve = ground.Curve(-3.5, crystal.cell.volume / 4, 0.9)
    hunted = hunt.Hunted(ground.Ground([crystal], [curve]), [crystal.repeat((2, 1, 1))], {"Cu-Cu": 2.0}, 7)
    begun = {}
    for trial in (trial for number in range(4) for trial in hunt.trials(hunted, number)):
        flat = Flat(-3.5 - hunt.DEEP - 10)  # so deep that the first look ends it
        outcome = hunt.run(trial, hunted, flat)
        if outcome is not None:
            atoms = flat.asked[0]
            relative = atoms.cell.volume / len(atoms) / curve.volume
            begun.setdefault(trial.kind, []).append((atoms, relative, outcome))
            assert outcome.volume == pytest.approx(relative)
            assert len(outcome.frames) == 1
            # 0.1 eV below the curve where it is not squeezed, and half of the curve's rise above that where it is
            deep = 3.5 + hunt.DEEP + 10 - 3.5 - 0.1 + 0.5 * curve.above(relative * curve.volume)
            assert outcome.depth == pytest.approx(deep, abs=1e-9)
    volumes = {kind: [relative for _, relative, _ in several] for kind, several in begun.items()}
    sizes = {kind: {len(atoms) for atoms, _, _ in several} for kind, several in begun.items()}
    assert sizes == {"random": {8}, "compressed": {4, 8}, "dynamics": {16}, "volumes": {4}}
    assert {round(v, 6) for v in volumes["volumes"]} == {round(0.05 * n, 6) for n in range(7, 20)}  # 0.35, 0.4, ..., 0.95
    assert max(volumes["random"]) == pytest.approx(1.0)
    assert all(0.35 - 1e-9 <= v <= 1.0 + 1e-9 for v in volumes["random"])
    for kind in ("compressed", "dynamics"):
        assert all(0.35 <= v <= 1.05 for v in volumes[kind])
        assert max(volumes[kind]) - min(volumes[kind]) > 0.2
    for atoms, _, _ in begun["random"] + begun["dynamics"]:
        assert min(neighbours("d", atoms, 4.0)) >= 0.9 * 2.0
    strains = [atoms.cell.array / np.cbrt(atoms.cell.volume) for atoms, _, _ in begun["compressed"] if len(atoms) == 4]
    shears = [np.abs(one - np.diag(np.diag(one))).max() / one.max() for one in strains]
    assert 0.02 < max(shears) < 0.15
    assert {1000 <= outcome.temperature <= 5000 for _, _, outcome in begun["dynamics"]} == {True}


def test_a_hole_that_was_put_in_is_found(target, fitted, tmp_path):
    """A row that no data contain draws the fit to -20 eV/atom at half of the volume of Al."""
    on, data = fitted
    squeezed = random_cell(["Al"] * 8, 8 * 8.2, {"Al-Al": 1.7}, np.random.default_rng(3))
    row = design_rows(on, [squeezed])[0][0] / len(squeezed)
    normal, weight = data.normal, 1e-6
    drawn = linear.Normal(normal.columns, weight * np.outer(row, row), -20 * weight * row, 400 * weight, 1)
    write_linear(tmp_path / "p.yaml", on, linear.solve(normal + drawn, data.scale).coefficients)
    looked = hold.look(tmp_path, tmp_path / "p.yaml", search(target))
    assert looked.left == sum(looked.rounds[0].holes.values()) > 10
    assert looked.rounds[0].deepest > 5
    assert looked.volumes is None or looked.volumes[0] > 0.45
    assert not looked.closed
    assert "stay as they are" in looked.warnings[0]


def test_the_holes_of_a_fit_are_closed(target, fitted, held, tmp_path):
    on, data = fitted
    c, _, told = held
    assert sum(told.rounds[0].holes.values()) > 2
    assert told.ended == hold.NOTHING
    assert told.left == 0
    assert not told.warnings
    other = replace(search(target), seed=7)  # cells that the search has not seen
    left = {}
    for name, coefficients in (("before", data.solution.coefficients), ("after", c)):
        write_linear(tmp_path / f"{name}.yaml", on, coefficients)
        left[name] = hold.look(tmp_path, tmp_path / f"{name}.yaml", other).rounds[0].deepest or 0.0
    assert left["before"] > 5  # eV/atom
    assert left["after"] < 1


def test_what_closes_holes_costs_the_data_little(fitted, held):
    _, data = fitted
    c, _, told = held
    assert told.rows >= sum(sum(one.holes.values()) for one in told.rounds) > 0
    assert told.loss_rise == pytest.approx(data.normal.loss(c) / data.solution.loss - 1)
    assert -1e-4 < told.loss_rise_of_held_out <= hold.COST  # the prior gives a little where the rows do
    assert told.loss_rise_of_held_out == pytest.approx(told.loss_rise * data.solution.loss / data.unseen)
    assert data.normal.loss(data.solution.coefficients) == pytest.approx(data.solution.loss, rel=1e-6)


def test_bounds_that_contradict_the_data_are_weakened_until_they_cost_little(fitted):
    _, data = fitted
    energies = data.normal.vector / np.linalg.norm(data.normal.vector)  # a direction that the data know well
    asked = hold.Rows(energies[None], np.zeros(1), np.array([energies @ data.solution.coefficients + 1e3]), np.full(1, 1e-3))
    c, _ = data.with_rows(asked, data.solution.coefficients)
    assert 0 < data.rise(c) <= hold.COST * data.unseen


def test_where_nothing_was_found_is_told(held):
    _, _, told = held
    assert told.ended == hold.NOTHING
    assert told.volumes[0] < 0.36
    assert told.volumes[1] >= 1.0
    assert told.temperature > 1000
    assert 200 < told.pressure < 2000  # GPa, of Al at 0.35 of its volume
    assert set(told.curves) == {"Al"}


def test_the_number_of_workers_does_not_change_a_bit(target, fitted, held, tmp_path):
    on, data = fitted
    one, _, told = hold.hold(tmp_path, on, data, search(target, rounds=1, workers=1))
    two, _, also = hold.hold(tmp_path, on, data, search(target, rounds=1, workers=2))
    assert one.tobytes() == two.tobytes()
    assert replace(told, rounds=[]) == replace(also, rounds=[])


def test_the_search_ends_by_its_deadline(target, fitted, tmp_path):
    on, data = fitted
    begin = time.monotonic()
    c, _, told = hold.hold(tmp_path, on, data, search(target, rounds=50, deadline=begin + 2.0))
    assert time.monotonic() - begin < 6.0
    assert told.ended == hold.TIME
    assert np.isfinite(c).all()
    limited = replace(
        search(target), settings=ProbeSettings(share=0.1), begun=begin, compute=Compute(1, deadline=begin + 100.0)
    )
    assert limited.deadline() - time.monotonic() <= 10.0 + 1e-3


def test_what_was_not_looked_for_or_is_left_is_told():
    def said(*about, **more):
        return " ".join(hold.Held(*about, **more).warnings)

    rounds = [hold.Round({"random": 4}, {}, None, 1.0)]
    assert "there was no time" in said(hold.TIME)
    assert said(hold.TIME, rounds) == said(hold.NOTHING, rounds) == ""
    assert "no structure of the data is bulk" in said(hold.NO_BULK)
    assert said(hold.ROUNDS, rounds, left=3, closed=True, volumes=(0.8, 1.0)).startswith(
        "3 trials of the last search for holes"
    )


def test_data_without_bulk_are_not_probed(target, fitted, tmp_path):
    frame, _ = target
    on, data = fitted
    molecules = frame.assign(**{ATOMS: [replaced(atoms) for atoms in frame[ATOMS]]})
    c, _, told = hold.hold(tmp_path, on, data, replace(search(target), train=molecules))
    assert told.ended == hold.NO_BULK
    assert [warning for warning in told.warnings if "no structure of the data is bulk" in warning]
    assert c is data.solution.coefficients


def replaced(atoms):
    alone = atoms.copy()
    alone.pbc = False
    return alone
