"""The measurements behind three defaults (docs/design.md): κ, the prior of the linear start, the grade of the choice.

    .venv/bin/python benchmarks/choices.py kappa --functions 100 TRAIN TEST
    .venv/bin/python benchmarks/choices.py grade --functions 300 TRAIN TEST
    .venv/bin/python benchmarks/choices.py prior --functions 100 DATA

Linear fits only, by `mlip_pace.linear`; errors are RMSE in meV/atom and eV/Å, of ACE + reference against DFT.
"""

import argparse
import random

import numpy as np

from mlip_pace import basis, dataset, linear, reference, selection
from mlip_pace.readers import find_files
from mlip_pace.settings import BasisSettings, DataSettings, ReferenceSettings

KAPPAS, GRADES, FOLDS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001), (0.1, 0.03, 0.01, 0.003), 10


class Data:
    """The target and the design rows of every structure."""

    def __init__(self, paths, functions):
        train, *test = (dataset.structures_of(find_files(path)) for path in paths)
        settings = DataSettings.model_construct(test_fraction=0.0)
        frames, summary = dataset.assemble(train, *(test or [None]), settings, None, 5.0, 42)
        self.is_train = (frames[dataset.SPLIT] == dataset.TRAIN).to_numpy()
        known = frames[self.is_train]
        self.target = reference.delta(reference.choose(ReferenceSettings.model_construct(), known, 5.0), frames)
        shortest = reference.shortest_distances(known[dataset.ATOMS], 5.0)
        settings = BasisSettings.model_construct(functions=functions)
        self.potential = basis.potential_section(settings, summary["elements"], shortest)
        self.rows = list(basis.design_rows(self.potential, self.target[dataset.ATOMS]))
        self.sizes = self.target[dataset.ATOMS].map(len).to_numpy()
        self.energies, self.forces = self.target.energy_corrected.to_numpy(), [f.ravel() for f in self.target.forces]

    def normal(self, chosen, kappa):
        """The normal equations of the uniformly weighted loss over some structures."""
        w_energy, w_forces, total = (1 - kappa) / len(chosen), kappa / self.sizes[chosen].sum(), None
        for n in chosen:
            root = np.sqrt(w_energy) / self.sizes[n]
            rows = np.vstack([root * self.rows[n][0], np.sqrt(w_forces) * self.rows[n][1]])
            right = np.concatenate([[root * self.energies[n]], np.sqrt(w_forces) * self.forces[n]])
            part = linear.Normal(rows.T @ rows, rows.T @ right, float(right @ right), len(right))
            total = part if total is None else total + part
        return total

    def misfit(self, coefficients, chosen):
        energy = [(self.rows[n][0] @ coefficients - self.energies[n]) / self.sizes[n] for n in chosen]
        return energy, np.concatenate([self.rows[n][1] @ coefficients - self.forces[n] for n in chosen])


def show(label, energy, forces, extra=""):
    rmse = [np.sqrt(np.mean(np.square(x))) for x in (energy, forces)]
    print(f"{label:<24}{1e3 * rmse[0]:8.2f} meV/atom {rmse[1]:8.4f} eV/Å  {extra}", flush=True)


def kappa(data):
    for value in KAPPAS:
        normal = data.normal(np.flatnonzero(data.is_train), value)
        coefficients, _ = linear.solve(normal, basis.smoothness(data.potential))
        show(f"kappa {value}", *data.misfit(coefficients, np.flatnonzero(~data.is_train)))


def grade(data):
    train = data.target[data.is_train]
    rows = basis.projections(data.potential, train[dataset.ATOMS])
    keys = [dataset.geometry_key(atoms) for atoms in train[dataset.ATOMS]]
    always, places = selection.indispensable(train, 5.0), np.flatnonzero(data.is_train)
    choices = {f"all {len(train)}": list(range(len(train)))}
    for value in GRADES:
        selection.GRADE = value
        chosen = selection.doptimal(rows, keys, always, None).chosen
        choices[f"grade {value}: {len(chosen)}"] = chosen
        choices[f"random {len(chosen)}"] = random.Random(1).sample(range(len(train)), len(chosen))
    for label, chosen in choices.items():
        coefficients, _ = linear.solve(data.normal(places[chosen], 0.01), basis.smoothness(data.potential))
        show(label, *data.misfit(coefficients, np.flatnonzero(~data.is_train)))


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
            parts = data.misfit(linear.solve(normal, scale)[0], held)
            energy += parts[0]
            forces.append(parts[1])
        show(label, energy, np.concatenate(forces), f"{FOLDS}-fold cross-validation")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kappa", "grade", "prior"])
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--functions", type=int, default=100)
    given = parser.parse_args()
    {"kappa": kappa, "grade": grade, "prior": prior}[given.what](Data(given.paths, given.functions))
