"""`mlip-pace collect DATA OUTPUT`: read and audit what `run` would, and write it in one file; nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from mlip_pace.collect import atomic_energies, dataset, output
from mlip_pace.collect.audit import Audit
from mlip_pace.collect.files import find_files
from mlip_pace.errors import DataError, NoInputError, OutputError

NOTHING: dict[str, Any] = {
    "files": 0, "read": 0, "used": 0, "left_out": [], "keys": {}, "e0": {}, "e0_source": {}, "warnings": [],
}  # fmt: skip


def convert(data: str, path: Path, rules: dataset.Rules, max_rejected: float, summary: dict[str, Any]) -> None:
    """Write every structure of the DFT files `data` that would be fitted to `path`; slabs and wires as they are.

    `summary` gets what is in `NOTHING`, as far as it is known, whatever is raised: `files`, structures `read` and `used`,
    `left_out` (source, reason), `keys`, `e0` (eV) with `e0_source`, `warnings`. Nothing is written if nothing can be used, or
    if more than the fraction `max_rejected` is broken (`DataError`). Raises `SettingsError`, `NoInputError`, `OutputError`,
    `UnsafeError`.
    """
    output.refuse_unknown_format(path)
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} is no folder", "make it, or give another OUTPUT")
    files = [file for file in find_files(data) if file.path.resolve() != path.resolve()]
    if not files:
        raise NoInputError(f"{data} holds nothing but OUTPUT itself", "give the files to read as DATA")
    summary["files"] = len(files)
    audit = Audit(left_out=summary["left_out"])
    rows = dataset.rows_of(dataset.structures_of(files), rules, audit)
    summary.update(read=audit.read, keys=dict(audit.keys), warnings=dataset.warnings(audit, rules.data))
    dataset.refuse_bad_data(audit, rules.data, max_rejected)
    rows, isolated = dataset.without_isolated(rows, rules.cutoff, audit)
    e0, e0_source = dataset.energies_of_atoms(rows, isolated, rules.data)
    summary.update(e0=e0, e0_source=e0_source)
    summary["warnings"] += atomic_energies.warnings(e0, e0_source)
    if rows:
        frame = pd.DataFrame(rows)
        frame[dataset.ENERGY_ATOMS] = [sum(e0.get(symbol, 0.0) for symbol in atoms.symbols) for atoms in frame[dataset.ATOMS]]
        rows = [rows[n] for n in dataset.without_extremes(frame, rules.data, audit).index]
    for row in isolated:
        audit.leave_out(row[dataset.SOURCE], dataset.isolated_reason(row))
    if not rows:
        raise DataError("no structure can be used" + dataset.first_reasons(audit), "mend the data, for the reasons above")
    if isolated:
        values = ",".join(
            f"{symbol}:{e0[symbol]!r}" for symbol, source in e0_source.items() if source == atomic_energies.ISOLATED
        )
        summary["warnings"].append(f"isolated atoms are no structures to fit: a run on OUTPUT needs MLIP_PACE_DATA_E0={values}")
    output.write(path, rows, e0)
    summary["used"] = len(rows)
