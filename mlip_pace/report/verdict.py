"""What it comes to: the words at the top of the page, and what to mind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mlip_pace.report.predictions import spread

SMALL_TEST = 10  # structures; the errors of fewer are chance
NO_FORCE = 1e-6  # eV/Å; where all forces are smaller, by symmetry, they say nothing
# What an RMSE is called: of the energies up to so many eV/atom (a phase transition is a matter of some 10 meV/atom, kT at room
# temperature 26), of the forces up to such a part of their spread.
WORDS = (
    ("very good", 0.002, 0.05),
    ("good", 0.005, 0.1),
    ("fair", 0.01, 0.2),
    ("rough", 0.026, 0.35),
    ("poor", np.inf, np.inf),
)
# However small: what energies are called at best whose RMSE is beyond such a part of the spread of all energies.
NO_BETTER = ((0.9, "poor"), (0.5, "rough"))


def judged(metadata: dict[str, Any]) -> str:
    """The subset that the verdict is about: the test set, if there is one."""
    return "test" if "test" in metadata["errors"] else "train"


def verdict_word(metadata: dict[str, Any], frame: pd.DataFrame) -> str:
    """Such as `good`, or `good forces, fair energies`, by the words of `WORDS`; and whether something falls apart."""
    subset = judged(metadata)
    e, spreads = metadata["errors"][subset], spread(frame[frame.subset == subset])
    share = e["energy_rmse"] / max(spread(frame)["energy"], 1e-12)
    at_best = next((worst for part, worst in NO_BETTER if share > part), WORDS[0][0])
    names = [word for word, *_ in WORDS]
    energy = max(next(word for word, limit, _ in WORDS if e["energy_rmse"] <= limit), at_best, key=names.index)
    if spreads["forces"] < NO_FORCE:
        word = f"{energy} energies"
    else:
        forces = next(word for word, _, limit in WORDS if e["forces_rmse"] <= limit * spreads["forces"])
        word = energy if energy == forces else f"{forces} forces, {energy} energies"
    lost = metadata.get("physics", {}).get("falls_apart", [])
    if not lost:
        return word
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    return f"{word} on the data, but {', '.join(lost[:3])}{more} {'do' if len(lost) > 1 else 'does'} not hold together"


def _structures(number: int) -> str:
    return "1 structure" if number == 1 else f"{number} structures"


def verdict(metadata: dict[str, Any], frame: pd.DataFrame) -> str:
    """How good it is, in a sentence."""
    subset, errors = judged(metadata), metadata["errors"]
    e, spreads = errors[subset], spread(frame[frame.subset == subset])
    count = _structures(e["n_structures"])
    seen = f"the {count} that it was trained on (there is no test set)"
    whose = f"{count} that it has not seen" if subset == "test" else seen
    relative = "" if spreads["forces"] < NO_FORCE else f", {100 * e['forces_rmse'] / spreads['forces']:.1f} % of their spread"
    return (
        f"On {whose}, with {e['n_atoms']} atoms, the energies are off by "
        f"{1e3 * e['energy_rmse']:.2f} meV/atom and the force components by {e['forces_rmse']:.3f} eV/Å "
        f"(root mean square){relative}."
    )


def advice(metadata: dict[str, Any]) -> list[str]:
    """What to mind and what to do next, most important first."""
    errors, worthless = metadata["errors"], metadata["worse_than_nothing"]
    found = [f"Worse than no fit, do not use it: {said}." for said in worthless]
    if not metadata["complete"]:
        found.append("The time limit came before the end of the fit: the same command again goes on from here.")
    found += [f"The quality gate was missed: {missed}." for missed in metadata["quality_gate_missed"]]
    if "test" not in errors:
        found.append(
            "Nothing was held out, so nobody knows how it does on new structures: give a test set (MLIP_PACE_DATA_TEST_PATH) "
            "or hold one out (MLIP_PACE_DATA_TEST_FRACTION)."
        )
    else:
        test, train = errors["test"], errors["train"]
        if test["n_structures"] < SMALL_TEST:
            found.append(f"The test set has only {_structures(test['n_structures'])}: its errors may be chance.")
        for quantity, name in (("energy", "energy"), ("forces", "force")):
            ratio = test[f"{quantity}_rmse"] / max(train[f"{quantity}_rmse"], 1e-12)
            if ratio > 2:
                found.append(
                    f"The {name} error on the test set is {ratio:.1f} times that on the training set: look at the worst "
                    "structures below; what they are like is missing in the training data, or fewer functions "
                    "(MLIP_PACE_BASIS_FUNCTIONS) overfit less."
                )
        by_type = metadata["errors_by_config_type"]["test"]
        worst = max(by_type, key=lambda kind: by_type[kind]["energy_rmse"])
        if len(by_type) > 1 and by_type[worst]["energy_rmse"] > 1.5 * test["energy_rmse"]:
            found.append(f"The test energies are worst for “{worst}”: {1e3 * by_type[worst]['energy_rmse']:.1f} meV/atom.")
    if metadata["reference"]["requires_overlay"]:
        found.append("Use it with its reference potential: include potential.lammps in LAMMPS, load_calculator in ASE.")
    return found + [f"Warning of the job: {warning}" for warning in metadata["warnings"] if warning not in worthless]
