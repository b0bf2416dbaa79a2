"""`mlip-pace collect DATA OUTPUT`: read and audit what `run` would, and write it in one file; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from mlip_pace.collect import atomic_energies, dataset, output
from mlip_pace.collect.audit import Audit
from mlip_pace.collect.files import find_files
from mlip_pace.collect.geometry import too_long
from mlip_pace.errors import DataError, NoInputError


@dataclass
class Summary:
    """What became of the files, as far as it is known: it is there whatever is raised."""

    files: int = 0
    read: int = 0  # structures, the unreadable ones included
    used: int = 0  # structures in OUTPUT
    left_out: list[dict[str, str]] = field(default_factory=list)  # source, reason
    keys: dict[str, int] = field(default_factory=dict)  # where labels were, and of how many structures
    e0: dict[str, float] = field(default_factory=dict)  # eV
    e0_source: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def convert(data: str, path: Path, rules: dataset.Rules, max_rejected: float, summary: Summary, workers: int = 1) -> None:
    """Write every structure of the DFT files `data` that would be fitted to `path`; slabs and wires as they are.

    Fills `summary`. Nothing is written if nothing can be used, or if more than the fraction `max_rejected` is broken
    (`DataError`). Raises `SettingsError`, `NoInputError`, `OutputError`, `UnsafeError`.
    """
    output.refuse_unknown_format(path)
    output.refuse_place(path, ())
    files = [file for file in find_files(data) if file.path.resolve() != path.resolve()]
    if not files:
        raise NoInputError(f"{data} holds nothing but OUTPUT itself", "give the files to read as DATA")
    summary.files = len(files)
    audit, found = Audit(left_out=summary.left_out), dataset.Found(path.parent)
    found.add(dataset.structures_of(files), replace(rules, as_they_are=True), audit, workers=workers)
    summary.read, summary.keys = audit.read, dict(audit.keys)
    summary.warnings += dataset.warnings(audit, rules.data)
    dataset.refuse_bad_data(audit, rules.data, max_rejected)
    frame, isolated = dataset.without_isolated(found.frame(), rules.cutoff, audit)
    structures, energies = frame[dataset.ATOMS].array, frame[dataset.ENERGY].tolist()
    summary.e0, summary.e0_source = dataset.energies_of_atoms(frame, isolated, rules.data)
    summary.warnings += atomic_energies.warnings(summary.e0, summary.e0_source, structures, energies)
    summary.warnings += atomic_energies.of_several_setups(structures, energies, frame[dataset.FORCES])
    summary.warnings += too_long(structures)
    frame[dataset.ENERGY_ATOMS] = [sum(summary.e0.get(symbol, 0.0) for symbol in atoms.symbols) for atoms in structures]
    frame = dataset.without_extremes(frame, rules.data, audit)
    dataset.leave_out_isolated(isolated, audit)
    if frame.empty:
        raise DataError("no structure can be used" + audit.reasons(), "mend the data, for the reasons above")
    if len(isolated):
        free = [symbol for symbol, source in summary.e0_source.items() if source == atomic_energies.ISOLATED]
        values = ",".join(f"{symbol}:{summary.e0[symbol]!r}" for symbol in free)
        summary.warnings.append(f"isolated atoms are no structures to fit: a run on OUTPUT needs MLIP_PACE_DATA_E0={values}")
    output.write(path, frame)
    summary.used = len(frame)
