"""What the sidecar `potential.json` says of how a potential was made (docs/contract.md, section 4)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlip_pace import __version__
from mlip_pace.ace.basis import Basis
from mlip_pace.collect.dataset import Collected
from mlip_pace.publish.evaluate import Scores
from mlip_pace.reference import Subtracted
from mlip_pace.run import limits
from mlip_pace.run.steps import Stage
from mlip_pace.selection import Selected
from mlip_pace.settings import GROUPS, Settings
from mlip_pace.train.fit import Trained
from mlip_pace.train.search import Searched

_COMPUTING = (
    "python-ace", "tensorpotential", "tensorflow-cpu", "tensorflow", "numpy", "scipy", "pandas", "ase", "matscipy", "numba",
    "phonopy", "spglib",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What the stages returned."""

    collected: Collected
    subtracted: Subtracted
    searched: Searched
    basis: Basis
    selected: Selected
    trained: Trained
    scores: Scores


def metadata(made: Made, settings: Settings, files: list[dict[str, str]], stages: Sequence[Stage]) -> dict[str, Any]:
    """All of it but what publishing adds. `files` are those read, with their SHA-256; `stages` are those that have run."""
    collected, training = asdict(made.collected), replace(made.trained, held=None, uncertainty=None)
    said = (made.collected, made.subtracted, made.searched, made.trained, made.scores)
    return {
        "complete": made.trained.complete,
        "errors": made.scores.errors,
        "errors_by_config_type": made.scores.errors_by_config_type,
        "quality_gate_missed": made.scores.missed,
        "worse_than_nothing": made.scores.worthless,
        **({"cost": asdict(made.scores.cost)} if made.scores.cost else {}),
        "reference": made.subtracted.reference.as_dict(),
        "e0": {"energies": made.collected.e0, "source": made.collected.e0_source},
        "basis": {
            "potential": made.basis.for_pacemaker,
            "functions": made.selected.functions,
            "parameters": made.selected.parameters,
            "shortest": made.subtracted.shortest,
            "cutoff": made.searched.cutoff,
            "functions_at_most": made.searched.functions,
            "tried": [asdict(one) for one in made.searched.tried],
            "structures": made.searched.structures,  # that they were judged by
        },
        "training": {
            "settings": settings.training.model_dump(mode="json"),
            **measured(training),
            **({} if made.searched.stress else {"stress_left_out": True}),
        },
        "uncertainty": uncertainty(made),
        **({"grades": asdict(made.scores.grades)} if made.scores.grades else {}),
        **({"probe": measured(made.trained.held)} if made.trained.held else {}),
        "selection": measured(made.selected),
        "dataset": {
            "files": files,
            **{key: collected[key] for key in ("read", "used", "train", "test", "atoms", "keys", "left_out")},
        },
        "warnings": [warning for one in said for warning in one.warnings],
        "versions": versions(),
        "settings": values(settings),
        "hardware": hardware(),
        "seconds": {stage.name.split("-")[1]: stage.seconds for stage in stages},
    }


def uncertainty(made: Made) -> dict[str, Any]:
    """The calibration and what it covered of the test set, or why there is none."""
    if made.trained.uncertainty is not None:
        return {"calibration": asdict(made.trained.uncertainty), "coverage": made.scores.coverage}
    if made.trained.attempts:
        return {"absent": "pacemaker's optimizers give no covariance of their coefficients"}
    if not made.trained.linear_start:
        return {"absent": "nothing was fitted: the potential is the file that it started from"}
    return {"absent": "there are fewer than three groups of structures that could be held out"}


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
