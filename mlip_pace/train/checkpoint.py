"""Called by pacemaker, in its process, after every iteration: keep the potential so far, and end the fit when asked to.

pacemaker's own `interim_potential_*.yaml` is rewritten in place, so a kill can leave half a file. Here the last two iterations
are kept; each file appears whole, and its last line, a comment to YAML, has the number of the iteration and a checksum.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKPOINT, PREVIOUS = "checkpoint.yaml", "checkpoint.previous.yaml"
_LAST_LINE = re.compile(rb"# iteration (\d+), sha256 ([0-9a-f]{64})\n\Z")

_iterations = 0
_end_asked = False


@dataclass(frozen=True)
class Checkpoint:
    """A B-basis file and the iterations of its attempt that led to it."""

    path: Path
    iterations: int


def after_iteration(basis_config: Any, **_: Any) -> None:
    """Write the checkpoint beside input.yaml; after a TERM, end the process with it."""
    global _iterations
    _iterations += 1  # pacemaker's own count starts anew with every step of a ladder
    signal.signal(signal.SIGTERM, _ask_to_end)
    part = Path(f".{CHECKPOINT}.part")
    basis_config.save(str(part))
    digest = hashlib.sha256(part.read_bytes()).hexdigest()
    with part.open("a") as file:
        file.write(f"# iteration {_iterations}, sha256 {digest}\n")
        file.flush()
        os.fsync(file.fileno())
    if Path(CHECKPOINT).exists():
        Path(CHECKPOINT).replace(PREVIOUS)
    part.replace(CHECKPOINT)
    if _end_asked:
        os._exit(128 + signal.SIGTERM)


def _ask_to_end(*_: Any) -> None:
    global _end_asked
    _end_asked = True


def latest(attempt: Path) -> Checkpoint | None:
    """The newest checkpoint in the folder of an attempt whose content is what was written."""
    for name in (CHECKPOINT, PREVIOUS):
        path = attempt / name
        content = path.read_bytes() if path.exists() else b""
        found = _LAST_LINE.search(content)
        if found and hashlib.sha256(content[: found.start()]).hexdigest() == found[2].decode():
            return Checkpoint(path, int(found[1]))
    return None
