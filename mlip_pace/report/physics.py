"""The sections about what is known of a potential without DFT: dimers, and energy against volume."""

from __future__ import annotations

import os
from collections import Counter
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlip_pace.ace.evaluators import calculator_of, pair_energies
from mlip_pace.collect.dataset import ATOMS, ENERGY, ENERGY_ATOMS, SOURCE
from mlip_pace.collect.geometry import composition
from mlip_pace.physics import volumes
from mlip_pace.physics.crystals import cohesive
from mlip_pace.physics.volumes import Equation, scaled
from mlip_pace.publish.potential import Potential
from mlip_pace.reference import pair_name
from mlip_pace.report.figures import Layer, Panel, rounded
from mlip_pace.report.section import Section, Table

MOST_DIMERS = 45  # all pairs of nine elements; sixty have 1,830


def dimer_section(potential: Potential, yace: Path, cutoff: float) -> Section:
    """Energy of two atoms by distance: ACE, reference, sum; and where the training data begin."""
    panels, shortest, calculator = [], potential.metadata["basis"]["shortest"], calculator_of(yace)
    distances = np.arange(0.5, cutoff + 0.01, 0.02, dtype=np.float64)
    pairs = list(combinations_with_replacement(potential.elements, 2))
    for first, second in pairs[:MOST_DIMERS]:
        pair = pair_name(first, second)
        ace = pair_energies(calculator, first, second, distances)
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
        note = "" if pair in shortest else "The training data hold no such pair within the cutoff: all of it is extrapolation."
        panels.append(
            Panel(f"dimer-{pair}", f"{first}–{second}", "distance, Å", "energy, eV", layers, note,
                  ylim=(1.3 * lowest - 0.5, -4 * lowest + 8))
        )  # fmt: skip
    text = ["Two atoms alone, relative to far apart. Left of the mark there are no training data: there the sum should rise."]
    if len(pairs) > MOST_DIMERS:
        text.append(f"The first {MOST_DIMERS} of {len(pairs)} pairs of elements.")
    return Section("dimers", "Dimers", text, panels)


def volume_section(potential: Potential, frame: pd.DataFrame, calculator: Any) -> Section:
    """Energy against volume of every series of uniformly scaled structures in the data, with V0 and B0 of both."""
    panels, rows, e0 = [], [], potential.metadata["e0"]["energies"]
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
        curve, at_dft = ([cohesive(scaled(first, v), calculator, e0) for v in several] for several in (grid, family.volume))
        names = [f"{s}: {e:.4f} eV/atom" for s, e in zip(family[SOURCE], dft, strict=True)]
        panels.append(
            Panel(f"volume-{formula}-{used[formula]}", title, "volume, Å³/atom", "energy, eV/atom",
                  [Layer("line", "ACE + reference", "ace", rounded(grid), rounded(np.array(curve))),
                   Layer("points", "DFT", "ink", rounded(family.volume), rounded(dft), names)])
        )  # fmt: skip
        found = (volumes.equation_of_state(family.volume, energies) for energies in (dft, at_dft))
        rows.append([title, *(text for equation in found for text in _told(equation))])
    text = ["Structures of the data that differ only in volume. V0 and B0: Birch-Murnaghan, fitted to the same volumes."]
    headers = ["series", "V0 DFT, Å³/atom", "B0 DFT, GPa", "V0 ACE, Å³/atom", "B0 ACE, GPa"]
    return Section("volumes", "Equations of state", text if panels else [], panels, [Table("", headers, rows)] if rows else [])


def _told(equation: Equation | None) -> list[str]:
    """V0 and B0 as text."""
    return ["no minimum here", ""] if equation is None else [f"{equation.volume:.2f}", f"{equation.modulus:.1f}"]
