"""From DFT results to an ACE interatomic potential, with pacemaker. Start reading at `job.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlip_pace.collect.dataset import atoms_to_dataframe
    from mlip_pace.job import learn
    from mlip_pace.publish.potential import Potential, load_calculator
    from mlip_pace.settings import TrainingSettings as TrainingConfig
    from mlip_pace.train.pacemaker import PacemakerRunner

_HOME = {
    "atoms_to_dataframe": "collect.dataset",
    "learn": "job",
    "PacemakerRunner": "train.pacemaker",
    "Potential": "publish.potential",
    "load_calculator": "publish.potential",
    "TrainingConfig": "settings",
    "after_iteration": "train.checkpoint",  # pacemaker looks its callback up as an attribute of the package
}
__all__ = ["PacemakerRunner", "Potential", "TrainingConfig", "atoms_to_dataframe", "learn", "load_calculator"]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `mlip-pace settings` starts without pandas and ASE."""
    if name not in _HOME:
        raise AttributeError(f"module 'mlip_pace' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"mlip_pace.{_HOME[name]}")
    return getattr(module, "TrainingSettings" if name == "TrainingConfig" else name)
