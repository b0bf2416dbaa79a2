"""The section about crystals: what the potential says of those of the data, beside DFT where the data have it."""

from __future__ import annotations

from typing import Any

from mlip_pace.report.figures import Layer, Panel
from mlip_pace.report.section import Section, Table

ACE = "ACE + reference"
TITLES = {
    "crystal": "the crystal itself",
    "data": "what the data say of it",
    "rest": "all but its lattice",
    "equation": "equation of state",
    "elastic": "elastic constants",
    "phonons": "phonons",
    "vacancies": "vacancies",
    "surfaces": "surfaces",
    "dynamics": "molecular dynamics",
}


def crystals_section(metadata: dict[str, Any]) -> Section:
    """Lattices, equations of state, elastic constants; and what was left out."""
    physics = metadata.get("physics")
    if physics is None:
        return Section("crystals", "Crystals", [])
    crystals = physics["crystals"]
    text = [
        "The bulk structure of lowest energy of each composition in the data, relaxed by the potential with its cell. "
        "Energies are relative to the sum of E0. What DFT says is what was recognised in the data: series of volumes, "
        "strained cells, vacancies and slabs whose atoms are at rest."
    ]
    if not crystals:
        text = ["No structure of the data was found to be a crystal."]
    if physics["others"]:
        text.append("Without a crystal molecular dynamics begins from the structure of lowest energy, as the data have it.")
    makers = (_lattices, _equations, _elastic, _phonons, _vacancies, _surfaces)
    shortest = min(metadata["basis"]["shortest"].values(), default=None)
    tables = [*(make(crystals) for make in makers), _dynamics(physics, shortest), _left_out(physics["left_out"])]
    panels = [
        _bands(name, found["bands"]) for name, known in crystals.items() if (found := known.get("phonons")) and "bands" in found
    ]
    return Section("crystals", "Crystals", text, panels, [table for table in tables if table.rows])


def _lattices(crystals: dict[str, Any]) -> Table:
    headers = ["composition", "", "space group", "a, Å", "b, Å", "c, Å", "α, β, γ", "volume, Å³/atom", "energy, eV/atom"]
    rows = []
    for name, known in crystals.items():
        crystal = known["crystal"]
        for label, lattice, energy in (("data", "in_data", "energy_dft"), ("relaxed", "relaxed", "energy")):
            this = crystal[lattice]
            lengths = [f"{length:.4f}" for length in this["lengths"]]
            angles = ", ".join(f"{angle:.1f}" for angle in this["angles"])
            rows.append([name, label, this["space_group"], *lengths, angles, f"{this['volume']:.3f}", f"{crystal[energy]:.4f}"])
    return Table("Lattices", headers, rows)


def _equations(crystals: dict[str, Any]) -> Table:
    rows = []
    for name, known in crystals.items():
        for label, found in ((ACE, known.get("equation")), ("DFT, a series of volumes", _data(known).get("equation"))):
            if found:
                rows.append([name, label, f"{found['volume']:.3f}", f"{found['modulus']:.1f}", f"{found['derivative']:.2f}"])
    return Table("Equations of state", ["composition", "", "V0, Å³/atom", "B0, GPa", "B0'"], rows)


def _elastic(crystals: dict[str, Any]) -> Table:
    rows = []
    for name, known in crystals.items():
        if found := known.get("elastic"):
            stable = "kept" if found["stable"] else f"broken: an eigenvalue is {found['lowest']:.1f} GPa"
            rows.append([name, ACE, _constants(found["constants"]), f"{found['bulk']:.1f}", f"{found['shear']:.1f}", stable])
        if constants := _data(known).get("elastic"):
            rows.append([name, f"DFT, {_data(known)['strained']} strained cells", _constants(constants), "", "", ""])
    headers = ["composition", "", "C", "bulk modulus", "shear modulus", "Born's criteria"]
    return Table("Elastic constants, GPa", headers, rows)


def _constants(constants: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in constants.items())


def _data(known: dict[str, Any]) -> dict[str, Any]:
    """What the data say of the crystal."""
    found: dict[str, Any] = known.get("data", {})
    return found


def _phonons(crystals: dict[str, Any]) -> Table:
    rows = []
    for name, known in crystals.items():
        if found := known.get("phonons"):
            imaginary = ", ".join(_mode(mode) for mode in found["imaginary"]) or "none"
            optical = ", ".join(f"{frequency:.2f}" for frequency in dict.fromkeys(round(f, 2) for f in found["gamma"][-6:]))
            rows.append([name, f"{found['highest']:.2f}", optical, imaginary, f"{found['share']:.1%}", str(found["atoms"])])
    headers = ["composition", "highest", "optical at Γ (the highest)", "imaginary", "of all modes", "atoms of the supercell"]
    return Table("Phonons, THz", headers, rows)


def _mode(mode: dict[str, Any]) -> str:
    q = "Γ" if mode["name"] == "G" else mode["name"] or "q"
    return f"{q} ({', '.join(f'{x:g}' for x in mode['q'])}): {abs(mode['frequency']):.2f}i"


def _bands(name: str, bands: dict[str, Any]) -> Panel:
    """Frequencies along the path, with a dotted line at each special point."""
    layers = [Layer("line", "", "ace", bands["distance"], branch) for branch in bands["frequencies"]]
    layers += [Layer("mark", "", "faint", [at]) for at in dict.fromkeys(at for at, _ in bands["points"])]
    path = " ".join(label.replace("G", "Γ") for _, label in bands["points"])
    note = f"Dotted lines: {path}. A negative frequency is an imaginary one."
    xlim = (0.0, bands["distance"][-1])
    return Panel(f"phonons-{name}", f"{name}: phonons", "along the path, 1/Å", "frequency, THz", layers, note, xlim=xlim)


def _vacancies(crystals: dict[str, Any]) -> Table:
    rows = []
    for name, known in crystals.items():
        for one in known.get("vacancies", []):
            at = f"site symmetry {one['site']}, {one['atoms']} sites"
            rows.append([name, at, f"{one['energy']:.3f}", f"{one['unrelaxed']:.3f}", ""])
        for one in _data(known).get("vacancies", []):
            rows.append([name, f"{one['source']}, {one['atoms']} sites", f"{one['potential']:.3f}", "", f"{one['dft']:.3f}"])
    return Table("Vacancies, eV", ["composition", "", ACE, "before it relaxes", "DFT of the same cell"], rows)


def _surfaces(crystals: dict[str, Any]) -> Table:
    rows = []
    for name, known in crystals.items():
        for one in known.get("surfaces", []):
            rows.append([name, _facet(one), f"{one['atoms']} atoms", f"{one['energy']:.3f}", f"{one['unrelaxed']:.3f}", ""])
        for one in _data(known).get("slabs", []):
            rows.append([name, _facet(one), one["source"], f"{one['potential']:.3f}", "", f"{one['dft']:.3f}"])
    return Table("Surfaces, J/m²", ["composition", "facet", "slab", ACE, "before it relaxes", "DFT of the same slab"], rows)


def _facet(one: dict[str, Any]) -> str:
    return f"({' '.join(map(str, one['indices']))})"


def _dynamics(physics: dict[str, Any], shortest: float | None) -> Table:
    in_data = "" if shortest is None else f" ({shortest:.2f} in the data)"
    runs = {name: known.get("dynamics") for name, known in physics["crystals"].items()}
    runs |= {f"{name}, {moved['source']}": moved["dynamics"] for name, moved in physics["others"].items()}
    rows = []
    for name, found in runs.items():
        if found:
            nvt, nve = (f"{found[run]:.2f} ps at {found[f'{run}_temperature']:.0f} K" for run in ("nvt", "nve"))
            close, moved = f"{found['closest']:.2f}{in_data}", f"{found['displacement']:.2f}"
            rows.append([name, str(found["atoms"]), nvt, close, moved, nve, f"{found['drift']:.1e}", f"{found['noise']:.1e}"])
    headers = [
        "composition",
        "atoms",
        "NVT",
        "closest atoms, Å",
        "displacement, Å",
        "NVE",
        "drift, eV/atom/ps",
        "noise, eV/atom",
    ]
    return Table("Molecular dynamics: no two atoms come too close", headers, rows)


def _left_out(left_out: list[dict[str, str]]) -> Table:
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in left_out:
        reasons.setdefault((one["property"], one["reason"]), []).append(one["composition"])
    rows = [[TITLES[what], reason, ", ".join(names)] for (what, reason), names in reasons.items()]
    return Table("Left out", ["what", "why", "of"], rows)
