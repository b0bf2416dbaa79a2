"""The section about crystals: what the potential says of those of the data, beside DFT where the data have it."""

from __future__ import annotations

from typing import Any

from mlip_pace.report.section import Section, Table

TITLES = {
    "crystal": "the crystal itself",
    "equation": "equation of state",
    "elastic": "elastic constants",
}


def crystals_section(metadata: dict[str, Any]) -> Section:
    """Lattices, equations of state, elastic constants; and what was left out."""
    physics = metadata.get("physics")
    if physics is None:
        return Section("crystals", "Crystals", [])
    crystals = physics["crystals"]
    text = [
        "The bulk structure of lowest energy of each composition in the data, relaxed by the potential with its cell. "
        "An energy is that relative to free atoms."
    ]
    if not crystals:
        text = ["No structure of the data was found to be a crystal."]
    tables = [_lattices(crystals), _equations(crystals), _elastic(crystals), _left_out(physics["left_out"])]
    return Section("crystals", "Crystals", text, tables=[table for table in tables if table.rows])


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
    rows = [
        [name, f"{found['volume']:.3f}", f"{found['modulus']:.1f}", f"{found['derivative']:.2f}"]
        for name, known in crystals.items()
        if (found := known.get("equation"))
    ]
    return Table("Equations of state", ["composition", "V0, Å³/atom", "B0, GPa", "B0'"], rows)


def _elastic(crystals: dict[str, Any]) -> Table:
    rows = []
    for name, known in crystals.items():
        if found := known.get("elastic"):
            constants = ", ".join(f"{which} {value:.1f}" for which, value in found["constants"].items())
            stable = "kept" if found["stable"] else f"broken: an eigenvalue is {found['lowest']:.1f} GPa"
            rows.append([name, constants, f"{found['bulk']:.1f}", f"{found['shear']:.1f}", stable])
    return Table("Elastic constants, GPa", ["composition", "C", "bulk modulus", "shear modulus", "Born's criteria"], rows)


def _left_out(left_out: list[dict[str, str]]) -> Table:
    rows = [[one["composition"], TITLES[one["property"]], one["reason"]] for one in left_out]
    return Table("Left out", ["composition", "what", "why"], rows, long=len(rows) > 20)
