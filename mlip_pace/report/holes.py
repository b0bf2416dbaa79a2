"""The section about structures unlike the data: which holes were looked for, found and closed."""

from __future__ import annotations

from typing import Any

from mlip_pace.report.section import Section, Table

TRIALS = {
    "random": "atoms anywhere in a cell, relaxed",
    "compressed": "structures of the data, compressed and shaken, relaxed",
    "volumes": "those of lowest energy at smaller volumes",
    "dynamics": "atoms in a larger cell at some thousand K",
}


def holes_section(metadata: dict[str, Any]) -> Section:
    """What the search for holes tried and found, round by round, and in which range nothing was found."""
    held = metadata.get("probe")
    if held is None:
        return Section("holes", "Does it hold?", ["Holes were not looked for (MLIP_PACE_PROBE_ROUNDS=0)."])
    if not held["rounds"]:
        return Section("holes", "Does it hold?", [f"Holes were not looked for: {held['ended']}."])
    tried = ", ".join(TRIALS[kind] for kind in TRIALS if any(one["trials"].get(kind) for one in held["rounds"]))
    text = [
        f"Structures unlike the data were tried: {tried}. A hole is an energy that cannot be: below the lowest energy of the "
        "data with this composition or, at smaller volumes, below half of what its equation of state says. It ended because "
        f"{held['ended']}."
    ]
    if held["closed"]:
        text.append(
            f"What was found went into the fit: {held['rows']} structures, each with a least energy. "
            f"They raised the loss of the training data by {held['loss_rise']:.2%}, which is "
            f"{held['loss_rise_of_held_out']:.2%} of the loss of held-out structures (errors rise by half of that)."
        )
    else:
        text.append("What is found is closed only in a fit by least squares; this one stays as it is.")
    text.append(_range(held))
    kinds = sorted(held["rounds"][0]["trials"])
    rows = [
        [
            str(number),
            *(f"{one['holes'].get(kind, 0)} of {one['trials'].get(kind, 0)}" for kind in kinds),
            "" if one["deepest"] is None else f"{one['deepest']:.2f}",
            f"{one['seconds']:.1f}",
        ]
        for number, one in enumerate(held["rounds"], 1)
    ]
    curves = [
        [name, f"{one['energy']:.4f}", f"{one['volume']:.3f}", f"{one['modulus']:.0f}"] for name, one in held["curves"].items()
    ]
    tables = [
        Table("Holes found", ["round", *kinds, "deepest, eV/atom", "seconds"], rows),
        Table("What a structure should have at least", ["composition", "energy, eV/atom", "volume, Å³/atom", "B, GPa"], curves),
    ]
    return Section("holes", "Does it hold?", text, tables=tables)


def _range(held: dict[str, Any]) -> str:
    """Where nothing was found, in words."""
    if not held.get("volumes"):
        return "There is no range of volumes in which nothing was found in the last round."
    low, high = held["volumes"]
    heated = f"{held['temperature']:.0f} K and " if held["temperature"] else ""
    return (
        f"In the last round nothing was found at {low:.2f} to {high:.2f} times the volume of lowest energy, up to "
        f"{heated}{held['pressure']:.0f} GPa."
    )
