"""Run a stage once, in its own folder; skip it when its inputs are the same. Nothing else remembers anything.

A stage's fingerprint is made of its name, its version (raised when its results change, whatever the release), its options, the
SHA-256 of its input files and the fingerprints of the stages it builds on. Work happens in `<stage>.part`, which is renamed
when whole; a `.part` of the same fingerprint is kept, so that a stage can continue its own work. A result with
`complete: False` leaves the stage undone: what there is so far is in its `.part`, and the next run goes on from there. So it
does from the result of a stage that differs only in how far it was to go.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from mlip_pace.run.stopping import raise_if_stopped

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """A stage that is planned or done: its folder, its fingerprint and, once done, its summary and seconds."""

    name: str
    folder: Path
    fingerprint: str
    lineage: str  # the fingerprint without how far it is to go
    reach: int  # how far: more of it goes on from where less has ended

    @property
    def done(self) -> bool:
        return _fingerprint_in(self.folder / "done.json") == self.fingerprint

    @property
    def part(self) -> Path:
        """Where it works until it is done."""
        return self.folder.with_name(self.folder.name + ".part")

    @property
    def result(self) -> Path:
        """Where its files are: its folder, or the part of it that there is so far."""
        return self.folder if self.done else self.part

    @property
    def summary(self) -> dict[str, Any]:
        """What it returned, as JSON has it."""
        return dict(self._record["summary"])

    @property
    def seconds(self) -> float:
        return float(self._record["seconds"])

    @property
    def _record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.result / ("done.json" if self.done else "so-far.json")).read_text())
        return record


def plan(
    work: Path, name: str, version: int, options: dict[str, Any], *after: Stage, files: dict[str, str] | None = None,
    reach: int | None = None,
) -> Stage:  # fmt: skip
    """The stage `name` with these options (JSON-able), after those stages, on files given as `{name: SHA-256}`.

    `reach` is how far it is to go, if what it has done is of use when it is to go further.
    """
    content = {"stage": name, "version": version, "options": options, "files": files or {}}
    fingerprint = _digest({**content, "reach": reach, "after": [stage.fingerprint for stage in after]})
    lineage = _digest({**content, "after": [stage.lineage for stage in after]})
    return Stage(name, work / name, fingerprint, lineage, reach or max((stage.reach for stage in after), default=0))


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def once(stage: Stage, kind: type[T], run: Callable[[Path], T]) -> T:
    """What `run(folder)` returns, a dataclass of this kind: called now, or when the stage was done."""
    if stage.done:
        return TypeAdapter(kind).validate_python(stage.summary)
    part = stage.part
    if _fingerprint_in(part / "started.json") != stage.fingerprint:
        if not _goes_on(stage, part / "started.json"):
            shutil.rmtree(part, ignore_errors=True)
            if _goes_on(stage, stage.folder / "done.json"):
                shutil.copytree(stage.folder, part)
                (part / "done.json").unlink()
            part.mkdir(parents=True, exist_ok=True)
        write_whole(part / "started.json", json.dumps(identity(stage)))
    begin = time.monotonic()
    result = run(part)
    raise_if_stopped()  # a library may have taken the signal for a failure of its own, and the result be wrong
    seconds = round(time.monotonic() - begin, 3)
    summary = TypeAdapter(kind).dump_python(result, mode="json")
    record = json.dumps({**identity(stage), "seconds": seconds, "summary": summary}, indent=1)
    if summary.get("complete") is False:
        write_whole(part / "so-far.json", record)
        return result
    write_whole(part / "done.json", record)
    shutil.rmtree(stage.folder, ignore_errors=True)
    part.rename(stage.folder)
    return result


def identity(stage: Stage) -> dict[str, Any]:
    """What tells a result of this stage from others."""
    return {"fingerprint": stage.fingerprint, "lineage": stage.lineage, "reach": stage.reach}


def leads_to(stage: Stage, earlier: dict[str, Any]) -> bool:
    """Whether what has this `identity` is a part of the way to the stage."""
    return earlier.get("lineage") == stage.lineage and earlier.get("reach", 0) <= stage.reach


def _goes_on(stage: Stage, path: Path) -> bool:
    try:
        return leads_to(stage, json.loads(path.read_text()))
    except (OSError, ValueError):
        return False


def _fingerprint_in(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text())["fingerprint"])
    except (OSError, ValueError, KeyError):
        return None


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is seen whole or not at all, also after a power cut."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
