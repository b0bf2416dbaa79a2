"""What a page of sections is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlip_pace.report.figures import Panel

# What the page calls the parts of the data, by their names in the sidecar. What the audit refused is in none of them: only that
# is "left out" on the page.
SUBSETS = {"train": "train", "left_out": "not chosen", "test": "test"}


@dataclass(frozen=True)
class Table:
    """Rows of text under headers; a `long` one is folded away."""

    title: str
    headers: list[str]
    rows: list[list[str]]
    long: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, what to know about it, its figures and tables."""

    name: str
    title: str
    text: list[str]
    panels: list[Panel] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
