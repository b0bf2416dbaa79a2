"""The real pacemaker: PacemakerRunner renders input.yaml, starts it, follows its metrics, keeps checkpoints.

Every attempt has its own folder (`attempt-1`, `attempt-2`, ...), so that an attempt that follows an interrupted one starts
from the last checkpoint and what happened stays to be seen. Energies in eV, forces in eV/Å.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from mlip_pace import selection
from mlip_pace.ace.basis import Basis, BasisFile, Section
from mlip_pace.ace.basis import size as basis_size
from mlip_pace.collect.dataset import ATOMS, NAME, SOURCE, WEIGHT, save_frame
from mlip_pace.errors import DivergedError, JobError, OutOfMemoryError, TimeLimitError, ToolError
from mlip_pace.run import child, limits
from mlip_pace.run.compute import Compute
from mlip_pace.run.steps import write_whole
from mlip_pace.run.templates import templates
from mlip_pace.settings import SelectionSettings, TrainingSettings
from mlip_pace.train.checkpoint import latest
from mlip_pace.train.override import merged
from mlip_pace.train.weights import loss_weights

TEMPLATES = templates("train")
# Atoms in a batch: enough to keep some cores busy, and memory is small (docs/design.md).
ATOMS_IN_BATCH = 2000
# Memory of pacemaker without a batch, and what a function and an atom of a batch (at 300 functions) add: docs/design.md.
TRAINER_BYTES, BYTES_PER_FUNCTION, BYTES_PER_ATOM = 800 * 2**20, 200 * 2**10, 400 * 2**10
RECORD = "attempt.json"
DONE = "the iterations asked for are done"


def memory_of_an_atom(functions: int) -> float:
    """Bytes that an atom of a batch takes."""
    return float(BYTES_PER_ATOM * (functions / 300) ** 1.4)


def memory_needed(atoms_in_batch: float, functions: int) -> float:
    """Bytes that pacemaker takes."""
    return TRAINER_BYTES + BYTES_PER_FUNCTION * functions + memory_of_an_atom(functions) * atoms_in_batch


@dataclass(frozen=True)
class Fit:
    """A fit that has come to an end: its B-basis file, what was done and why it ended."""

    potential: Path
    iterations: int
    loss: float | None
    stopped: str
    complete: bool = True  # False: the deadline came first


class PacemakerRunner:
    """pacemaker at work in a folder.

    Parameters
    ----------
    folder
        Where its files go; what is there from an earlier attempt is continued.
    basis
        The basis to fit: `ace.basis.section(...)`, or a `BasisFile` to go on from.
    training
        The settings of the group TRAINING; the defaults, if none are given.
    override
        What is merged into input.yaml (`override.load_override`).
    compute
        Threads, device, deadline, and whom to tell.
    """

    def __init__(
        self, folder: Path, basis: Basis, training: TrainingSettings | None = None, override: dict[str, Any] | None = None,
        compute: Compute | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.basis = basis
        self.training = training or TrainingSettings()
        self.override = override or {}
        self.compute = compute or Compute()
        self.seconds = 0.0  # of the last pacemaker process
        scratch = folder / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        made_with = self.compute
        self.environment = child.environment(made_with.threads, made_with.device, made_with.gpu_memory, scratch.resolve())

    @property
    def functions(self) -> int:
        """Of the element that has most, or of every element at most, as it is asked for."""
        if isinstance(self.basis, Section):
            return int(self.basis.content["functions"]["number_of_functions_per_element"])
        return max(basis_size(self.basis).functions.values())

    def select_active_set(self, train: pd.DataFrame, most: int | None = None) -> Path:
        """Choose the structures worth training on (`selection.py`).

        Parameters
        ----------
        train
            Structures with the columns of `reference.delta`.
        most
            Their number; without it, as many as it takes.

        Returns
        -------
        Path
            The data frame of the chosen structures, `active_set.pckl.gzip`, with their weights in the column `weight`.
        """
        settings = SelectionSettings.model_construct(max_structures=most)
        choice, _ = selection.choose(train, self.basis, settings, self.compute.workers, self.folder)
        chosen = train[train[SOURCE].isin(choice.weights)]
        target = self.folder / "active_set.pckl.gzip"
        save_frame(chosen.assign(**{WEIGHT: chosen[SOURCE].map(choice.weights)}), target)
        return target

    def train(self, train: pd.DataFrame, test: pd.DataFrame | None = None, start: Path | None = None) -> Fit:
        """Fit to `train`, continuing from where the folder has got to. An attempt that runs out of memory is followed by one
        with half as many structures in a batch.

        Parameters
        ----------
        train, test
            Structures with the columns of `reference.delta`; those of `test` are only watched.
        start
            The B-basis file to begin with, in place of the basis with its own coefficients.

        Raises
        ------
        ToolError
            If pacemaker fails.
        OutOfMemoryError
            If it does so for want of memory with one structure in a batch.
        DivergedError
            If the loss is no longer a number.
        TimeLimitError
            If the deadline comes before the first iteration.
        """
        if start is None and isinstance(self.basis, BasisFile):
            start = self.basis.path
        while True:
            size = self.batch_size(train)
            try:
                return self._attempt(train, test, size, start)
            except OutOfMemoryError as error:
                if size == 1:
                    hint = f"give more memory than {limits.memory() / 2**30:.1f} GB, or lower MLIP_PACE_BASIS_FUNCTIONS"
                    raise OutOfMemoryError(f"{error.message} (batches of one structure)", hint, error.detail) from None
                self.compute.warn(f"{error.message} (batches of {size} structures; the next attempt: {self.batch_size(train)})")

    def _attempt(self, train: pd.DataFrame, test: pd.DataFrame | None, batch_size: int, start: Path | None) -> Fit:
        attempts = attempts_in(self.folder)
        checkpoints = [found for attempt in attempts if (found := latest(attempt))]
        before = sum(checkpoint.iterations for checkpoint in checkpoints)
        target = self.folder / "potential.yaml"
        start = checkpoints[-1].path if checkpoints else start
        if start is not None and before >= self.training.max_epochs and not self.training.ladder_step:
            shutil.copyfile(start, target)
            return Fit(target, before, None, DONE)
        attempt = self.folder / f"attempt-{len(attempts) + 1}"
        attempt.mkdir()
        self._write_data(attempt / "train.pckl.gzip", train)
        has_test = test is not None and len(test) > 0
        if test is not None and has_test:
            self._write_data(attempt / "test.pckl.gzip", test)
        (attempt / "input.yaml").write_text(self.render(train, has_test, before, start))
        began = datetime.now(UTC).isoformat(timespec="seconds")
        record: dict[str, Any] = {"began": began, "batch_size": batch_size, "ended": "killed"}
        write_whole(attempt / RECORD, json.dumps(record))
        command = [child.program("pacemaker"), "input.yaml", "--no-predict"]
        begin = time.monotonic()
        log = attempt / "output.log"
        try:
            ended = child.run(
                command, attempt, log, self.environment, lambda: self._follow(attempt, before), self.compute.deadline
            )
            record["ended"] = _why_it_ended(attempt / "log.txt") if ended else "the time limit came first"
        except JobError as error:
            record |= {"ended": error.message, "out_of_memory": isinstance(error, OutOfMemoryError)}
            raise
        finally:
            self.seconds = round(time.monotonic() - begin, 3)
            kept = latest(attempt)
            record |= {"seconds": self.seconds, "iterations": kept.iterations if kept else 0}
            write_whole(attempt / RECORD, json.dumps(record))
        history = _metrics(attempt)
        done = before + record["iterations"]
        loss = history[-1]["loss"] if history else None
        if not ended:
            so_far = kept.path if kept else start
            if so_far is None:
                raise TimeLimitError("the time limit came before the first iteration", "give MLIP_PACE_RUN_TIME_LIMIT more")
            shutil.copyfile(so_far, target)
            return Fit(target, done, loss, record["ended"], complete=False)
        if loss is None or not np.isfinite(loss):
            raise DivergedError(
                f"the loss is no longer a number after {done} iterations",
                "look for wrong labels in the data, or lower MLIP_PACE_BASIS_FUNCTIONS",
            )
        output = attempt / "output_potential.yaml"
        if not output.exists():
            raise ToolError("pacemaker wrote no potential", f"its whole log is {log}", child.tail(log))
        shutil.copyfile(output, target)
        return Fit(target, done, loss, record["ended"])

    def records(self) -> list[dict[str, Any]]:
        """What became of each attempt: when it began, its batch size, why it ended, seconds, iterations."""
        result = []
        for attempt in attempts_in(self.folder):
            if (attempt / RECORD).exists():
                kept = latest(attempt)
                result.append({"iterations": kept.iterations if kept else 0, **json.loads((attempt / RECORD).read_text())})
        return result

    def render(self, train: pd.DataFrame, has_test: bool, before: int = 0, start: Path | None = None) -> str:
        """The text of input.yaml, continuing after `before` iterations from the potential `start`."""
        steps = self.training.ladder_step
        potential = self.basis.for_pacemaker
        if start is not None:
            key = "initial_potential" if steps else "filename"
            potential = {**(potential if steps else {}), key: str(start.resolve())}
        text = TEMPLATES.get_template("input.yaml.j2").render(
            training=self.training.model_dump(mode="json"),
            optimizer="BFGS" if self.training.optimizer == "auto" else self.training.optimizer,
            potential=potential,
            train_file="train.pckl.gzip",
            test_file="test.pckl.gzip" if has_test else None,
            iterations=self.training.max_epochs if steps else max(1, self.training.max_epochs - before),
            ladder_step=[int(s) if s >= 1 else s for s in steps or []],
            batch_size=self.batch_size(train),
        )
        if not self.override:
            return text
        yaml = YAML(typ="safe", pure=True)
        over = {section: fields for section, fields in self.override.items() if section != "potential"}
        return TEMPLATES.from_string("{{ all | tojson(indent=1) }}\n").render(all=merged(yaml.load(text), over))

    def batch_size(self, train: pd.DataFrame) -> int:
        """Structures in a batch: the setting, or as many as hold the atoms that the memory is enough for.

        Less than that after an attempt that ran out of memory: half of what it had.
        """
        size = self.training.batch_size
        if size == "auto":
            free = limits.memory() - memory_needed(0, self.functions)
            atoms = np.clip(free / memory_of_an_atom(self.functions), 1, ATOMS_IN_BATCH)
            size = int(np.clip(round(atoms / train[ATOMS].map(len).mean()), 1, len(train)))
        too_large = [int(record["batch_size"]) for record in self.records() if record.get("out_of_memory")]
        return min([size, *(max(1, n // 2) for n in too_large)])

    def _write_data(self, path: Path, frame: pd.DataFrame) -> None:
        """Only the columns that pacemaker is to see: with an `energy` column it might undo the subtraction."""
        data = frame[[ATOMS, "energy_corrected", "forces", NAME]].reset_index(drop=True)
        # pacemaker treats names that begin with this word as artificial structures.
        data[NAME] = data[NAME].str.replace(r"^augmented", "_augmented", regex=True)
        weights = loss_weights(frame, self.training)
        data["w_energy"], data["w_forces"] = weights.energy, weights.forces
        save_frame(data, path)

    def _follow(self, attempt: Path, before: int) -> None:
        history = _metrics(attempt)
        self.compute.progress({**history[-1], "iteration": before + _last_iteration(history)} if history else {})


def attempts_in(folder: Path) -> list[Path]:
    """The folders of pacemaker's attempts, in their order."""
    return sorted(folder.glob("attempt-*"), key=lambda path: int(path.name.split("-")[1]))


def _metrics(attempt: Path) -> list[dict[str, float]]:
    """The rows of pacemaker's metrics.txt so far; a half-written last row is left out."""
    try:
        header, *lines = (attempt / "metrics.txt").read_text().splitlines(keepends=True)
    except (OSError, ValueError):
        return []
    names = header.split()
    rows = [line.split() for line in lines if line.endswith("\n")]
    return [dict(zip(names, map(float, row), strict=True)) for row in rows if len(row) == len(names)]


def _last_iteration(history: list[dict[str, float]]) -> int:
    """Iterations done; every step of a ladder counts from 0 again."""
    last: dict[float, int] = {}
    for row in history:
        last[row["ladder_step"]] = int(row["iter_num"])
    return sum(last.values())


def _why_it_ended(log: Path) -> str:
    text = log.read_text(errors="replace")
    if "EARLY STOPPING" in text:
        return "early stopping: the loss no longer falls"
    messages = re.findall(r"Optimization result\(.*?message=(.*?), nfev", text)
    return {
        "Maximum number of iterations has been exceeded.": DONE,
        "STOP: TOTAL NO. OF ITERATIONS REACHED LIMIT": DONE,
        "Desired error not necessarily achieved due to precision loss.": "converged to the precision of the numbers",
    }.get(messages[-1] if messages else "", messages[-1] if messages else "unknown")
