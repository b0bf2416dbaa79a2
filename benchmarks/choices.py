"""The measurements behind three defaults (docs/design.md): κ, the prior of the linear start, the choice of structures.

    .venv/bin/python benchmarks/choices.py kappa --functions 100 TRAIN TEST
    .venv/bin/python benchmarks/choices.py choice --functions 300 TRAIN TEST
    .venv/bin/python benchmarks/choices.py prior --functions 100 DATA

Linear fits only, by `mlip_pace.train.linear`; errors are RMSE and MAE in meV/atom and eV/Å, of ACE + reference against DFT.
`choice` compares 10, 25 and 50 % of the structures with `pace_select` and with the mean of 5 random choices.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from mlip_pace import reference, selection
from mlip_pace.ace import basis
from mlip_pace.collect import dataset
from mlip_pace.collect.files import find_files
from mlip_pace.collect.frames import load_frame
from mlip_pace.settings import BasisSettings, DataSettings, ReferenceSettings, SelectionSettings
from mlip_pace.train import linear

KAPPAS, FRACTIONS, FOLDS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001), (0.1, 0.25, 0.5), 10


class Data:
    """The target and the design rows of every structure."""

    def __init__(self, paths, functions):
        train, *test = (dataset.structures_of(find_files(path)) for path in paths)
        settings = DataSettings.model_construct(test_fraction=0.0)
        frames, summary = dataset.assemble(train, *(test or [None]), dataset.Rules(settings))
        self.is_train = (frames[dataset.SPLIT] == dataset.TRAIN).to_numpy()
        known = frames[self.is_train]
        self.target = reference.delta(reference.choose(ReferenceSettings.model_construct(), known, 5.0), frames)
        shortest = reference.shortest_distances(known[dataset.ATOMS], 5.0)
        settings = BasisSettings.model_construct(functions=functions)
        self.potential = basis.section(settings, summary.elements, shortest)
        self.rows = [of_c for of_c, _ in basis.expansion(self.potential).rows(self.target[dataset.ATOMS], stress=True)]
        self.sizes = self.target[dataset.ATOMS].map(len).to_numpy()
        self.energies, self.forces = self.target.energy_corrected.to_numpy(), [f.ravel() for f in self.target.forces]

    def normal(self, chosen, kappa, weights=None):
        """The normal equations of the loss over some structures, which may have weights."""
        frame = self.target.iloc[list(chosen)].reset_index(drop=True)
        if weights is not None:
            frame[dataset.WEIGHT] = weights
        structures = linear.labelled(frame)
        parts = (linear.part([s], [self.rows[n]], [s.target], kappa) for n, s in zip(chosen, structures, strict=True))
        return linear.total(parts, self.rows[0].shape[1])

    def misfit(self, normal, scale, held):
        """Errors of the solution of these equations on other structures: energies per atom, force components."""
        coefficients = linear.solve(normal, scale).coefficients
        energy = [(self.rows[n][0] @ coefficients - self.energies[n]) / self.sizes[n] for n in held]
        return energy, np.concatenate([self.rows[n][1:-6] @ coefficients - self.forces[n] for n in held])


def show(label, energy, forces, extra=""):
    rmse = [np.sqrt(np.mean(np.square(x))) for x in (energy, forces)]
    mae = [np.mean(np.abs(x)) for x in (energy, forces)]
    print(
        f"{label:<28}RMSE {1e3 * rmse[0]:7.2f} meV/atom {rmse[1]:7.4f} eV/Å   MAE {1e3 * mae[0]:7.2f} {mae[1]:7.4f}  {extra}",
        flush=True,
    )


def kappa(data):
    for value in KAPPAS:
        normal = data.normal(np.flatnonzero(data.is_train), value)
        show(f"kappa {value}", *data.misfit(normal, basis.smoothness(data.potential), np.flatnonzero(~data.is_train)))


def choice(data):
    train, places, test = data.target[data.is_train], np.flatnonzero(data.is_train), np.flatnonzero(~data.is_train)
    scale = basis.smoothness(data.potential)

    def ours(count):
        with tempfile.TemporaryDirectory() as name:
            asked = SelectionSettings(max_structures=count)
            chosen, about = selection.choose(train, data.potential, asked, 1, Path(name))
        weights = train[dataset.SOURCE].map(chosen.weights).to_numpy(dtype=float)
        return np.flatnonzero(weights > 0), weights[weights > 0], about

    show(f"all {len(train)}", *data.misfit(data.normal(places, 0.01), scale, test))
    for fraction in FRACTIONS:
        count = round(fraction * len(train))
        chosen, weights, about = ours(count)
        normal = data.normal(places[chosen], 0.01, weights)
        kept = f"D-efficiency {about.d_efficiency:.2f}, effective number {about.effective_number:.0f}"
        show(f"ours {count}", *data.misfit(normal, scale, test), kept)
        theirs = pace_select(data.potential, train, count)
        show(f"pace_select {len(theirs)}", *data.misfit(data.normal(places[theirs], 0.01), scale, test))
        draws = [random.Random(seed).sample(list(places), count) for seed in range(5)]
        misfits = [data.misfit(data.normal(sorted(draw), 0.01), scale, test) for draw in draws]
        show(f"random {count}, 5 seeds", np.concatenate([e for e, _ in misfits]), np.concatenate([f for _, f in misfits]))


def pace_select(potential, train, count):
    """Positions of the structures that pacemaker's own tool chooses with the same basis."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        potential.configuration().save(str(folder / "basis.yaml"))
        frame = train[[dataset.ATOMS, "energy_corrected", "forces"]].reset_index(drop=True)
        frame["name"] = [str(n) for n in range(len(frame))]
        dataset.save_frame(frame, folder / "data.pckl.gzip")
        command = [Path(sys.executable).parent / "pace_select", "data.pckl.gzip", "-p", "basis.yaml", "-o", "chosen.pkl.gz"]
        subprocess.run([*command, "-m", str(count)], cwd=folder, check=True, capture_output=True)
        return sorted(int(n) for n in load_frame(folder / "chosen.pkl.gz")["name"])


def prior(data):
    smooth = basis.smoothness(data.potential)
    ones, all_ = np.ones_like(smooth), list(range(len(data.target)))
    random.Random(0).shuffle(all_)
    normalised = 1 / np.sqrt(np.diag(data.normal(all_, 0.01).matrix))
    for label, scale in (("normalised columns", normalised), ("equal", ones), ("1/(1 + Σ(n² + l²))", smooth)):
        energy, forces = [], []
        for fold in range(FOLDS):
            held = all_[fold::FOLDS]
            normal = data.normal([n for n in all_ if n not in held], 0.01)
            parts = data.misfit(normal, scale, held)
            energy += parts[0]
            forces.append(parts[1])
        show(label, energy, np.concatenate(forces), f"{FOLDS}-fold cross-validation")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kappa", "choice", "prior"])
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--functions", type=int, default=100)
    given = parser.parse_args()
    {"kappa": kappa, "choice": choice, "prior": prior}[given.what](Data(given.paths, given.functions))
