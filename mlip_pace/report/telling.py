"""What the log says of what the stages return, in words."""

from __future__ import annotations

from collections.abc import Sequence

from mlip_pace.ace.uncertainty import Calibration
from mlip_pace.collect.dataset import Collected
from mlip_pace.physics.measure import Physics
from mlip_pace.reference import Subtracted
from mlip_pace.run.log import Journal
from mlip_pace.selection import Selected
from mlip_pace.train.fit import Trained
from mlip_pace.train.search import Searched, Tried


def say_warnings(journal: Journal, warnings: Sequence[str]) -> None:
    for warning in warnings:
        journal.warn(warning)


def say_collected(journal: Journal, collected: Collected, whole: str = "potential.json, dataset.left_out") -> None:
    """The data; of what was left out the first, and that all is in `whole`."""
    say_warnings(journal, collected.warnings)
    journal.say(
        f"{collected.read} structures read, {collected.train} to train on, {collected.test} to test, "
        f"{len(collected.left_out)} left out; {collected.atoms} atoms of {', '.join(collected.elements)}"
    )
    for keys, count in collected.keys.items():
        journal.say(f"labels of {count} structures: {keys}")
    for symbol, energy in collected.e0.items():
        journal.say(f"E0 of {symbol}: {energy:.6f} eV ({collected.e0_source[symbol]})")
    for item in collected.left_out[:20]:
        journal.say(f"left out: {item['source']}: {item['reason']}")
    if len(collected.left_out) > 20:
        journal.say(f"… and {len(collected.left_out) - 20} more; all are in {whole}")


def say_subtracted(journal: Journal, subtracted: Subtracted) -> None:
    say_warnings(journal, subtracted.warnings)
    ref = subtracted.reference
    journal.say(f"reference {ref.form}" + (f", {ref.inner:g} to {ref.outer:g} Å" if ref.kind != "none" else ""))


def say_tried(journal: Journal, one: Tried) -> None:
    step = f", {one.md_step_us_per_atom:g} µs an atom and step" if one.md_step_us_per_atom is not None else ""
    held_out = ""
    if one.errors:
        held_out = f", held out {1e3 * one.errors.energy_mae:.2f} meV/atom and {one.errors.forces_mae:.4f} eV/Å (MAE)"
    journal.say(f"{one.cutoff:g} Å, {one.functions} functions: log evidence {one.log_evidence:.0f}{held_out}{step}")


def say_searched(journal: Journal, searched: Searched) -> None:
    say_warnings(journal, searched.warnings)
    if searched.tried:
        journal.say(f"{searched.cutoff:g} Å, {searched.functions} functions, by evidence of {searched.structures} structures")


def say_selected(journal: Journal, selected: Selected) -> None:
    functions = ", ".join(f"{count} functions of {symbol}" for symbol, count in selected.functions.items())
    journal.say(f"{selected.chosen} of {selected.given} structures chosen ({selected.method}) for {functions}")


def least(calibration: Calibration) -> str:
    """What σ is at least, in words; what is nearly nothing is 0."""
    floors = calibration.energy.floor, calibration.forces.floor
    energy, forces = (float(f"{floor:.2g}") if floor > 1e-6 else 0 for floor in floors)
    return f"{1e3 * energy:g} meV/atom and {forces:g} eV/Å"


def say_trained(journal: Journal, trained: Trained) -> None:
    say_warnings(journal, trained.warnings)
    loss = f", loss {trained.loss:.4g}" if trained.loss is not None else ""
    journal.say(f"{trained.iterations} iterations{loss}: {trained.stopped}")
    if (known := trained.uncertainty) is not None:
        journal.say(
            f"68 % of the errors of {known.structures} held-out structures are within σ, which is at least {least(known)}"
        )
    if (held := trained.held) is None:
        return
    for number, one in enumerate(held.rounds, 1):
        holes = ", ".join(f"{one.holes.get(kind, 0)} of {count} {kind}" for kind, count in sorted(one.trials.items()))
        deepest = f", {one.deepest:.3g} eV/atom deep" if one.deepest is not None else ""
        journal.say(f"search for holes {number}: {holes}{deepest}; {one.seconds:.1f} s")
    done = (
        f"{held.rows} structures made up raised the loss by {round(held.loss_rise, 3) + 0.0:.1%}"
        if held.closed
        else "the fit stays as it is"
    )
    journal.say(f"{held.ended}; {done}")


def say_physics(journal: Journal, physics: Physics) -> None:
    for name, known in physics.crystals.items():
        lattice = known.crystal.relaxed
        said = f"{name}: {lattice.space_group}, {lattice.volume:.3f} Å^3/atom, {known.crystal.energy:.4f} eV/atom"
        if known.elastic:
            constants = ", ".join(f"{which} {value:.1f}" for which, value in known.elastic.constants.items())
            said += f"; {constants} GPa"
        journal.say(said)
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in physics.left_out:
        reasons.setdefault((one.property, one.reason), []).append(one.composition)
    for (what, reason), names in reasons.items():
        many = f" and {len(names) - 5} more" if len(names) > 5 else ""
        journal.say(f"left out: {what} of {', '.join(names[:5])}{many}: {reason}")
