"""report.html: what a person looks at to see whether a potential is good, where it is bad and what to do next.

Made from the sidecar and the files of the stages alone, so that every figure can be computed again. Every panel's numbers are
in the page, as JSON in `<script type="application/json" id="data-<panel>">`. Energies are relative to the sum of E0 (E - Σ E0),
in eV/atom; forces in eV/Å, by component where it says so; stress in GPa (1 eV/Å^3 = 160.2177 GPa), positive under tension.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from markupsafe import Markup

from mlip_pace.ace.calculator import PotentialCalculator
from mlip_pace.collect import columns
from mlip_pace.publish.potential import Potential
from mlip_pace.report import figures
from mlip_pace.report.accuracy import errors_section, parity_section, where_section
from mlip_pace.report.crystals import crystals_section
from mlip_pace.report.evidence import basis_section, validation_section
from mlip_pace.report.holes import holes_section
from mlip_pace.report.learning import learning_section, selection_section
from mlip_pace.report.made import audit_section, made_section
from mlip_pace.report.physics import dimer_section, volume_section
from mlip_pace.report.uncertain import uncertainty_section
from mlip_pace.report.verdict import WORDS, advice, verdict, verdict_word
from mlip_pace.report.worst import worst_section
from mlip_pace.run import pool
from mlip_pace.run.templates import templates


def draw(potential: Potential, chosen: Path, fitted: Path, scores: Path, workers: int = 1) -> str:
    """The whole page, from a sidecar and the folders of the stages select, train and evaluate."""
    frame = columns.load(scores / "predictions")
    metadata = potential.metadata
    calculator = PotentialCalculator(fitted / "potential.yace", potential.reference)
    sections = [
        errors_section(metadata, frame),
        parity_section(frame),
        where_section(frame),
        learning_section(metadata, fitted),
        validation_section(metadata),
        basis_section(metadata),
        crystals_section(metadata),
        dimer_section(potential, fitted / "potential.yace", calculator.cutoff),
        volume_section(potential, frame, calculator),
        holes_section(metadata),
        uncertainty_section(potential, frame),
        selection_section(metadata, frame, chosen),
        worst_section(frame),
        audit_section(metadata),
        made_section(potential),
    ]
    panels = [panel for section in sections for panel in section.panels]
    drawn = dict(zip((panel.name for panel in panels), pool.parallel_map(figures.svg, panels, workers), strict=True))
    return (
        templates("report", autoescape=True)
        .get_template("report.html.j2")
        .render(
            potential=potential,
            word=verdict_word(metadata, frame),
            verdict=verdict(metadata, frame),
            advice=advice(metadata),
            sections=[section for section in sections if section.panels or section.tables or section.text],
            svg=lambda panel: Markup(drawn[panel.name]),
            numbers=dataclasses.asdict,
            words=WORDS,
        )
    )
