"""The sections about errors: their tables, predicted against DFT, and where they are large."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from ase.units import GPa

from mlip_pace.arrays import Array
from mlip_pace.collect.dataset import ATOMS, FORCES, SOURCE
from mlip_pace.collect.neighbours import nearest
from mlip_pace.report.figures import Layer, Panel, cells, rounded
from mlip_pace.report.predictions import QUANTITIES, labels_and_predictions, spread, structure_of_each
from mlip_pace.report.section import SUBSETS, Section, Table

BINS = 50  # of a density, each way: about the width of a line
WORST = 5  # points named in a figure
FARTHEST = 8.0  # Å; how far a nearest neighbour is looked for


def errors_section(metadata: dict[str, Any], frame: pd.DataFrame) -> Section:
    """Errors by subset, with the spread of DFT for scale, and by config_type."""
    errors, by_type = metadata["errors"], metadata["errors_by_config_type"]
    present = [name for name in SUBSETS if name in errors]
    rows = [error_row(SUBSETS[name], errors[name]) for name in present]
    rows += [spread_row(f"spread of DFT, {SUBSETS[name]}", frame[frame.subset == name]) for name in present]
    typed = [error_row(f"{SUBSETS[name]}: {kind}", e) for name in present for kind, e in sorted(by_type[name].items())]
    panels = []
    kinds = sorted({kind for name in present for kind in by_type[name]})
    for quantity, name_of, unit, factor in (("energy", "Energy", "meV/atom", 1e3), ("forces", "Force", "eV/Å", 1.0)):
        layers = []
        for name in present:
            values = [by_type[name][kind][f"{quantity}_rmse"] if kind in by_type[name] else None for kind in kinds]
            layers.append(Layer("bars", SUBSETS[name], name, rounded(v if v is None else factor * v for v in values)))
        panels.append(
            Panel(
                f"by-type-{quantity}",
                f"{name_of} error by config_type",
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
            + f" MAE / RMSE. Energies count once a structure, forces and stresses by component.{told_of_stress(metadata)} "
            "The spread is the standard deviation of the DFT values: the RMSE of a potential that knows only their mean."
        ],
        panels if len(kinds) <= 20 else [],
        [Table("", ERROR_HEADERS, rows), Table("By config_type", ERROR_HEADERS, typed, long=True)],
    )


def told_of_stress(metadata: dict[str, Any]) -> str:
    """Whether stress was fitted: by least squares and variable projection it is, by pacemaker's optimizers it is not."""
    errors, training = metadata["errors"], metadata["training"]
    if not any("stress_rmse" in e for e in errors.values()):
        return ""
    if "stress_rmse" not in errors["train"]:
        return " Stress is compared, not fitted: no structure that was trained on has one."
    if "stress_left_out" in training:
        return " Stress is compared, not fitted: it does not go with energies and forces."
    if not training["linear_start"]:
        return " Stress is compared, not fitted: pacemaker's optimizers do not fit it."
    if any(attempt["iterations"] for attempt in training["attempts"]):
        return " Stress is fitted with a small weight by the linear start; pacemaker's optimizer, which follows, ignores it."
    return " Stress is fitted with a small weight."


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
    distances = np.concatenate([nearest(atoms, within=FARTHEST) for atoms in frame[ATOMS]])
    dft, ace = (np.concatenate(list(frame[column])) for column in (FORCES, "forces_pred"))
    force, error = np.linalg.norm(dft, axis=1), np.linalg.norm(ace - dft, axis=1)
    atoms_in = frame[ATOMS].map(len)
    sources = np.repeat(frame[SOURCE].to_numpy(dtype=object), atoms_in)
    subsets = np.repeat(frame.subset.to_numpy(dtype=object), atoms_in)
    worst = np.argsort(-error, kind="stable")[:WORST]
    heights = np.geomspace(floor(error), 1.2 * max(float(error.max()), 1e-8), BINS + 1)
    panels = []
    near = distances[np.isfinite(distances)]
    for name, title, axis, x, edges in (
        ("distance", "Force error by distance", "distance to the nearest neighbour, Å", distances,
         np.linspace(near.min(initial=FARTHEST) - 0.01, near.max(initial=0.0) + 0.01, BINS + 1)),
        ("force", "Force error by force", "force, eV/Å", force,
         np.geomspace(floor(force), 1.1 * max(float(force.max()), 1e-8), BINS + 1)),
    ):  # fmt: skip
        known = np.isfinite(x)
        if not known.any():  # every atom is far from all others
            continue
        layers = [cells("", "left_out", x[known], np.maximum(error[known], heights[0]), edges, heights)]
        for subset in [s for s in SUBSETS if (subsets == s).any()]:
            here = known & (subsets == subset)
            centres, rms = running_rms(x[here], error[here], edges[::5])
            layers.append(Layer("line", f"RMS, {SUBSETS[subset]}", subset, rounded(centres), rounded(rms)))
        every = "Every atom" if known.all() else f"Every atom with a neighbour within {FARTHEST:g} Å"
        names = [f"{sources[n]}: error {error[n]:.3g} eV/Å, {axis} {x[n]:.4g}" for n in worst if known[n]]
        shown = worst[known[worst]]
        layers.append(Layer("points", "largest", "warn", rounded(x[shown]), rounded(error[shown]), names))
        panels.append(
            Panel(f"error-by-{name}", title, axis, "|ΔF| of an atom, eV/Å", layers,
                  xscale="log" if name == "force" else "linear", yscale="log",
                  note=f"{every} of the data; values below the axis are in its first cells.")
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
