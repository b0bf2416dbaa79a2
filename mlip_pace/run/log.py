"""What happens, for people and programs: lines on standard output and in `log.jsonl`, the latest state in `status.json`."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0
STAGES = ("collect", "subtract", "basis", "select", "train", "evaluate", "physics", "publish")


class Journal:
    """Writes events as text or JSON lines; on a terminal a job has a live display below. `close` must be called."""

    def __init__(self, style: str = "auto") -> None:
        terminal = sys.stdout.isatty()
        self.text = style == "text" or (style == "auto" and terminal)
        self.console = Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False) if self.text else None
        self.live: Live | None = None
        self.terminal = terminal
        self.folder: Path | None = None
        self.failing = False  # log.jsonl cannot be written to
        self.stage = "start"
        self.begin = self.last_line = time.monotonic()
        self.first: tuple[float, float] | None = None  # time and iteration of the first progress of a stage

    def open(self, folder: Path) -> None:
        """From now on keep `log.jsonl` and `status.json` in the output folder."""
        self.folder = folder

    def enter(self, stage: str) -> None:
        """What follows belongs to this stage."""
        self.stage, self.first = stage, None
        self._status({})
        self._show()

    def say(self, message: str, level: str = "info", **values: Any) -> None:
        event = {"time": _now(), "level": level, "stage": self.stage, "message": message, **values}
        self._file(event)
        if self.console is None:
            print(json.dumps(event, default=str), flush=True)
            return
        mark = {"info": "", "warning": "warning: ", "error": "error: "}[level]
        lines = (mark + message).splitlines()
        self.console.print(f"{time.strftime('%H:%M:%S')}  {self.stage:<9} {lines[0]}")
        for line in lines[1:]:
            self.console.print(" " * 20 + line)

    def warn(self, message: str) -> None:
        self.say(message, "warning")

    def progress(self, values: dict[str, float], total: int) -> None:
        """The training's latest row of metrics (errors of the delta, as pacemaker sees them); empty before the first."""
        now, iteration = time.monotonic(), values.get("iteration", 0.0)
        if not values:
            line = "pacemaker starts, TensorFlow builds its graph"
            shown: dict[str, Any] = {}
        else:
            self.first = self.first or (now, iteration)
            rate = (iteration - self.first[1]) / (now - self.first[0]) if now > self.first[0] else 0.0
            eta = round((total - iteration) / rate, 1) if rate > 0 and total >= iteration else None
            shown = {
                "iteration": int(iteration),
                "iterations": total,
                "loss": values["loss"],
                "rmse_energy": values["rmse_epa"],
                "rmse_forces": values["rmse_f_comp"],
                "eta_seconds": eta,
            }
            line = (
                f"iteration {iteration:.0f}/{total}  loss {values['loss']:.4g}  "
                f"{1e3 * values['rmse_epa']:.2f} meV/atom  {values['rmse_f_comp']:.4f} eV/Å"
            )
        self._status(shown)
        if self.text and self.terminal:
            self._show(line, iteration, total, shown.get("eta_seconds"))
        elif now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            self.say(line, **shown)

    def _show(self, line: str = "", iteration: float = 0, total: int = 0, eta: float | None = None) -> None:
        """On a terminal, below what was said: the stages, and how far the present one is."""
        if self.console is None or not self.terminal or self.folder is None or self.stage not in STAGES:
            return
        if self.live is None:
            # Drawn when something happens: a thread that draws by itself could not live with our forks.
            self.live = Live(console=self.console, transient=True, auto_refresh=False)
            self.live.start()
        now = STAGES.index(self.stage)
        marks = ("✓ " if n < now else "▸ " if n == now else "  " for n in range(len(STAGES)))
        stages = Text("   ".join(mark + name for mark, name in zip(marks, STAGES, strict=True)), style="bold")
        rows = Table.grid()
        rows.add_row(stages)
        if line:
            left = "" if eta is None else f"  {int(eta) // 60}:{int(eta) % 60:02d} left"
            rows.add_row(ProgressBar(max(total, 1), iteration, width=60))
            rows.add_row(Text(line + left))
        self.live.update(rows, refresh=True)

    def end_progress(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def close(self, code: int, reason: str, message: str, hint: str, resumable: bool, **more: Any) -> None:
        """The last line: one JSON object, in either style; also in the pod's termination message, where there is one.

        `more` is only in that line.
        """
        self.end_progress()
        end = {"code": code, "reason": reason, "stage": self.stage, "message": message, "hint": hint, "resumable": resumable}
        self._file({"time": _now(), "level": "end", **end})
        self._status(end)
        text = json.dumps(end)
        pod = Path("/dev/termination-log")
        if pod.is_file():
            with contextlib.suppress(OSError):
                pod.write_text(text)
        print(json.dumps({**end, **more}) if more else text, flush=True)

    def _file(self, event: dict[str, Any]) -> None:
        """Append a whole line or nothing. Raises the first `OSError`: from then on the job ends, and the end must be told."""
        if self.folder is None:
            return
        line = json.dumps(event, default=str).encode() + b"\n"
        with (self.folder / "log.jsonl").open("ab", buffering=0) as file:
            before = file.tell()
            if _wrote(file, line):
                return
            file.truncate(before)
        if not self.failing:
            self.failing = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / "log.jsonl"))

    def _status(self, values: dict[str, Any]) -> None:
        if self.folder is None:
            return
        text = json.dumps({"time": _now(), "stage": self.stage, **values}) + "\n"
        part, status = self.folder / ".status.json.part", self.folder / "status.json"
        try:
            part.write_text(text)
            part.replace(status)
        except OSError:  # on a full disk the blocks that it has already are still ours
            with contextlib.suppress(OSError):
                part.unlink()
                with status.open("r+") as file:
                    file.write(text)
                    file.truncate()


def _wrote(file: FileIO, line: bytes) -> bool:
    try:
        return file.write(line) == len(line)
    except OSError:
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
