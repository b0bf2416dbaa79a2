"""Runs of a few frames, written for the tests in the layouts of VASP, CASTEP and FHI-aims: labels that are all different, and
that go together, since they are those of springs. No program has made these files."""

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import GPa
from hypothesis import strategies as st

KBAR = 0.1 * GPa
SPRING = 8.0  # eV/Å^2 between the atoms and their sites
SITES = np.array([[0, 0, 0], [1.3575, 1.3575, 1.3575]])
CELL = 5.43 * np.eye(3)
START = -10.8


def frames(count: int, changing: bool = False) -> list[Atoms]:
    """Atoms that swing about their sites, and in a cell that grows if `changing`; stress is that of a spring, too."""
    run = []
    for n in range(count):
        moved = 0.04 * np.array([[np.cos(0.4 * n), 0.5, 0.1 * n], [-np.cos(0.4 * n), 0.25, -0.1 * n]])
        stretch = 0.01 * n if changing else 0.0
        cell = CELL * (1 + stretch)
        volume = np.linalg.det(CELL) * (1 + stretch) ** 3
        # E = 1/2 k sum (r - r0)^2 + 1/2 K (stretch)^2, with r - r0 at fixed fractions.
        energy = START + SPRING / 2 * (moved**2).sum() + 30 * stretch**2
        atoms = Atoms("Si2", positions=np.round((SITES + moved) * (1 + stretch), 5), cell=cell, pbc=True)
        pressure = np.round(20 * stretch / volume * (1 + stretch) / KBAR, 3) * KBAR
        results = {"energy": round(energy, 6), "free_energy": round(energy, 6), "forces": np.round(-SPRING * moved, 5)}
        results["stress"] = np.array([pressure, pressure, pressure, 0, 0, 0])
        atoms.calc = SinglePointCalculator(atoms, **results)
        run.append(atoms)
    return run


@dataclass(frozen=True)
class Written:
    name: str
    text: str
    frames: list[Atoms]


def _rows(array, form="{:14.8f}"):
    return ["".join(form.format(x) for x in row) for row in np.atleast_2d(array)]


def vasprun(run, *, cycles=5, nelm=60, icharg=2, isif=3, added=0.0) -> str:
    def rows(array):
        return "".join(f"    <v>{row} </v>\n" for row in _rows(array, "{:16.8f}"))

    def structure(atoms, name=""):
        return (
            f' <structure{name} >\n  <crystal>\n   <varray name="basis" >\n{rows(atoms.cell.array)}   </varray>\n'
            f'   <i name="volume"> {atoms.get_volume():.8f} </i>\n  </crystal>\n'
            f'  <varray name="positions" >\n{rows(atoms.get_scaled_positions(wrap=False))}  </varray>\n </structure>\n'
        )

    def energy(value):
        words = "".join(
            f'    <i name="{name}">{value + more:16.8f} </i>\n'
            for name, more in (("e_fr_energy", 0), ("e_wo_entrp", 0.002), ("e_0_energy", 0.001))
        )
        return f"   <energy>\n{words}   </energy>\n"

    atoms = run[0]
    symbols = "".join(f"    <rc><c>{symbol} </c><c>   1</c></rc>\n" for symbol in atoms.symbols)
    text = (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n <generator>\n  <i name="program" type="string">vasp </i>\n'
        '  <i name="version" type="string">6.3.0 </i>\n </generator>\n <incar>\n </incar>\n <parameters>\n'
        f'  <i type="int" name="NELM">    {nelm}</i>\n  <i type="int" name="ICHARG">     {icharg}</i>\n'
        '  <i type="int" name="IALGO">    38</i>\n  <i name="PSTRESS">     0.0</i>\n'
        f'  <i type="int" name="ISIF">     {isif}</i>\n'
        f" </parameters>\n <atominfo>\n  <atoms>       {len(atoms)} </atoms>\n  <types>       1 </types>\n"
        f'  <array name="atoms" >\n   <dimension dim="1">ion</dimension>\n   <set>\n{symbols}   </set>\n  </array>\n'
        '  <array name="atomtypes" >\n   <set>\n    <rc><c>   2</c><c>Si</c><c> 28.085</c><c> 4.0</c>'
        "<c>  PAW_PBE Si 05Jan2001 </c></rc>\n   </set>\n  </array>\n </atominfo>\n"
    )
    text += structure(atoms, ' name="initialpos"')
    for atoms in run:
        results = atoms.calc.results
        stress = -results["stress"][[[0, 5, 4], [5, 1, 3], [4, 3, 2]]] / KBAR
        text += " <calculation>\n"
        for left in reversed(range(cycles)):
            text += f"  <scstep>\n{energy(results['free_energy'] + 0.1 * left)}  </scstep>\n"
        text += structure(atoms) + f'  <varray name="forces" >\n{rows(results["forces"])}  </varray>\n'
        text += f'  <varray name="stress" >\n{rows(stress)}  </varray>\n' + energy(results["free_energy"] + added)
        text += (
            "  <eigenvalues>\n   <array>\n    <set><r>  1.0 1.0 </r></set>\n   </array>\n  </eigenvalues>\n </calculation>\n"
        )
    return text + structure(run[-1], ' name="finalpos"') + "</modeling>\n"


def outcar(run, *, cycles=5, nelm=60, icharg=2, isif=3, learned=False) -> str:
    def table(atoms):
        cell = atoms.cell.array
        rows = zip(_rows(cell, "{:13.9f}"), _rows(np.linalg.inv(cell).T, "{:13.9f}"), strict=True)
        return "      direct lattice vectors                 reciprocal lattice vectors\n" + "".join(
            f"  {one}   {other}\n" for one, other in rows
        )

    def labels(atoms, mark=""):
        results = atoms.calc.results
        stress = -results["stress"][[0, 1, 2, 5, 3, 4]] / KBAR
        rows = "".join(f" {row}\n" for row in _rows(np.hstack([atoms.positions, results["forces"]]), "{:14.5f}"))
        dashes = " " + 83 * "-" + "\n"
        return (
            f"  {mark}FORCE on cell =-STRESS in cart. coord.  units (eV):\n  in kB  {_rows(stress, '{:12.5f}')[0]}\n"
            f"  volume of cell : {atoms.get_volume():12.2f}\n{table(atoms)}\n"
            f" POSITION                                       TOTAL-FORCE (eV/Angst){' (ML)' if mark else ''}\n"
            f"{dashes}{rows}{dashes}"
            "    total drift:                                0.000000      0.000000      0.000000\n\n"
            f"  {mark}FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  {51 * '-'}\n"
            f"  free  energy {mark}  TOTEN  = {results['free_energy']:18.8f} eV\n\n"
            f"  {mark}energy  without entropy= {results['free_energy']:18.8f}  "
            f"{mark}energy(sigma->0) = {results['free_energy'] + 0.001:16.8f}\n\n"
        )

    text = (
        " vasp.6.3.0 20Jan22 complex\n POTCAR:    PAW_PBE Si 05Jan2001\n   VRHFIN =Si: s2p2\n"
        "   TITEL  = PAW_PBE Si 05Jan2001\n   ions per type =               2\n"
        f"   NELM   =     {nelm};   NELMIN=  2; NELMDL= -5     # of ELM steps\n   ICHARG =     {icharg}    charge: 1-file\n"
        f"   ISIF   =      {isif}    stress and relaxation\n   NELECT =       8.0000    total number of electrons\n"
        f"{table(run[0])}\n"
    )
    for n, atoms in enumerate(run, 1):
        for cycle in range(1, cycles + 1):
            text += f"{39 * '-'} Iteration {n:6d}({cycle:4d})  {39 * '-'}\n"
            text += " number of electron       8.0000012 magnetization       0.0000000\n"
            text += f"  free energy    TOTEN  = {atoms.calc.results['free_energy'] + 0.1 * (cycles - cycle):18.8f} eV\n"
        text += "------------------------ aborting loop because EDIFF is reached ----------------------------------------\n"
        text += labels(atoms)
        if learned:
            text += labels(atoms, "ML ")
        text += "     LOOP+:  cpu time      1.4332: real time      1.5063\n\n"
    return text


def castep(run, *, dispersion=0.0, converged=True) -> str:
    def cell(atoms):
        rows = _rows(np.hstack([atoms.cell.array, np.linalg.inv(atoms.cell.array).T]), "{:12.7f}")
        return "        Real Lattice(A)              Reciprocal Lattice(1/A)\n" + "".join(f"{row}\n" for row in rows) + "\n"

    def contents(atoms):
        edge = "            " + 60 * "x" + "\n"
        rows = "".join(
            f"            x  Si           {n}   {row}   x\n"
            for n, row in enumerate(_rows(atoms.get_scaled_positions(), "{:13.8f}"), 1)
        )
        return (
            f"{edge}            x  Element    Atom        Fractional coordinates of atoms  x\n"
            "            x            Number           u          v          w      x\n"
            f"            x----------------------------------------------------------x\n{rows}{edge}\n"
        )

    text = (
        " | Welcome to Academic Release CASTEP version 23.1 |\n"
        " type of calculation                            : molecular dynamics\n"
        f" DFT+D: Semi-empirical dispersion correction    : {'on' if dispersion else 'off'}\n"
    )
    for n, atoms in enumerate(run):
        results = atoms.calc.results
        if n:
            text += f" Starting MD iteration          {n} ...\n\n"
        text += cell(atoms) + contents(atoms)
        text += "------------------------------------------------------------------------ <-- SCF\n"
        text += f"Initial {results['free_energy'] + 0.3:18.8E}                  1.0  <-- SCF\n"
        for cycle in (2, 1, 0):
            gain = f"{0.1 / len(atoms):18.8E}     2.0  <-- SCF\n"
            text += f"{3 - cycle:7d} {results['free_energy'] + 0.1 * cycle:18.8E} {gain}"
        if not converged:
            text += " *Warning* max. SCF cycles performed but system has not reached the groundstate.\n"
        text += f"\nFinal energy, E             = {results['free_energy'] + 0.002:18.8f}     eV\n"
        text += f"Final free energy (E-TS)    = {results['free_energy']:18.8f}     eV\n"
        text += "(energies not corrected for finite basis set)\n\n"
        if dispersion:
            text += (
                f"Dispersion corrected final free energy* (Ecor-TS)   = {results['free_energy'] + dispersion:18.8f}     eV\n"
            )
        text += " ***************** Forces *****************\n *                 *\n *  Cartesian components (eV/A)  *\n"
        text += " * ------------- *\n *      x     y     z     *\n *                       *\n"
        for k, row in enumerate(_rows(results["forces"], "{:21.5f}"), 1):
            text += f" * Si        {k} {row}         *\n"
        text += " *                       *\n ******************************************\n"
        stress = results["stress"][[[0, 5, 4], [5, 1, 3], [4, 3, 2]]] / GPa
        text += " ***************** Stress Tensor *****************\n *          Cartesian components (GPa)           *\n"
        for axis, row in zip("xyz", _rows(stress, "{:14.6f}"), strict=True):
            text += f" *  {axis} {row}  *\n"
        text += f" *  Pressure: {-np.trace(stress) / 3:11.6f}   *\n *************************************************\n"
        if n:
            text += f" ... finished MD iteration          {n}\n"
    return text + " Total time          =      1.20 s\n"


def aims(run, *, dynamics=False, converged=True) -> str:
    def atoms_of(atoms, vectors):
        text = "                         x [A]             y [A]             z [A]\n"
        if vectors:
            text += "".join(f"  lattice_vector {row}\n" for row in _rows(atoms.cell.array, "{:18.8f}")) + "\n"
        for row in _rows(atoms.positions, "{:18.8f}"):
            text += f"            atom {row}  Si\n" + ("     velocity         1.0   2.0   3.0\n" if dynamics else "")
        return text + 60 * "-" + "\n"

    text = "          Invoking FHI-aims ...\n          Version 210716\n  Input geometry:\n  | Unit cell:\n"
    text += "".join(f"  |{row}\n" for row in _rows(run[0].cell.array, "{:18.8f}"))
    text += "  | Atomic structure:\n  |       Atom                x [A]            y [A]            z [A]\n"
    text += "".join(f"  |{n:5d}: Species Si   {row}\n" for n, row in enumerate(_rows(run[0].positions, "{:18.8f}"), 1)) + "\n"
    for n, atoms in enumerate(run):
        results = atoms.calc.results
        text += f"          Begin self-consistency loop: {'Re-initialization' if n else 'Initialization'}.\n"
        for cycle in (2, 1, 0):
            value = results["free_energy"] + 0.1 * cycle
            text += f"          Begin self-consistency iteration # {3 - cycle:4d}\n"
            text += f"  | Electronic free energy        : {value / 27.2113845:18.8f} Ha {value:18.8f} eV\n"
        stress = results["stress"][[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
        text += (
            "  |              Analytical stress tensor - Symmetrized               |\n  | Cartesian components [eV/A**3] |\n"
        )
        text += "".join(f"  |  {axis} {row}           |\n" for axis, row in zip("xyz", _rows(stress, "{:17.8f}"), strict=True))
        text += f"  |  Pressure: {-np.trace(stress) / 3:15.8f}   [eV/A**3]    |\n"
        if converged:
            text += "  Self-consistency cycle converged.\n"
        text += "\n  Energy and forces in a compact form:\n"
        for name, more in (("Total energy uncorrected      ", 0.002), ("Total energy corrected        ", 0.001)):
            text += f"  | {name}: {results['free_energy'] + more:28.15E} eV\n"
        text += f"  | Electronic free energy        : {results['free_energy']:28.15E} eV\n"
        text += "  Total atomic forces (unitary forces cleaned) [eV/Ang]:\n"
        text += "".join(f"  |{k:5d} {row}\n" for k, row in enumerate(_rows(results["forces"], "{:30.15E}"), 1)) + "\n"
        last = n + 1 == len(run)
        if dynamics:
            text += f"  Complete information for previous time-step:\n  | Time step number          : {n:8d}\n"
            text += f"  | Electronic free energy    : {results['free_energy']:28.15E} eV\n"
            what = "Final atomic" if last else "Atomic"
            text += f"  {what} structure (and velocities) as used in the preceding time step:\n{atoms_of(atoms, False)}"
        elif not last:
            text += f"  Relaxation step number {n + 1:6d}: Predicting new coordinates.\n"
            text += f"  Updated atomic structure:\n{atoms_of(run[n + 1], True)}"
        else:
            text += f"  Final atomic structure:\n{atoms_of(atoms, True)}"
    return text + "          Have a nice day.\n"


@st.composite
def damaged(draw, text: str) -> str:
    """A text that is cut off, from which something is missing, in which something is there twice, or is garbled."""
    lines = text.splitlines(keepends=True)
    first, last = sorted(draw(st.tuples(*[st.integers(0, len(lines))] * 2)))
    how = draw(st.sampled_from(["cut", "missing", "twice", "garbled", "doubled"]))
    if how == "cut":
        return text[: draw(st.integers(0, len(text)))]
    if how == "missing":
        return "".join(lines[:first] + lines[last:])
    if how == "twice":
        return "".join(lines[:last] + lines[first:])
    if how == "doubled":
        return text + text
    garbage = draw(st.text("#*\x00é<>&", min_size=1, max_size=30))
    start = draw(st.integers(0, len(text)))
    return text[:start] + garbage + text[start + len(garbage) :]
