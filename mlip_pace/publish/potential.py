"""The published potential: files, sidecar, ASE calculator.

Files appear whole: each is written under another name and renamed, `potential.json` last; it holds the SHA-256 of the
others, so whoever sees it can trust what it names.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from mlip_pace.ace import activeset
from mlip_pace.ace import uncertainty as spread
from mlip_pace.ace.calculator import PotentialCalculator
from mlip_pace.ace.uncertainty import Calibration, Uncertainty
from mlip_pace.errors import DataError, OutputError, UnsafeError
from mlip_pace.publish.committee import PATTERN
from mlip_pace.reference import Reference, lammps_commands
from mlip_pace.run.steps import sha256, write_whole
from mlip_pace.run.templates import templates

SIDECAR = "potential.json"
REPORT = "report.html"
FILES = ("potential.yace", "potential.yaml", activeset.FILE, spread.FILE, "potential.lammps", REPORT)
LICENSES = {
    "mlip-pace": "MIT",
    "python-ace": "Academic Software License (non-commercial, reciprocal)",
    "tensorpotential": "Academic Software License (non-commercial, reciprocal)",
}


class Potential(BaseModel):
    """A trained potential: where its file is, its elements (sorted) and how it was made (docs/contract.md, section 4)."""

    model_config = ConfigDict(frozen=True)
    path: Path
    format: Literal["ace", "mace", "gap"]
    elements: list[str]
    creation_date: datetime
    metadata: dict[str, Any]

    @classmethod
    def load(cls, sidecar: str | Path) -> Potential:
        """Read a `potential.json`; `path` is then where the potential is now."""
        sidecar = Path(sidecar)
        potential = cls.model_validate_json(sidecar.read_bytes())
        return potential.model_copy(update={"path": sidecar.parent / potential.path})

    @property
    def reference(self) -> Reference:
        return Reference.from_dict(self.metadata["reference"])

    @property
    def calibration(self) -> Calibration | None:
        """Of its uncertainty; None if the fit gave none."""
        said = self.metadata.get("uncertainty", {})
        return TypeAdapter(Calibration).validate_python(said["calibration"]) if "calibration" in said else None

    def uncertainty(self) -> Uncertainty:
        """What gives σ of any structure. Raises `DataError` if the fit gave none."""
        if self.calibration is None:
            reason = self.metadata.get("uncertainty", {}).get("absent", "it was made by a version that measured none")
            raise DataError(
                f"{self.path} has no uncertainty: {reason}",
                "the default fit gives it (MLIP_PACE_TRAINING_OPTIMIZER=auto, no file to start from), with enough structures",
            )
        return Uncertainty.of(self.path.parent, self.calibration)


def load_calculator(sidecar: str | Path, uncertainty: bool = False) -> PotentialCalculator:
    """The ASE calculator of a published potential: ACE + reference + E0, energies on the scale of the DFT that it learned.

    Parameters
    ----------
    sidecar
        The `potential.json` of an output path; the `.yace` that it names lies beside it.
    uncertainty
        Whether `results` are to have `energy_uncertainty` (eV) and `forces_uncertainty` (n, 3, eV/Å): 68 % of the errors
        against DFT are smaller. Takes several times as long as energy and forces.

    Returns
    -------
    PotentialCalculator
        Energy in eV, forces in eV/Å, stress in eV/Å^3 (tension positive), of structures with any cell or none.

    Raises
    ------
    errors.DataError
        If uncertainties are asked for, and the fit gave none.
    FileNotFoundError
        If there is no such file.
    pydantic.ValidationError
        If it is no sidecar.
    """
    potential = Potential.load(sidecar)
    return PotentialCalculator(potential.path, potential.reference, potential.uncertainty() if uncertainty else None)


def intact(sidecar: Path) -> Potential | None:
    """The potential of a sidecar if every file that it names is there with the right content, else None."""
    try:
        potential = Potential.load(sidecar)
        whole = all(sha256(sidecar.parent / name) == digest for name, digest in potential.metadata["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return potential if whole else None


def committee_in(folder: Path) -> list[Path]:
    """The files of the members of a committee."""
    return sorted(folder.glob(PATTERN), key=lambda path: (len(path.name), path.name))


def refuse_links(output: Path) -> None:
    """Raise `UnsafeError` if something that we would write is a link that leads out of the output path."""
    inside = output.resolve()
    for name in (
        *(files := [*FILES, SIDECAR, *(path.name for path in committee_in(output))]),
        *(f".{n}.part" for n in files),
        "log.jsonl",
        "status.json",
        ".status.json.part",
        ".lock",
        "work",
    ):
        path = output / name
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise UnsafeError(f"{path} is a link to {path.resolve()}, outside the output path", "remove the link")


def publish(
    output: Path, folders: tuple[Path, Path], reference: Reference, elements: list[str], metadata: dict[str, Any],
    draw: Callable[[Potential], str | None],
) -> Potential:  # fmt: skip
    """Publish the files of the `folders` of training and evaluation, the report and the sidecar; the result of other inputs is
    kept aside in `previous-N`. `draw` gives the report of the sidecar so far, or nothing; it may add to `metadata["warnings"]`.
    """
    begin, (fitted, evaluated) = time.monotonic(), folders
    package = {"zbl": "", "lj": "EXTRA-PAIR", "none": ""}[reference.kind]
    commands = lammps_commands(reference, elements, "${pace_dir}/potential.yace")
    text = (
        templates("publish").get_template("potential.lammps.j2").render(elements=elements, commands=commands, package=package)
    )
    parts: dict[str, Path] = {}
    for name in FILES:
        part = output / f".{name}.part"
        if name == "potential.lammps":
            write_whole(part, text)
        elif (fitted / name).exists():
            shutil.copyfile(fitted / name, part)
        else:
            continue
        parts[name] = part
    for path in committee_in(evaluated):
        parts[path.name] = Path(shutil.copyfile(path, output / f".{path.name}.part"))
    potential = Potential(
        path=Path("potential.yace"),
        format="ace",
        elements=elements,
        creation_date=datetime.now(UTC),
        metadata={**metadata, "files": {name: sha256(part) for name, part in parts.items()}, "licenses": LICENSES},
    )
    if (page := draw(potential)) is not None:
        parts[REPORT] = output / f".{REPORT}.part"
        write_whole(parts[REPORT], page)
        potential.metadata["files"][REPORT] = sha256(parts[REPORT])
    potential.metadata["seconds"]["publish"] = round(time.monotonic() - begin, 3)
    parts[SIDECAR] = output / f".{SIDECAR}.part"
    write_whole(parts[SIDECAR], potential.model_dump_json(indent=1))  # all are there before anything is replaced
    old = intact(output / SIDECAR)
    if old is not None and old.metadata["fingerprint"] != metadata["fingerprint"]:
        _set_aside(output)
    (output / SIDECAR).unlink(missing_ok=True)  # from here on it would not be true
    for name in {*FILES, *(path.name for path in committee_in(output))} - {*parts}:
        (output / name).unlink(missing_ok=True)  # of an earlier attempt at the same
    for name, part in parts.items():
        part.replace(output / name)
    return potential.model_copy(update={"path": output / potential.path})


def _set_aside(output: Path) -> None:
    """Move a result, its sidecar first, into the next free `previous-N`."""
    committee = [path.name for path in committee_in(output)]
    old = [name for name in (SIDECAR, *FILES, *committee) if (output / name).exists()]
    number = next(n for n in range(1, 10**6) if not (output / f"previous-{n}").exists())
    target = output / f"previous-{number}"
    target.mkdir()
    for name in old:
        (output / name).rename(target / name)


def prepare(output: Path) -> None:
    """Create the output path and see that we can write there. Raises `OutputError`, `UnsafeError`."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        refuse_links(output)
        probe = output / ".probe.part"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise _not_writable(output, str(error.strerror)) from None


def refuse_unwritable(output: Path) -> None:
    """Raise what `prepare` would, without writing anything."""
    refuse_links(output)
    there = next(p for p in (output, *output.parents) if p.exists())
    if not there.is_dir():
        raise _not_writable(output, f"{there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _not_writable(output, "no permission")


def _not_writable(output: Path, reason: str) -> OutputError:
    there = next(p for p in (output, *output.parents) if p.exists())
    about = there.stat()
    return OutputError(
        f"{output} cannot be written by uid {os.getuid()}, gid {os.getgid()}: {reason}; "
        f"{there} belongs to uid {about.st_uid}, gid {about.st_gid}, mode {about.st_mode & 0o7777:o}",
        f"run as that user (docker run --user {about.st_uid}:{about.st_gid}), or chown the folder to {os.getuid()}, "
        "or set MLIP_PACE_OUTPUT_PATH",
    )
