"""The templates of the files that we write from text."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def templates(room: str, **options: Any) -> Environment:
    """The templates that lie in a room of this package, such as `train`; a name that they ask for must be given."""
    return Environment(
        loader=PackageLoader(f"mlip_pace.{room}", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
