"""report.html, or the reason why there is none."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path

from mlip_pace.errors import JobError
from mlip_pace.publish.potential import Potential
from mlip_pace.run.log import Journal


def draw(journal: Journal, so_far: Potential, chosen: Path, fitted: Path, scores: Path, workers: int) -> str | None:
    """`page.draw`; without the page a potential is still one, so that what goes wrong here is a warning."""
    # Matplotlib wants to write, and without a home or a temporary directory only the output path can be written.
    os.environ.setdefault("MPLCONFIGDIR", str((fitted / "scratch").resolve()))
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # pyace has logging print all that libraries say
    try:
        from mlip_pace.report import page  # takes its time

        return page.draw(so_far, chosen, fitted, scores, workers)
    except JobError:
        raise
    except Exception as error:
        (scores / "report.log").write_text(traceback.format_exc())
        warning = f"no report.html: {type(error).__name__}: {error}; the whole story is in {scores / 'report.log'}"
        journal.warn(warning)
        so_far.metadata["warnings"].append(warning)
        return None
