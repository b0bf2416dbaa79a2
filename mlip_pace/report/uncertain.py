"""The section about uncertainties: whether the intervals hold for the test set, and whether σ tells where errors are large."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mlip_pace.ace.activeset import EXTRAPOLATION
from mlip_pace.ace.uncertainty import ONE_SIGMA
from mlip_pace.collect.split import TEST
from mlip_pace.publish import coverages
from mlip_pace.publish.potential import Potential
from mlip_pace.report.accuracy import floor
from mlip_pace.report.figures import Layer, Panel, cells, rounded
from mlip_pace.report.section import Section, Table
from mlip_pace.report.telling import least

TITLE = "How sure is it?"
CELLS, GROUPS = 40, 12  # of a density, each way; equally large groups of values by σ
LEAST = 5  # values in a group


def uncertainty_section(potential: Potential, frame: pd.DataFrame) -> Section:
    """Coverage by config_type, and |error| against σ, of the test set."""
    said, calibration = potential.metadata["uncertainty"], potential.calibration
    if calibration is None:
        return Section("uncertainty", TITLE, [f"There are no uncertainties: {said['absent']}."])
    energy, forces = calibration.energy, calibration.forces
    text = [
        "σ (energy_uncertainty and forces_uncertainty of mlip-pace predict and of the calculator) is such that 68 % of the "
        f"errors of {calibration.structures} structures, each held out of a fit, are smaller. It is at least "
        f"{least(calibration)} (by component), and more where the data say little."
        + "".join(f" {share:.0%} are within {energy.widths[share]:.2f} σ (energies) and {forces.widths[share]:.2f} σ (forces)."
                  for share in energy.widths if share != ONE_SIGMA and share in forces.widths)
        + " Reference and E0 are taken as exact; of structures unlike all data no interval can be sure: mind the grades."
    ]  # fmt: skip
    if grades := potential.metadata.get("grades"):
        text.append(
            f"The largest extrapolation grade of a test structure is {grades['largest']:.3g}, the median of them "
            f"{grades['median']:.2g}; {grades['extrapolating']} of {grades['structures']} are above {EXTRAPOLATION:g}."
        )
    if not said["coverage"]:
        text.append("There is no test set, so that nothing else tells whether they hold.")
        return Section("uncertainty", TITLE, text)
    test = frame[(frame.subset == TEST).to_numpy()]
    pairs = coverages.errors_and_sigmas(test, calibration)
    panels = [
        _panel(name, what, unit, factor * pairs[name][0], factor * pairs[name][1])
        for name, what, unit, factor in (
            ("energy", "Energy", "meV/atom", 1e3), ("forces", "Force", "eV/Å", 1.0),
        ) if len(pairs[name][0])
    ]  # fmt: skip
    shares = list(energy.widths)
    headers = ["test structures", *(f"{name}, {share:.0%}" for name in ("energy", "forces") for share in shares)]
    rows = [
        [kind, *(_percent(found.get(name, {}), share) for name in ("energy", "forces") for share in shares)]
        for kind, found in said["coverage"].items()
    ]
    return Section("uncertainty", TITLE, text, panels, [Table("Errors within their interval", headers, rows)])


def _percent(found: dict[Any, float], share: float) -> str:
    part = {float(key): value for key, value in found.items()}.get(share)  # JSON has names where we have numbers
    return "" if part is None else f"{part:.0%}"


def _panel(name: str, what: str, unit: str, error: Any, sigma: Any) -> Panel:
    """|error| against σ, and what 68 % of the errors at about this σ are within."""
    edges = np.geomspace(0.9 * sigma.min(), 1.1 * sigma.max(), CELLS + 1)
    heights = np.geomspace(floor(error), max(1.2 * float(error.max()), 1e-8), CELLS + 1)
    layers = [cells("", "test", sigma, error, edges, heights)]
    order = np.argsort(sigma, kind="stable")
    groups = [group for group in np.array_split(order, min(GROUPS, max(1, len(order) // LEAST))) if len(group)]
    x, y = [float(np.median(sigma[g])) for g in groups], [float(np.quantile(error[g], ONE_SIGMA)) for g in groups]
    layers.append(Layer("points", "68 % of the errors are below", "warn", rounded(x), rounded(y)))
    layers.append(Layer("line", "σ", "reference", rounded([edges[0], edges[-1]]), rounded([edges[0], edges[-1]])))
    return Panel(
        f"uncertainty-{name}", f"{what} errors by σ", f"σ, {unit}", f"|error|, {unit}", layers,
        "If σ is right, the circles are on the line.", xscale="log", yscale="log",
    )  # fmt: skip
