"""The sections about the fit: how the loss fell, and which structures it was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlip_pace.collect.dataset import ATOMS, CONFIG_TYPE, ENERGY, SOURCE
from mlip_pace.report.figures import Layer, Panel, rounded
from mlip_pace.report.section import Section
from mlip_pace.selection import GRADES, chosen_in
from mlip_pace.train.fit import LEAST_SQUARES
from mlip_pace.train.pacemaker import attempts_in


def learning_section(metadata: dict[str, Any], fitted: Path) -> Section:
    """Loss and errors by iteration, as variable projection and pacemaker recorded them."""
    training = metadata["training"]
    told = f"{training['iterations']} iterations; the fit ended because: {training['stopped']}."
    train, test = history(fitted, "metrics.txt"), history(fitted, "test_metrics.txt")
    if train.empty:
        return Section(
            "learning", "Learning curve", [told + " No iterations, no curve: what is published is what the fit started from."]
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
    for attempt in (fitted / LEAST_SQUARES, *attempts_in(fitted)):
        if not (attempt / name).exists():
            continue
        table = pd.read_csv(attempt / name, sep=r"\s+").dropna()
        # Every step of a ladder counts from 0 again.
        for _, step in table.groupby("ladder_step" if "ladder_step" in table else lambda _: 0):
            parts.append(step.assign(iteration=before + step.iter_num))
            before += int(step.iter_num.max())
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def selection_section(metadata: dict[str, Any], frame: pd.DataFrame, chosen: Path) -> Section:
    """How many of each config_type were chosen, and why so many; the grades and errors of the others."""
    selection = metadata["selection"]
    text = (
        f"{selection['chosen']} of {selection['given']} training structures were chosen ({selection['method']}: "
        f"{selection['reason']})."
    )
    pool = frame[frame.subset != "test"]
    used = pool[SOURCE].isin(chosen_in(chosen))
    kinds = sorted(pool[CONFIG_TYPE].unique())
    layers = [
        Layer("bars", label, name, [float((which & (pool[CONFIG_TYPE] == kind)).sum()) for kind in kinds])
        for name, label, which in (("train", "chosen", used), ("left_out", "not chosen", ~used))
    ]
    panels = [Panel("chosen", "Chosen by config_type", "structures", "", layers, categories=kinds)] if len(kinds) <= 20 else []
    others = pool[~used]
    if len(others):
        grades = others[SOURCE].map(json.loads((chosen / GRADES).read_text())).to_numpy(dtype=float)
        error = 1e3 * (np.abs(others.energy_pred - others[ENERGY]) / others[ATOMS].map(len)).to_numpy(dtype=float)
        shown = np.argsort(-grades, kind="stable")[:300]
        names = [f"{others[SOURCE].iloc[n]}: grade {grades[n]:.3g}, error {error[n]:.3g} meV/atom" for n in shown]
        panels.append(
            Panel("grades", "What was not chosen", "grade of the worst atom", "|energy error|, meV/atom",
                  [Layer("points", "not chosen", "left_out", rounded(grades[shown]), rounded(error[shown]), names)],
                  "The 300 with the largest grades." if len(others) > 300 else "", xscale="log")
        )  # fmt: skip
        text += (
            " The grade of an atom is the variance of its energy, in a fit to what was chosen, in units of the noise of one "
            "training energy. (It is not the extrapolation grade of potential.asi.)"
        )
    return Section("selection", "What was chosen to train on", [text], panels)
