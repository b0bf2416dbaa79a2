"""Run a stage once, in its own folder; skip it when its inputs are the same. Nothing else remembers anything.

A stage's fingerprint is made of its name, the version of this package, its options, the SHA-256 of its input files and the
fingerprints of the stages it builds on. Work happens in `<stage>.part`, which is renamed when whole; a `.part` of the same
fingerprint is kept, so that a stage can continue its own work. A result with `complete: False` leaves the stage undone: what
there is so far is in its `.part`, and the next run goes on from there.
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

from mlip_pace import __version__
from mlip_pace.run.stopping import raise_if_stopped

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """A stage that is planned or done: its folder, its fingerprint and, once done, its summary and seconds."""

    name: str
    folder: Path
    fingerprint: str

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


def plan(work: Path, name: str, options: dict[str, Any], *after: Stage, files: dict[str, str] | None = None) -> Stage:
    """The stage `name` with these options (JSON-able), after those stages, on files given as `{name: SHA-256}`."""
    content = {
        "stage": name,
        "version": __version__,
        "options": options,
        "files": files or {},
        "after": [stage.fingerprint for stage in after],
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return Stage(name, work / name, hashlib.sha256(text.encode()).hexdigest())


def once(stage: Stage, kind: type[T], run: Callable[[Path], T]) -> T:
    """What `run(folder)` returns, a dataclass of this kind: called now, or when the stage was done."""
    if stage.done:
        return TypeAdapter(kind).validate_python(stage.summary)
    part = stage.part
    if _fingerprint_in(part / "started.json") != stage.fingerprint:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write_whole(part / "started.json", json.dumps({"fingerprint": stage.fingerprint}))
    begin = time.monotonic()
    result = run(part)
    raise_if_stopped()  # a library may have taken the signal for a failure of its own, and the result be wrong
    seconds = round(time.monotonic() - begin, 3)
    summary = TypeAdapter(kind).dump_python(result, mode="json")
    record = json.dumps({"fingerprint": stage.fingerprint, "seconds": seconds, "summary": summary}, indent=1)
    if summary.get("complete") is False:
        write_whole(part / "so-far.json", record)
        return result
    write_whole(part / "done.json", record)
    shutil.rmtree(stage.folder, ignore_errors=True)
    part.rename(stage.folder)
    return result


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
