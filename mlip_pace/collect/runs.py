"""What the readers of text outputs share: a file can hold several runs, one after the other."""

from __future__ import annotations

import re


class Unreadable(Exception):
    """A part of an output is not what its program writes; says which."""


def runs(text: str, begins: re.Pattern[str]) -> list[str]:
    """The text of each run, from where it begins to where the next one does; all of it, if none is seen to begin."""
    starts = [match.start() for match in begins.finditer(text)] or [0]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
