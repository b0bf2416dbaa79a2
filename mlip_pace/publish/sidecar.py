"""What the sidecar `potential.json` says of how a potential was made (docs/contract.md, section 4)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
from dataclasses import asdict
from typing import Any

from mlip_pace import __version__
from mlip_pace.run import limits
from mlip_pace.settings import GROUPS, Settings

_COMPUTING = (
    "python-ace", "tensorpotential", "tensorflow-cpu", "tensorflow", "numpy", "scipy", "pandas", "ase", "matscipy",
)  # fmt: skip


def measured(result: Any) -> dict[str, Any]:
    """A dataclass as a dict, without what was not measured."""
    return {name: value for name, value in asdict(result).items() if value is not None}


def values(settings: Settings) -> dict[str, Any]:
    """Every setting with its value and where that came from."""
    return {
        (name := f"{group}_{field}".upper()): {"value": value, "from": settings.origins.get(name, "default")}
        for group in GROUPS
        for field, value in getattr(settings, group).model_dump(mode="json").items()
    }


def hardware() -> dict[str, Any]:
    """The machine, what of it we may use, and the largest memory of our own process so far (MB; pacemaker's is not in it)."""
    return {
        "machine": platform.machine(),
        "cpus": limits.cpus(),
        "host_cpus": os.cpu_count(),
        "memory_mb": limits.memory() // 2**20,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of what computes."""
    result = {"mlip-pace": __version__, "python": platform.python_version()}
    for name in _COMPUTING:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return result
