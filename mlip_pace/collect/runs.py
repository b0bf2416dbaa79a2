"""What the readers of text outputs share: a file can hold several runs, one after the other."""

from __future__ import annotations

import re


class Unreadable(Exception):
    """A part of an output is not what its program writes; says which."""


def runs(text: str, begins: re.Pattern[str]) -> list[str]:
    """The text of each run, from where it begins to where the next one does; all of it, if none is seen to begin."""
    starts = [match.start() for match in begins.finditer(text)] or [0]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def before_the_first(text: str, begins: re.Pattern[str], result: str) -> str:
    """What to say if there are results before the first run begins, as where the beginning of a file is lost; else nothing."""
    first = begins.search(text)
    lost = first is not None and re.search(result, text[: first.start()], re.MULTILINE)
    return "the beginning of a run is lost, of which results come before the first that has one" if lost else ""
