"""The section that names the structures with the largest errors."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mlip_pace.collect.dataset import ATOMS, CONFIG_TYPE, ENERGY, FORCES, SOURCE
from mlip_pace.report.section import SUBSETS, Section, Table

LISTED = 15  # structures named in a table


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
