"""Called by pacemaker, in its process, after every iteration: keep the potential so far, and end the fit when asked to.

pacemaker's own `interim_potential_*.yaml` is rewritten in place, so a kill can leave half a file; this one is whole or absent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHECKPOINT = "checkpoint.yaml"
STOP = "stop"


def after_iteration(basis_config: Any, **_: Any) -> None:
    """Write the checkpoint beside input.yaml; raise `StopIteration`, which ends the fit cleanly, if the file `stop` is there."""
    part = Path(f".{CHECKPOINT}.part")
    basis_config.save(str(part))
    part.replace(CHECKPOINT)
    if Path(STOP).exists():
        raise StopIteration("stopped on request")
