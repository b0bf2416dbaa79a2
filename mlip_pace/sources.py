"""Where settings come from: environment variables `MLIP_PACE_<GROUP>_<FIELD>`, files, arguments.

Precedence: the environment, `MLIP_PACE_<GROUP>_<FIELD>_FILE` (the value is read from that file), the YAML file named by
`MLIP_PACE_CONFIG` (same groups and fields), the default. The environment is read here, once. All errors are reported at once.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, create_model
from pydantic_settings import BaseSettings, EnvSettingsSource
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mlip_pace.errors import SettingsError
from mlip_pace.settings import GROUPS, PREFIX, Group, Settings

DEFAULT_CONFIG = Path("/config/mlip-pace.yaml")
# What Kubernetes injects for a service that happens to be called mlip-pace-…
_KUBERNETES = re.compile(r"(_SERVICE_HOST|_SERVICE_PORT(_.*)?|_PORT(_.*)?)$")


def variables() -> list[str]:
    """Every known variable name, with those that name files."""
    names = [f"{PREFIX}{group.upper()}_{field.upper()}" for group, cls in GROUPS.items() for field in cls.model_fields]
    return [*names, *(name + "_FILE" for name in names), PREFIX + "CONFIG"]


def _in_environment(environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The values by group and field; what is empty, as a template leaves it, is not given."""
    groups: dict[str, Any] = {group: (dict[str, str], {}) for group in GROUPS}
    source = EnvSettingsSource(
        create_model("Environment", __base__=BaseSettings, **groups),
        env_prefix=PREFIX, env_nested_delimiter="_", env_nested_max_split=1,
    )  # fmt: skip
    source.env_vars = {name.lower(): value for name, value in environ.items() if value}
    return dict(source())


class _Given:
    """Reads the three sources and collects every complaint before giving up."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.errors: list[str] = []
        self.config, self.config_path = self._read_config()
        self.given = _in_environment(environ)
        self._refuse_unknown_names()

    def _read_config(self) -> tuple[dict[str, Any], str]:
        named = self.environ.get(PREFIX + "CONFIG")
        path = Path(named) if named else DEFAULT_CONFIG
        if not named and not path.is_file():
            return {}, ""
        try:
            content = YAML(typ="safe", pure=True).load(path) or {}
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            self.errors.append(f"{PREFIX}CONFIG={path}: cannot be read: {str(error).splitlines()[0]}")
            return {}, ""
        if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
            self.errors.append(f"{path}: expected groups ({', '.join(GROUPS)}) with fields in them")
            return {}, ""
        for group, fields in content.items():
            if group not in GROUPS:
                self.errors.append(f"{path}: unknown group {group!r}{_suggestion(str(group), list(GROUPS))}")
                continue
            for field in fields:
                if field not in GROUPS[group].model_fields:
                    known = list(GROUPS[group].model_fields)
                    self.errors.append(f"{path}: unknown field {group}.{field}{_suggestion(str(field), known)}")
        return content, str(path)

    def _refuse_unknown_names(self) -> None:
        known = variables()
        for name in sorted(self.environ):
            if name.startswith(PREFIX) and name not in known and not _KUBERNETES.search(name):
                self.errors.append(f"unknown variable {name}{_suggestion(name, known)}")

    def values(self, group: str, cls: type[Group]) -> tuple[dict[str, Any], dict[str, str]]:
        """The values given for a group, not yet validated, and the source of each."""
        environment = self.given.get(group, {})
        values, origins = {}, {}
        for field in cls.model_fields:
            name = f"{PREFIX}{group.upper()}_{field.upper()}"
            file = self.environ.get(name + "_FILE")
            if file and self.environ.get(name):
                self.errors.append(f"{name} and {name}_FILE are both given; keep one of them")
            if field in environment:
                values[field], origins[field] = environment[field], "environment"
            elif file:
                try:
                    values[field], origins[field] = Path(file).read_text().strip(), f"file {file}"
                except (OSError, UnicodeDecodeError) as error:
                    self.errors.append(f"{name}_FILE={file}: cannot be read: {error}")
            elif field in self.config.get(group, {}):
                values[field], origins[field] = self.config[group][field], f"config {self.config_path}"
            value = values.get(field)
            if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                self.errors.append(
                    f"{name}={value}: the quotes are part of the value; docker --env-file keeps them, leave them out"
                )
                del values[field]
        return values, origins


def log_format(environ: Mapping[str, str] = os.environ) -> str:
    """MLIP_PACE_RUN_LOG_FORMAT before anything is checked, since complaints are logged too; `auto` if it is none."""
    given = str(_Given(environ).values("run", GROUPS["run"])[0].get("log_format", "auto"))
    return given if given in ("text", "json") else "auto"


def load(environ: Mapping[str, str] | None = None, **given: Mapping[str, Any]) -> Settings:
    """Settings from the environment, overridden by keyword groups (`basis={"functions": 100}`), as `learn` takes them.

    Raises `SettingsError` with every complaint, one a line.
    """
    sources = _Given(os.environ if environ is None else environ)
    groups: dict[str, Group] = {}
    all_origins = {}
    for unknown in set(given) - set(GROUPS):
        sources.errors.append(f"unknown group {unknown!r}{_suggestion(unknown, list(GROUPS))}")
    for group, cls in GROUPS.items():
        values, origins = sources.values(group, cls)
        for field, value in given.get(group, {}).items():
            values[field], origins[field] = value, "argument"
        try:
            groups[group] = cls.model_validate(values)
        except ValidationError as error:
            sources.errors += _complaints(group, error)
        for field in cls.model_fields:
            all_origins[f"{group.upper()}_{field.upper()}"] = origins.get(field, "default")
    if sources.errors:
        raise SettingsError("\n".join(sources.errors), "`mlip-pace settings` lists every variable with its meaning")
    return Settings(**groups, origins=all_origins)  # type: ignore[arg-type]


def _complaints(group: str, error: ValidationError) -> list[str]:
    """One readable line for each field: the variable, its value, what is allowed."""
    by_field: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for item in error.errors():
        field = str(item["loc"][0]) if item["loc"] else ""
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        by_field.setdefault(field, []).append(message)
        values.setdefault(field, item["input"])
    lines = []
    for field, messages in by_field.items():
        allowed = " or ".join(dict.fromkeys(messages))
        name = f"{PREFIX}{group.upper()}_{field.upper()}={values[field]}: " if field else ""
        lines.append(name + (allowed if not field or "expected" in allowed else f"allowed: {allowed}"))
    return lines


def _suggestion(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {nearest[0]}?)" if nearest else ""
