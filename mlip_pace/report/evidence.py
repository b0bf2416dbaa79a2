"""The sections about structures that were held out: which basis was found, and whether more data would help."""

from __future__ import annotations

from typing import Any

from mlip_pace.report.figures import Layer, Panel, rounded
from mlip_pace.report.section import Section, Table

ERRORS = (("energy_mae", "energy", "MAE, meV/atom", 1e3), ("forces_mae", "forces", "MAE, eV/Å", 1.0))


def basis_section(metadata: dict[str, Any]) -> Section:
    """Every basis that was tried: its evidence, its errors, and what a step of molecular dynamics costs with it."""
    basis = metadata["basis"]
    tried = sorted(basis["tried"], key=lambda one: (one["cutoff"], one["functions"]))
    if not tried:
        return Section("basis", "Cutoff and functions", [])
    found = basis["cutoff"], basis["functions_at_most"]
    names = [f"{one['cutoff']:g} Å, {one['functions']} functions" for one in tried]
    rows = [
        [
            name + (" (taken)" if (one["cutoff"], one["functions"]) == found else ""),
            f"{one['log_evidence']:.0f}",
            f"{1e3 * one['errors']['energy_mae']:.2f}" if one["errors"] else "",
            f"{one['errors']['forces_mae']:.4f}" if one["errors"] else "",
            f"{one['md_step_us_per_atom']:g}" if one["md_step_us_per_atom"] is not None else "",
        ]
        for name, one in zip(names, tried, strict=True)
    ]
    measured = [n for n, one in enumerate(tried) if one["errors"] and one["md_step_us_per_atom"] is not None]
    panels = []
    for column, quantity, label, factor in ERRORS if measured else ():
        x = rounded(tried[n]["md_step_us_per_atom"] for n in measured)
        y = rounded(factor * tried[n]["errors"][column] for n in measured)
        points = [Layer("points", "tried", "test", x, y, [names[n] for n in measured])]
        points += [
            Layer("points", "taken", "warn", [x[m]], [y[m]], [names[n]])
            for m, n in enumerate(measured)
            if (tried[n]["cutoff"], tried[n]["functions"]) == found
        ]
        title = f"Held-out {quantity} error against cost"
        panels.append(Panel(f"basis-{quantity}", title, "µs an atom and step, one core", label, points, yscale="log"))
    text = (
        f"Linear fits to {basis['structures']} of the training structures; the basis with the highest evidence is taken. The "
        "errors are those of held-out structures before the radial functions are refined: what a cheaper potential would cost "
        "in accuracy. A value is fixed by MLIP_PACE_BASIS_CUTOFF and MLIP_PACE_BASIS_FUNCTIONS."
    )
    headers = ["basis", "log evidence", "energy MAE, meV/atom", "forces MAE, eV/Å", "µs an atom and step"]
    return Section("basis", "Cutoff and functions", [text], panels, [Table("", headers, rows)])


def validation_section(metadata: dict[str, Any]) -> Section:
    """Errors of folds that were held out, by the number of structures that were fitted to."""
    training = metadata["training"]
    validated = training.get("cross_validation")
    if validated is None:
        return Section("validation", "Would more data help?", [])
    numbers, errors = zip(*validated["learning_curve"], strict=True)
    panels = [
        Panel(
            f"validation-{quantity}",
            f"Held-out {quantity} error",
            "structures fitted to",
            label,
            [Layer("line", "held out", "test", rounded(numbers), rounded(factor * one[column] for one in errors))],
            xscale="log",
            yscale="log",
        )
        for column, quantity, label, factor in ERRORS
    ]
    e, half = validated["errors"], errors[-2] if len(errors) > 1 else None
    text = (
        f"Cross-validation with {validated['folds']} folds of whole groups, at the radial functions that were found: "
        f"{1e3 * e['energy_mae']:.2f} meV/atom and {e['forces_mae']:.4f} eV/Å (MAE) on structures that the coefficients were "
        "not fitted to. (The radial functions have seen them, so that errors on new structures are somewhat larger.)"
    )
    if half is not None:
        gain = 1 - e["forces_mae"] / half["forces_mae"]
        more = "more data of the same kind would help" if gain > 0.05 else "more data of the same kind would hardly help"
        text += f" With about {numbers[-2]:.0f} structures the force error is {half['forces_mae']:.4f} eV/Å: {more}."
    return Section("validation", "Would more data help?", [text], panels)
