"""report.html: what a person looks at to see whether a potential is good, where it is bad and what to do next.

Made from the sidecar and the files of the stages alone, so that every figure can be computed again. Every panel's numbers are
in the page, as JSON in `<script type="application/json" id="data-<panel>">`. Energies are relative to free atoms (E - Σ E0), in
eV/atom; forces in eV/Å, by component where it says so; stress in GPa (1 eV/Å^3 = 160.2177 GPa), positive under tension.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase.units import GPa
from markupsafe import Markup

from mlip_pace.ace import basis
from mlip_pace.arrays import VOIGT, Array
from mlip_pace.collect.dataset import ATOMS, CONFIG_TYPE, ENERGY, ENERGY_ATOMS, FORCES, SOURCE, STRESS, composition
from mlip_pace.collect.frames import load_frame
from mlip_pace.collect.neighbours import nearest
from mlip_pace.publish.potential import Potential
from mlip_pace.reference import pair_name
from mlip_pace.report import figures, volumes
from mlip_pace.report.figures import Layer, Panel, cells, rounded
from mlip_pace.run import pool
from mlip_pace.run.templates import templates
from mlip_pace.selection import GRADE
from mlip_pace.train.pacemaker import LEAST_SQUARES

SUBSETS = {"train": "train", "left_out": "left out", "test": "test"}
QUANTITIES = {"energy": ("energy", "eV/atom"), "forces": ("force component", "eV/Å"), "stress": ("stress component", "GPa")}
BINS = 50  # of a density, each way: about the width of a line
WORST = 5  # points named in a figure
LISTED = 15  # structures named in a table
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


@dataclass(frozen=True)
class Table:
    """Rows of text under headers; a `long` one is folded away."""

    title: str
    headers: list[str]
    rows: list[list[str]]
    long: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, what to know about it, its figures and tables."""

    name: str
    title: str
    text: list[str]
    panels: list[Panel] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def draw(potential: Potential, chosen: Path, fitted: Path, scores: Path, workers: int = 1) -> str:
    """The whole page, from a sidecar and the folders of the stages activeset, train and evaluate."""
    frame = load_frame(scores / "predictions.pckl.gzip")
    metadata = potential.metadata
    calculator = basis.calculator_of(fitted / "potential.yace")
    sections = [
        errors_section(metadata, frame),
        parity_section(frame),
        where_section(frame),
        learning_section(metadata, fitted),
        dimer_section(potential, fitted / "potential.yace", calculator.cutoff),
        volume_section(potential, frame, calculator),
        selection_section(metadata, frame, chosen),
        worst_section(frame),
        audit_section(metadata),
        made_section(potential),
    ]
    panels = [panel for section in sections for panel in section.panels]
    drawn = dict(zip((panel.name for panel in panels), pool.parallel_map(figures.svg, panels, workers), strict=True))
    return (
        templates("report", autoescape=True)
        .get_template("report.html.j2")
        .render(
            potential=potential,
            word=verdict_word(metadata, frame),
            verdict=verdict(metadata, frame),
            advice=advice(metadata),
            sections=[section for section in sections if section.panels or section.tables or section.text],
            svg=lambda panel: Markup(drawn[panel.name]),
            numbers=dataclasses.asdict,
            words=WORDS,
        )
    )


# What it comes to.


def judged(metadata: dict[str, Any]) -> str:
    """The subset that the verdict is about: the test set, if there is one."""
    return "test" if "test" in metadata["errors"] else "train"


def spread(frame: pd.DataFrame) -> dict[str, float]:
    """Standard deviation of the DFT energies (eV/atom), forces and stresses (eV/Å, eV/Å^3): the RMSE of a constant."""
    return {name: float(dft.std()) for name, (dft, _) in labels_and_predictions(frame).items() if len(dft)}


def verdict_word(metadata: dict[str, Any], frame: pd.DataFrame) -> str:
    """Such as `good`, or `good forces, fair energies`: by the words of `WORDS`."""
    subset = judged(metadata)
    e, spreads = metadata["errors"][subset], spread(frame[frame.subset == subset])
    energy = next(word for word, limit, _ in WORDS if e["energy_rmse"] <= limit)
    if spreads["forces"] < NO_FORCE:
        return f"{energy} energies"
    forces = next(word for word, _, limit in WORDS if e["forces_rmse"] <= limit * spreads["forces"])
    return energy if energy == forces else f"{forces} forces, {energy} energies"


def verdict(metadata: dict[str, Any], frame: pd.DataFrame) -> str:
    """How good it is, in two sentences."""
    subset, errors = judged(metadata), metadata["errors"]
    e, spreads = errors[subset], spread(frame[frame.subset == subset])
    whose = (
        "structures that it has not seen"
        if subset == "test"
        else "the structures that it was trained on (there is no test set)"
    )
    relative = "" if spreads["forces"] < NO_FORCE else f", {100 * e['forces_rmse'] / spreads['forces']:.1f} % of their spread"
    return (
        f"On {e['n_structures']} {whose}, with {e['n_atoms']} atoms, the energies are off by "
        f"{1e3 * e['energy_rmse']:.2f} meV/atom and the force components by {e['forces_rmse']:.3f} eV/Å "
        f"(root mean square){relative}."
    )


def advice(metadata: dict[str, Any]) -> list[str]:
    """What to mind and what to do next, most important first."""
    errors, found = metadata["errors"], []
    if not metadata["complete"]:
        found.append("The time limit came before the end of the fit: the same command again goes on from here.")
    found += [f"The quality gate was missed: {missed}." for missed in metadata["quality_gate_missed"]]
    if "test" not in errors:
        found.append("Nothing was held out, so nobody knows how it does on new structures: set MLIP_PACE_DATA_TEST_FRACTION.")
    else:
        test, train = errors["test"], errors["train"]
        if test["n_structures"] < SMALL_TEST:
            found.append(f"The test set has only {test['n_structures']} structures: its errors may be chance.")
        for quantity in ("energy", "forces"):
            ratio = test[f"{quantity}_rmse"] / max(train[f"{quantity}_rmse"], 1e-12)
            if ratio > 2:
                found.append(
                    f"The {quantity} error on the test set is {ratio:.1f} times that on the training set: look at the worst "
                    "structures below; what they are like is missing in the training data, or fewer functions "
                    "(MLIP_PACE_BASIS_FUNCTIONS) overfit less."
                )
        by_type = metadata["errors_by_config_type"]["test"]
        worst = max(by_type, key=lambda kind: by_type[kind]["energy_rmse"])
        if len(by_type) > 1 and by_type[worst]["energy_rmse"] > 1.5 * test["energy_rmse"]:
            found.append(f"The test energies are worst for “{worst}”: {1e3 * by_type[worst]['energy_rmse']:.1f} meV/atom.")
    if metadata["reference"]["requires_overlay"]:
        found.append("Use it with its reference potential: include potential.lammps in LAMMPS, load_calculator in ASE.")
    return found + [f"Warning of the job: {warning}" for warning in metadata["warnings"]]


# The sections, from top to bottom. Each is made of what is in the sidecar and in the files of the stages.


def errors_section(metadata: dict[str, Any], frame: pd.DataFrame) -> Section:
    """Errors by subset, with the spread of DFT for scale, and by config_type."""
    errors, by_type = metadata["errors"], metadata["errors_by_config_type"]
    present = [name for name in SUBSETS if name in errors]
    rows = [error_row(SUBSETS[name], errors[name]) for name in present]
    rows += [spread_row(f"spread of DFT, {SUBSETS[name]}", frame[frame.subset == name]) for name in present]
    typed = [error_row(f"{SUBSETS[name]}: {kind}", e) for name in present for kind, e in sorted(by_type[name].items())]
    panels = []
    kinds = sorted({kind for name in present for kind in by_type[name]})
    for quantity, unit, factor in (("energy", "meV/atom", 1e3), ("forces", "eV/Å", 1.0)):
        layers = []
        for name in present:
            values = [by_type[name][kind][f"{quantity}_rmse"] if kind in by_type[name] else None for kind in kinds]
            layers.append(Layer("bars", SUBSETS[name], name, rounded(v if v is None else factor * v for v in values)))
        panels.append(
            Panel(
                f"by-type-{quantity}",
                f"{quantity.capitalize()} error by config_type",
                f"RMSE, {unit}",
                "",
                layers,
                categories=kinds,
            )
        )
    against = (
        f"potential.yace (E0 inside) + the {metadata['reference']['form']} reference against the DFT values in the data."
        if metadata["reference"]["requires_overlay"]
        else "potential.yace (E0 inside) against the DFT values in the data."
    )
    return Section(
        "errors",
        "Errors",
        [
            against
            + " MAE / RMSE. Energies count once a structure, forces and stresses by component. Stress is compared, not fitted. "
            "The spread is the standard deviation of the DFT values: the RMSE of a potential that knows only their mean."
        ],
        panels if len(kinds) <= 20 else [],
        [Table("", ERROR_HEADERS, rows), Table("By config_type", ERROR_HEADERS, typed, long=True)],
    )


ERROR_HEADERS = ["set", "structures", "atoms", "energy, meV/atom", "forces, eV/Å", "stress, GPa"]


def error_row(name: str, e: dict[str, float]) -> list[str]:
    """MAE / RMSE as text, in the units of `ERROR_HEADERS`."""
    stress = f"{e['stress_mae'] / GPa:.2f} / {e['stress_rmse'] / GPa:.2f}" if "stress_rmse" in e else ""
    return [
        name,
        str(e["n_structures"]),
        str(e["n_atoms"]),
        f"{1e3 * e['energy_mae']:.2f} / {1e3 * e['energy_rmse']:.2f}",
        f"{e['forces_mae']:.4f} / {e['forces_rmse']:.4f}",
        stress,
    ]


def spread_row(name: str, frame: pd.DataFrame) -> list[str]:
    s = spread(frame)
    stress = f"{s['stress']:.2f}" if "stress" in s else ""
    return [name, "", "", f"{1e3 * s['energy']:.1f}", f"{s['forces']:.4f}", stress]


def labels_and_predictions(frame: pd.DataFrame) -> dict[str, tuple[Array, Array]]:
    """By quantity, DFT and ACE + reference as flat arrays; units as in `QUANTITIES`, forces and stress by component."""
    counts = frame[ATOMS].map(len).to_numpy()
    energies = [((frame[column] - frame[ENERGY_ATOMS]) / counts).to_numpy(dtype=float) for column in (ENERGY, "energy_pred")]
    forces = [np.concatenate([np.ravel(f) for f in frame[column]] or [np.zeros(0)]) for column in (FORCES, "forces_pred")]
    found = {"energy": (energies[0], energies[1]), "forces": (forces[0], forces[1])}
    if STRESS in frame:
        both = frame[[d is not None and p is not None for d, p in zip(frame[STRESS], frame.stress_pred, strict=True)]]
        if len(both):
            dft, ace = (np.array([s[VOIGT] for s in both[column]]).ravel() / GPa for column in (STRESS, "stress_pred"))
            found["stress"] = (dft, ace)
    return found


def structure_of_each(frame: pd.DataFrame, quantity: str) -> list[str]:
    """The source of each of the values of `labels_and_predictions`."""
    if quantity == "stress":
        frame = frame[[d is not None and p is not None for d, p in zip(frame[STRESS], frame.stress_pred, strict=True)]]
    per = {"energy": 1, "stress": 6}.get(quantity)
    repeats = frame[ATOMS].map(lambda atoms: per or 3 * len(atoms))
    return list(np.repeat(frame[SOURCE].to_numpy(dtype=object), repeats))


def parity_section(frame: pd.DataFrame) -> Section:
    """Predicted against DFT as densities, the largest deviations named, and how the errors are distributed."""
    panels, errors = [], {}
    everything = labels_and_predictions(frame)
    for quantity, (what, unit) in QUANTITIES.items():
        if quantity not in everything:
            continue
        values = np.concatenate(everything[quantity])
        margin = 0.02 * max(float(np.ptp(values)), 1e-3)
        edges = np.linspace(values.min() - margin, values.max() + margin, BINS + 1)
        for subset in [name for name in SUBSETS if (frame.subset == name).any()]:
            part = frame[frame.subset == subset]
            found = labels_and_predictions(part)
            if quantity not in found:
                continue
            dft, ace = found[quantity]
            errors[quantity, subset] = np.abs(ace - dft)
            worst = np.argsort(-errors[quantity, subset], kind="stable")[:WORST]
            sources = structure_of_each(part, quantity)
            names = [f"{sources[n]}: DFT {dft[n]:.4g}, ACE {ace[n]:.4g} {unit}" for n in worst]
            panels.append(
                Panel(
                    f"parity-{quantity}-{subset}", f"{what.capitalize()}, {SUBSETS[subset]}",
                    f"DFT, {unit}", f"ACE + reference, {unit}",
                    [cells("", subset, dft, ace, edges, edges),
                     Layer("points", f"largest {len(worst)} errors", "warn", rounded(dft[worst]), rounded(ace[worst]), names)],
                    f"{len(dft)} values; darker is more of them.", diagonal=True,
                )
            )  # fmt: skip
    for quantity in ("energy", "forces"):
        what, unit = QUANTITIES[quantity]
        layers = []
        for (kind, subset), values in errors.items():
            if kind == quantity:
                share = np.linspace(0, 1, 101)
                quantiles = np.maximum(np.quantile(values, share), floor(values))
                layers.append(Layer("line", SUBSETS[subset], subset, rounded(quantiles), rounded(share)))
        panels.append(
            Panel(f"distribution-{quantity}", f"Size of the {what} errors", f"|error|, {unit}", "part of the values below it",
                  layers, xscale="log", ylim=(0, 1.02))
        )  # fmt: skip
    return Section(
        "parity", "Predicted against DFT", ["A perfect potential is on the line. Point at a circle for its structure."], panels
    )


def floor(values: Array) -> float:
    """Where a logarithmic axis of these absolute values begins: four decades below the largest."""
    return max(float(np.max(values, initial=0.0)) * 1e-4, 1e-9)


def where_section(frame: pd.DataFrame) -> Section:
    """Errors of the forces against the distance to the nearest neighbour and against the force."""
    distances = np.concatenate([nearest(atoms, within=8.0) for atoms in frame[ATOMS]])
    dft, ace = (np.concatenate(list(frame[column])) for column in (FORCES, "forces_pred"))
    force, error = np.linalg.norm(dft, axis=1), np.linalg.norm(ace - dft, axis=1)
    atoms_in = frame[ATOMS].map(len)
    sources = np.repeat(frame[SOURCE].to_numpy(dtype=object), atoms_in)
    subsets = np.repeat(frame.subset.to_numpy(dtype=object), atoms_in)
    worst = np.argsort(-error, kind="stable")[:WORST]
    heights = np.geomspace(floor(error), 1.2 * max(float(error.max()), 1e-8), BINS + 1)
    panels = []
    near = np.isfinite(distances)
    for name, title, axis, x, edges in (
        ("distance", "Force error by distance", "distance to the nearest neighbour, Å", distances,
         np.linspace(distances[near].min() - 0.01, distances[near].max() + 0.01, BINS + 1)),
        ("force", "Force error by force", "force, eV/Å", force,
         np.geomspace(floor(force), 1.1 * max(float(force.max()), 1e-8), BINS + 1)),
    ):  # fmt: skip
        known = np.isfinite(x)
        layers = [cells("", "left_out", x[known], np.maximum(error[known], heights[0]), edges, heights)]
        for subset in [s for s in SUBSETS if (subsets == s).any()]:
            here = known & (subsets == subset)
            centres, rms = running_rms(x[here], error[here], edges[::5])
            layers.append(Layer("line", f"RMS, {SUBSETS[subset]}", subset, rounded(centres), rounded(rms)))
        names = [f"{sources[n]}: error {error[n]:.3g} eV/Å, {axis} {x[n]:.4g}" for n in worst if known[n]]
        shown = worst[known[worst]]
        layers.append(Layer("points", "largest", "warn", rounded(x[shown]), rounded(error[shown]), names))
        panels.append(
            Panel(f"error-by-{name}", title, axis, "|ΔF| of an atom, eV/Å", layers,
                  xscale="log" if name == "force" else "linear", yscale="log",
                  note="Every atom of the data; values below the axis are in its first cells.")
        )  # fmt: skip
    return Section("where", "Where it is bad", ["Errors that grow towards an end of an axis say what data would help."], panels)


def running_rms(x: Array, error: Array, edges: Array) -> tuple[Array, Array]:
    """Mean x and root mean square of the errors between the edges, where there are at least 3."""
    place = np.clip(np.searchsorted(edges, x, side="right"), 1, len(edges) - 1)
    centres, rms = [], []
    for n in np.unique(place):
        here = place == n
        if here.sum() >= 3:
            centres.append(x[here].mean())
            rms.append(np.sqrt((error[here] ** 2).mean()))
    return np.array(centres), np.array(rms)


def learning_section(metadata: dict[str, Any], fitted: Path) -> Section:
    """Loss and errors by iteration, as variable projection and pacemaker recorded them."""
    training = metadata["training"]
    told = f"{training['iterations']} iterations; the fit ended because: {training['stopped']}."
    train, test = history(fitted, "metrics.txt"), history(fitted, "test_metrics.txt")
    if train.empty:
        return Section(
            "learning", "Learning curve", [told + " No iterations, no curve: what is published is the linear start."]
        )
    panels = []
    for column, name, label in (
        ("loss", "Loss", "loss"),
        ("rmse_epa", "Energy error", "RMSE, eV/atom"),
        ("rmse_f_comp", "Force error", "RMSE, eV/Å"),
    ):
        layers = [Layer("line", "train", "train", rounded(train.iteration), rounded(train[column]))]
        if not test.empty:
            layers.append(Layer("line", "test", "test", rounded(test.iteration), rounded(test[column])))
        if training["linear_start"] and train.iteration.iloc[0] == 0:
            first = train.iloc[0]
            name_of = [f"linear start: {first[column]:.4g}"]
            layers.append(Layer("points", "linear start", "warn", [0.0], rounded([first[column]]), name_of))
        panels.append(Panel(f"learning-{column.replace('_', '-')}", name, "iteration", label, layers, yscale="log"))
    return Section(
        "learning", "Learning curve", [told + " Errors of the delta, as the trainer sees them while it fits."], panels
    )


def history(fitted: Path, name: str) -> pd.DataFrame:
    """The metrics of the least squares and of all attempts, with a column `iteration` that goes on from one to the next."""
    parts, before = [], 0
    attempts = sorted(fitted.glob("attempt-*"), key=lambda path: int(path.name.split("-")[1]))
    for attempt in (fitted / LEAST_SQUARES, *attempts):
        if not (attempt / name).exists():
            continue
        table = pd.read_csv(attempt / name, sep=r"\s+").dropna()
        # Every step of a ladder counts from 0 again.
        for _, step in table.groupby("ladder_step" if "ladder_step" in table else lambda _: 0):
            parts.append(step.assign(iteration=before + step.iter_num))
            before += int(step.iter_num.max())
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def dimer_section(potential: Potential, yace: Path, cutoff: float) -> Section:
    """Energy of two atoms by distance: ACE, reference, sum; and where the data begin."""
    panels, shortest = [], potential.metadata["basis"]["shortest"]
    distances = np.arange(0.5, cutoff + 0.01, 0.02, dtype=np.float64)
    for first, second in combinations_with_replacement(potential.elements, 2):
        pair = pair_name(first, second)
        ace = basis.pair_energies(yace, first, second, distances)
        reference = potential.reference.pair(first, second, distances)[0]
        total = ace + reference
        lowest = min(0.0, float(total[distances > 0.8 * shortest.get(pair, min(shortest.values()))].min()))
        layers = [
            Layer("line", "ACE", "ace", rounded(distances), rounded(ace)),
            Layer("line", "reference", "reference", rounded(distances), rounded(reference)),
            Layer("dashed", "sum", "ink", rounded(distances), rounded(total)),
        ]
        if pair in shortest:
            layers.append(Layer("mark", "shortest in the data", "warn", rounded([shortest[pair]])))
        note = "" if pair in shortest else "The data hold no such pair within the cutoff: all of this is extrapolation."
        panels.append(
            Panel(f"dimer-{pair}", f"{first}–{second}", "distance, Å", "energy, eV", layers, note,
                  ylim=(1.3 * lowest - 0.5, -4 * lowest + 8))
        )  # fmt: skip
    return Section(
        "dimers",
        "Dimers",
        ["Two atoms alone, relative to far apart. Left of the mark there are no data: there the sum should rise."],
        panels,
    )


def volume_section(potential: Potential, frame: pd.DataFrame, calculator: Any) -> Section:
    """Energy against volume of every series of uniformly scaled structures in the data, with V0 and B0 of both."""
    panels, rows = [], []
    used: Counter[str] = Counter()
    for family in volumes.families(frame):
        first = family[ATOMS].iloc[len(family) // 2]
        formula = composition(first)
        used[formula] += 1
        title = formula + (f" ({used[formula]})" if used[formula] > 1 else "")
        names = [name for name, source in zip(family.name, family[SOURCE], strict=True) if name != source]
        common = os.path.commonprefix(names).rstrip("_-.0123456789")  # noqa: RUF071 (names, not paths)
        title = f"{formula}: {common}" if common else title
        dft = (family[ENERGY] - family[ENERGY_ATOMS]) / len(first)
        grid = np.linspace(family.volume.min(), family.volume.max(), 41)
        curve = np.array([volumes.cohesive(potential, calculator, first, volume) for volume in grid])
        names = [f"{s}: {e:.4f} eV/atom" for s, e in zip(family[SOURCE], dft, strict=True)]
        panels.append(
            Panel(f"volume-{formula}-{used[formula]}", title, "volume, Å³/atom", "energy, eV/atom",
                  [Layer("line", "ACE + reference", "ace", rounded(grid), rounded(curve)),
                   Layer("points", "DFT", "ink", rounded(family.volume), rounded(dft), names)])
        )  # fmt: skip
        at_dft = [volumes.cohesive(potential, calculator, first, volume) for volume in family.volume]
        rows.append([title, *volumes.equation_of_state(family.volume, dft), *volumes.equation_of_state(family.volume, at_dft)])
    text = ["Structures of the data that differ only in volume. V0 and B0: Birch-Murnaghan, fitted to the same volumes."]
    headers = ["series", "V0 DFT, Å³/atom", "B0 DFT, GPa", "V0 ACE, Å³/atom", "B0 ACE, GPa"]
    return Section("volumes", "Equations of state", text if panels else [], panels, [Table("", headers, rows)] if rows else [])


def selection_section(metadata: dict[str, Any], frame: pd.DataFrame, chosen: Path) -> Section:
    """How many of each config_type were chosen to train on; the grades and errors of those left out."""
    selection = metadata["selection"]
    text = f"{selection['chosen']} of {selection['given']} training structures were chosen ({selection['method']})."
    pool = frame[frame.subset != "test"]
    kinds = sorted(pool[CONFIG_TYPE].unique())
    layers = [
        Layer("bars", label, name, [float(((pool.subset == name) & (pool[CONFIG_TYPE] == kind)).sum()) for kind in kinds])
        for name, label in (("train", "chosen"), ("left_out", "left out"))
    ]
    panels = [Panel("chosen", "Chosen by config_type", "structures", "", layers, categories=kinds)] if len(kinds) <= 20 else []
    left = pool[pool.subset == "left_out"]
    file = chosen / "grades.json"
    if len(left) and file.exists():
        grades = left[SOURCE].map(json.loads(file.read_text())).to_numpy(dtype=float)
        error = 1e3 * (np.abs(left.energy_pred - left[ENERGY]) / left[ATOMS].map(len)).to_numpy(dtype=float)
        shown = np.argsort(-grades, kind="stable")[:300]
        names = [f"{left[SOURCE].iloc[n]}: grade {grades[n]:.3g}, error {error[n]:.3g} meV/atom" for n in shown]
        panels.append(
            Panel("grades", "What was left out", "extrapolation grade", "|energy error|, meV/atom",
                  [Layer("points", "left out", "left_out", rounded(grades[shown]), rounded(error[shown]), names),
                   Layer("mark", "limit", "warn", [GRADE])],
                  "The 300 with the largest grades." if len(left) > 300 else "", xscale="log")
        )  # fmt: skip
        text += (
            " The grade is the leverage of the worst atom: the variance of its energy in units of the noise of one training "
            f"energy; without a number asked for, the choice goes on until it is below {GRADE:g} for all."
        )
    return Section("selection", "What was chosen to train on", [text], panels)


def worst_section(frame: pd.DataFrame) -> Section:
    """The structures with the largest errors, by name, file and frame."""
    counts = frame[ATOMS].map(len)
    energy = 1e3 * (frame.energy_pred - frame[ENERGY]) / counts
    force = pd.Series(
        [float(np.linalg.norm(p - d, axis=1).max()) for p, d in zip(frame.forces_pred, frame[FORCES], strict=True)], frame.index
    )

    def rows(order: pd.Series) -> list[list[str]]:
        return [
            [frame.name[n], *frame[SOURCE][n].rsplit("#", 1), SUBSETS[frame.subset[n]], frame[CONFIG_TYPE][n], str(counts[n]),
             f"{energy[n]:+.2f}", f"{force[n]:.3f}"]
            for n in order.abs().sort_values(ascending=False, kind="stable").index[:LISTED]
        ]  # fmt: skip

    headers = ["name", "file", "frame", "set", "config_type", "atoms", "energy error, meV/atom", "largest force error, eV/Å"]
    return Section(
        "worst",
        "The worst structures",
        ["Look here first: a wrong label, an unconverged calculation, or something that the training data have too little of."],
        tables=[Table("By energy", headers, rows(energy)), Table("By force", headers, rows(force))],
    )


def audit_section(metadata: dict[str, Any]) -> Section:
    """What was read, what was left out and why, which keys held the labels, E0."""
    data, e0 = metadata["dataset"], metadata["e0"]
    left = [[item["source"], item["reason"]] for item in data["left_out"]]
    tables = [
        Table("Energies of free atoms, E0", ["element", "E0, eV", "from"],
              [[s, f"{e:.6f}", e0["source"][s]] for s, e in e0["energies"].items()]),
        Table("Labels", ["keys", "structures"], [[keys, str(count)] for keys, count in data["keys"].items()]),
        Table(f"Left out ({len(left)})", ["structure", "reason"], left, long=len(left) > 10),
    ]  # fmt: skip
    text = (
        f"{data['read']} structures read, {data['used']} used: {data['train']} to train on, {data['test']} to test; "
        f"{data['atoms']} atoms."
    )
    return Section("audit", "The data", [text], tables=[table for table in tables if table.rows])


def made_section(potential: Potential) -> Section:
    """Settings with where each came from, versions, hashes, times."""
    metadata = potential.metadata
    seconds = metadata["seconds"]
    settings = [[f"MLIP_PACE_{name}", str(s["value"]), s["from"]] for name, s in metadata["settings"].items()]
    given = [row for row in settings if row[2] != "default"]
    hashes = [[file["name"], file["sha256"]] for file in metadata["dataset"]["files"]] + [
        list(pair) for pair in metadata["files"].items()
    ]
    panel = Panel(
        "seconds",
        "Time of the stages",
        "s",
        "",
        [Layer("bars", "", "ace", rounded(seconds.values()))],
        categories=list(seconds),
    )
    return Section(
        "made",
        "How it was made",
        [
            f"On {metadata['hardware']['cpus']} CPUs ({metadata['hardware']['machine']}); "
            f"trained on {metadata['training']['device']}."
        ],
        [panel],
        [
            Table("Settings that were given", ["variable", "value", "from"], given),
            Table("All settings", ["variable", "value", "from"], settings, long=True),
            Table("Versions", ["program", "version"], [list(pair) for pair in metadata["versions"].items()], long=True),
            Table("SHA-256", ["file", "hash"], hashes, long=True),
        ],
    )
