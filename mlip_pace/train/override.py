"""The user's additions to pacemaker's input.yaml (MLIP_PACE_TRAINING_OVERRIDE)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mlip_pace.errors import SettingsError


def load_override(path: Path | None) -> dict[str, Any]:
    """The user's additions to input.yaml. Raises `SettingsError` for what would run code or replace our data."""
    if path is None:
        return {}
    name = f"MLIP_PACE_TRAINING_OVERRIDE={path}"
    try:
        content = YAML(typ="safe", pure=True).load(path) or {}
    except Exception as error:
        hint = "give a readable YAML file, or leave MLIP_PACE_TRAINING_OVERRIDE out"
        raise SettingsError(f"{name}: cannot be read: {str(error).splitlines()[0]}", hint) from None
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise SettingsError(
            f"{name}: expected the sections fit, backend, potential, metadata with fields in them",
            "put each field under its section in that file; `mlip-pace check` prints the input.yaml that comes of it",
        )
    refused = [s for s in content if s not in ("fit", "backend", "potential", "metadata")]
    refused += [f"fit.{key}" for key in content.get("fit", {}) if key in ("callbacks", "repulsion", "maxiter")]
    refused += [
        f"potential.{key}" for key in content.get("potential", {}) if key in ("filename", "initial_potential", "elements")
    ]
    refused += [f"backend.{key}" for key in content.get("backend", {}) if key == "evaluator"]
    if refused:
        raise SettingsError(
            f"{name}: {', '.join(map(str, refused))} cannot be set there",
            "code, data, start potentials and what has a setting of its own are mlip-pace's part",
        )
    return content


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, dict by dict."""
    result = dict(base)
    for key, value in over.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
    return result
