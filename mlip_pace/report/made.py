"""The sections about the data and about how a potential was made."""

from __future__ import annotations

from typing import Any

from mlip_pace.publish.potential import Potential
from mlip_pace.report.figures import Layer, Panel, rounded
from mlip_pace.report.section import Section, Table


def audit_section(metadata: dict[str, Any]) -> Section:
    """What was read, what was left out and why, which keys held the labels, E0."""
    data, e0 = metadata["dataset"], metadata["e0"]
    left = [[item["source"], item["reason"]] for item in data["left_out"]]
    tables = [
        Table("Atomic energies, E0", ["element", "E0, eV", "from"],
              [[s, f"{e:.6f}", e0["source"][s]] for s, e in e0["energies"].items()]),
        Table("Labels", ["keys", "structures"], [[keys, str(count)] for keys, count in data["keys"].items()]),
        Table(f"Left out of the data ({len(left)})", ["structure", "reason"], left, long=len(left) > 10),
    ]  # fmt: skip
    text = (
        f"{data['read']} structures read, {data['used']} used: {data['train']} to train on, {data['test']} to test; "
        f"{data['atoms']} atoms."
    )
    return Section("audit", "The data", [text], tables=[table for table in tables if table.rows])


def cost(metadata: dict[str, Any]) -> str:
    """What a step of molecular dynamics costs, as a sentence; nothing where it was not measured."""
    if "cost" not in metadata:
        return ""
    step = metadata["cost"]["md_step_us_per_atom"]
    return f" A step of molecular dynamics takes {step:g} µs an atom on one core (ACE alone, {1e3 / step:.3g} katom-steps/s)."


def made_section(potential: Potential) -> Section:
    """Settings with where each came from, versions, hashes, times."""
    metadata = potential.metadata
    seconds = metadata["seconds"]
    settings = [[f"MLIP_PACE_{name}", str(s["value"]), s["from"]] for name, s in metadata["settings"].items()]
    given = [row for row in settings if row[2] != "default"]
    hashes = [[file["name"], file["sha256"]] for file in metadata["dataset"]["files"]] + [
        list(pair) for pair in metadata["files"].items()
    ]
    panel = Panel(
        "seconds",
        "Time of the stages",
        "s",
        "",
        [Layer("bars", "", "ace", rounded(seconds.values()))],
        categories=list(seconds),
    )
    return Section(
        "made",
        "How it was made",
        [
            f"On {metadata['hardware']['cpus']} CPUs ({metadata['hardware']['machine']}); "
            f"trained on {metadata['training']['device']}." + cost(metadata)
        ],
        [panel],
        [
            Table("Settings that were given", ["variable", "value", "from"], given),
            Table("All settings", ["variable", "value", "from"], settings, long=True),
            Table("Versions", ["program", "version"], [list(pair) for pair in metadata["versions"].items()], long=True),
            Table("SHA-256", ["file", "hash"], hashes, long=True),
        ],
    )
