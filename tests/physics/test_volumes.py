"""V0 and B0 against a curve whose values are known, and against what is known of real metals."""

import re

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.io import read
from conftest import EXAMPLES
from hypothesis import given
from hypothesis import strategies as st

from mlip_pace.physics import volumes

EV_PER_CUBIC_ANGSTROM = 160.2176634  # GPa; CODATA 2018


def birch_murnaghan(volume, v0, b0, slope):
    """Energy (eV) at a volume (Å^3) for B0 in GPa and its derivative by pressure: F. Birch, Phys. Rev. 71, 809 (1947)."""
    x = (v0 / volume) ** (2 / 3)
    return 9 * v0 * b0 / EV_PER_CUBIC_ANGSTROM / 16 * ((x - 1) ** 3 * slope + (x - 1) ** 2 * (6 - 4 * x))


@given(v0=st.floats(5, 60), b0=st.floats(5, 450), slope=st.floats(3, 6), depth=st.floats(0.05, 20))
def test_the_values_of_a_made_curve_are_found(v0, b0, slope, depth):
    grid = v0 * np.linspace(0.9, 1.1, 9)
    found = volumes.equation_of_state(grid, birch_murnaghan(grid, v0, b0, slope) - depth)
    assert found.volume == pytest.approx(v0, abs=1e-3)
    assert found.modulus == pytest.approx(b0, rel=2e-3)
    assert found.derivative == pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize("part", [slice(0, 5), slice(4, 9)])
def test_without_a_minimum_there_are_no_values(part):
    grid = 16 * np.linspace(0.9, 1.1, 9)
    assert volumes.equation_of_state(grid[part], birch_murnaghan(grid, 16, 75, 4)[part]) is None


@pytest.mark.parametrize("part", [slice(3, 9), slice(0, 6)])
def test_one_volume_beyond_the_minimum_is_enough(part):
    grid = 16 * np.linspace(0.9, 1.1, 9)
    assert volumes.equation_of_state(grid[part], birch_murnaghan(grid, 16, 75, 4)[part]).volume == pytest.approx(16, abs=0.01)


# V0 (Å^3/atom) and B0 (GPa) by PBE with other codes and finer series: K. Lejaeghere et al., Science 351, aad3000 (2016).
KNOWN = {"Al": (16.48, 77.6), "Mg": (22.94, 36.1)}  # the first series of each: fcc, hcp


@pytest.mark.parametrize("series", KNOWN)
def test_the_table_has_what_is_known_of_aluminium_and_magnesium(demo, series):
    page = (demo / "report.html").read_text()
    row = re.search(rf'<tr><td data-label="series">{series}</td>(.*?)</tr>', page)[1]
    dft_volume, dft_modulus, ace_volume, ace_modulus = map(float, re.findall(r"<td[^>]*>([\d.]+)</td>", row))
    v0, b0 = KNOWN[series]
    assert dft_volume == pytest.approx(v0, rel=0.03)
    assert dft_modulus == pytest.approx(b0, rel=0.2)  # five volumes far apart
    assert ace_volume == pytest.approx(dft_volume, rel=0.02)
    assert ace_modulus == pytest.approx(dft_modulus, rel=0.2)


def test_a_series_is_what_differs_in_volume_alone():
    lattice = bulk("Al", cubic=True)
    series = [lattice.copy() for _ in range(6)]
    for n, atoms in enumerate(series):
        atoms.set_cell(atoms.cell * (0.95 + 0.02 * n), scale_atoms=True)
        atoms.positions += [0.0, 0.3, -0.2]  # the same crystal elsewhere in its cell
        atoms.positions[1, 0] += (-1) ** n * 1e-6  # so that this atom is now on one side of the cell, now on the other
        atoms.wrap(eps=0)
    moved, strained, alone = (lattice.copy() for _ in range(3))
    moved.positions[1] += [0.1, 0.0, 0.0]
    strained.set_cell(strained.cell * [1.1, 1.0, 1.0], scale_atoms=True)
    alone.pbc = False
    others = [moved, strained, alone, bulk("Mg")]
    rng = np.random.default_rng(0)
    order = rng.permutation(10)
    frame = pd.DataFrame({"ase_atoms": [[*series, *others][n] for n in order], "which": order})
    (found,) = volumes.families(frame)
    assert found.which.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.volume.tolist() == pytest.approx([atoms.cell.volume / 4 for atoms in series])
    assert volumes.families(frame[~frame.which.isin([0, 1])]) == []  # four volumes are no curve


def test_every_series_of_the_example_is_found():
    structures = [atoms for atoms in read(EXAMPLES, ":") if atoms.info["config_type"] == "volume"]
    found = volumes.families(pd.DataFrame({"ase_atoms": structures}))
    assert len(found) == 12
    assert all(len(series) == 5 for series in found)
