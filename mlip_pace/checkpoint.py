"""Called by pacemaker, in its process, after every iteration: keep the potential so far.

pacemaker's own `interim_potential_*.yaml` is rewritten in place, so a kill can leave half a file; this one is whole or absent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHECKPOINT = "checkpoint.yaml"


def after_iteration(basis_config: Any, **_: Any) -> None:
    """Write the checkpoint beside input.yaml."""
    part = Path(f".{CHECKPOINT}.part")
    basis_config.save(str(part))
    part.replace(CHECKPOINT)
