"""Runs the real pacemaker: renders input.yaml, starts it, follows its metrics, keeps checkpoints, converts, active set.

Every attempt has its own folder (`attempt-1`, `attempt-2`, ...), so that an attempt that follows an interrupted one starts
from the last checkpoint and what happened stays to be seen. Energies in eV, forces in eV/Å.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from mlip_pace.ace import activeset, core
from mlip_pace.collect.dataset import ATOMS, NAME, SOURCE, SPLIT, TEST, WEIGHT, save_frame
from mlip_pace.errors import DivergedError, JobError, OutOfMemoryError, SettingsError, TimeLimitError, ToolError
from mlip_pace.reference import Reference
from mlip_pace.run import child, limits
from mlip_pace.run.steps import write_whole
from mlip_pace.run.templates import templates
from mlip_pace.settings import TrainingSettings
from mlip_pace.train import linear, radial
from mlip_pace.train.checkpoint import latest
from mlip_pace.train.weights import loss_weights, resolve_kappa

TEMPLATES = templates("train")
LEAST_SQUARES = "least-squares"  # folder of the linear start and of its refinement
# Atoms in a batch that keep both cores of a small machine busy without much memory (measured: docs/design.md).
ATOMS_IN_BATCH = 2000
# Memory of pacemaker without a batch, and what a function and an atom of a batch (at 300 functions) add: docs/design.md.
TRAINER_BYTES, BYTES_PER_FUNCTION, BYTES_PER_ATOM = 800 * 2**20, 200 * 2**10, 400 * 2**10
RECORD = "attempt.json"
DONE = "the iterations asked for are done"

Progress = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Trained:
    """A finished fit: its B-basis file, what was done and why it ended."""

    potential: Path
    iterations: int
    attempts: list[dict[str, Any]]  # PacemakerRunner.records
    loss: float | None
    stopped: str
    linear_start: dict[str, float]
    complete: bool = True  # False: the deadline came first


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


class PacemakerRunner:
    """pacemaker at work in `folder` on a basis (`basis.potential_section`) with the given training settings."""

    def __init__(
        self, folder: Path, potential: dict[str, Any], training: TrainingSettings | None = None, *, threads: int | None = None,
        device: str = "cpu", gpu_memory: str = "grow", deadline: float = math.inf, override: dict[str, Any] | None = None,
        progress: Progress = lambda _: None, warn: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.potential = potential
        self.training = training or TrainingSettings()
        self.override = override or {}
        self.deadline = deadline  # of time.monotonic; pacemaker is stopped then
        self.progress = progress
        self.warn = warn
        self.threads = threads or limits.cpus()
        self.linear_start: dict[str, float] = {}
        self.seconds = 0.0  # of the pacemaker process
        scratch = folder / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        self.environment = child.environment(self.threads, device, gpu_memory, scratch.resolve())

    def train(self, train: pd.DataFrame, test: pd.DataFrame | None = None) -> Trained:
        """Fit to `train` and return the result, continuing from where the folder has got to; `test` is only watched.

        Least squares come first (`linear.py`), if the settings ask for them, then the radial functions by variable projection
        (`radial.py`) or everything by pacemaker. An attempt of pacemaker that runs out of memory is followed by one with half
        as many structures in a batch.

        The frames have the columns of `reference.subtract`. Raises `ToolError` if pacemaker fails, `OutOfMemoryError` if it
        does so with one structure in a batch, `DivergedError` if the loss is no longer a number.
        """
        start = Path(self.potential["filename"]) if "filename" in self.potential else None
        if self.starts_linear():
            state = self._least_squares(train, test)
            start = self.folder / LEAST_SQUARES / state.potential
            if self.refines() or self.training.max_epochs == 0:
                return self._projected(state, start)
        while True:
            size = self.batch_size(train)
            try:
                return self._attempt(train, test, size, start)
            except OutOfMemoryError as error:
                if size == 1:
                    hint = f"give more memory than {limits.memory() / 2**30:.1f} GB, or lower MLIP_PACE_BASIS_FUNCTIONS"
                    raise OutOfMemoryError(f"{error.message} (batches of one structure)", hint, error.detail) from None
                self.warn(f"{error.message} (batches of {size} structures; the next attempt: {self.batch_size(train)})")

    def _projected(self, state: radial.State, fitted: Path) -> Trained:
        target = self.folder / "potential.yaml"
        shutil.copyfile(fitted, target)
        complete = bool(state.ended) or state.iteration >= self.training.max_epochs
        why = state.ended or (DONE if complete else "the time limit came first")
        return Trained(target, state.iteration, [], state.solution.loss, why, self.linear_start, complete)

    def _attempt(self, train: pd.DataFrame, test: pd.DataFrame | None, batch_size: int, start: Path | None) -> Trained:
        attempts = self._attempts()
        checkpoints = [found for attempt in attempts if (found := latest(attempt))]
        before = sum(checkpoint.iterations for checkpoint in checkpoints)
        target = self.folder / "potential.yaml"
        start = checkpoints[-1].path if checkpoints else start
        if start is not None and before >= self.training.max_epochs and not self.training.ladder_step:
            shutil.copyfile(start, target)
            return Trained(target, before, self.records(), None, DONE, self.linear_start)
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
            ended = child.run(command, attempt, log, self.environment, lambda: self._follow(attempt, before), self.deadline)
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
            return Trained(target, done, self.records(), loss, record["ended"], self.linear_start, complete=False)
        if loss is None or not np.isfinite(loss):
            raise DivergedError(
                f"the loss is no longer a number after {done} iterations",
                "look for wrong labels in the data, or lower MLIP_PACE_BASIS_FUNCTIONS",
            )
        output = attempt / "output_potential.yaml"
        if not output.exists():
            raise ToolError("pacemaker wrote no potential", f"its whole log is {log}", child.tail(log))
        shutil.copyfile(output, target)
        return Trained(target, done, self.records(), loss, record["ended"], self.linear_start)

    def _attempts(self) -> list[Path]:
        return sorted(self.folder.glob("attempt-*"), key=lambda path: int(path.name.split("-")[1]))

    def records(self) -> list[dict[str, Any]]:
        """What became of each attempt: when it began, its batch size, why it ended, seconds, iterations."""
        result = []
        for attempt in self._attempts():
            if (attempt / RECORD).exists():
                kept = latest(attempt)
                result.append({"iterations": kept.iterations if kept else 0, **json.loads((attempt / RECORD).read_text())})
        return result

    def starts_linear(self) -> bool:
        """Whether the fit starts from least squares."""
        start = self.training.start
        return "filename" not in self.potential and (start == "linear" or (start == "auto" and not self.training.ladder_step))

    def refines(self) -> bool:
        """Whether our own refinement (`radial.py`) takes the place of pacemaker's."""
        return self.training.optimizer == "auto" and self.training.max_epochs > 0

    def _least_squares(self, train: pd.DataFrame, test: pd.DataFrame | None) -> radial.State:
        """The least-squares solution, with the radial functions refined (`radial.py`) if the settings ask for it."""
        folder = self.folder / LEAST_SQUARES
        folder.mkdir(exist_ok=True)
        kappa = resolve_kappa(train, self.training.kappa)
        labelled = linear.labelled(train, self.training.weighting)
        begin = time.monotonic()
        state = radial.load(folder) or radial.start(folder, labelled, self.potential, kappa, self.threads)
        iteration = radial.ITERATION * (time.monotonic() - begin)
        if self.refines():
            watched = linear.labelled(test, self.training.weighting) if test is not None and len(test) else []
            state = radial.refine(
                folder, labelled, watched, kappa, self.training.max_epochs, seed=self.training.seed, workers=self.threads,
                deadline=self.deadline, longest=iteration, progress=self.progress,
            )  # fmt: skip
        self.linear_start = {"lambda": state.solution.lam, "log_evidence": state.solution.log_evidence}
        return state

    def render(self, train: pd.DataFrame, has_test: bool, before: int = 0, start: Path | None = None) -> str:
        """The text of input.yaml, continuing after `before` iterations from the potential `start`."""
        steps = self.training.ladder_step
        potential: dict[str, Any] = self.potential
        if start is not None:
            key = "initial_potential" if steps else "filename"
            potential = {**(potential if steps else {}), key: str(start.resolve())}
        text = TEMPLATES.get_template("input.yaml.j2").render(
            training=self.training.model_dump(mode="json"),
            optimizer="BFGS" if self.training.optimizer == "auto" else self.training.optimizer,
            kappa=resolve_kappa(train, self.training.kappa),
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
            functions = self.potential.get("functions", {}).get("number_of_functions_per_element", 1000)  # a file may have any
            free = limits.memory() - TRAINER_BYTES - BYTES_PER_FUNCTION * functions
            atoms = np.clip(free / (BYTES_PER_ATOM * (functions / 300) ** 1.4), 1, ATOMS_IN_BATCH)
            size = int(np.clip(round(atoms / train[ATOMS].map(len).mean()), 1, len(train)))
        too_large = [int(record["batch_size"]) for record in self.records() if record.get("out_of_memory")]
        return min([size, *(max(1, n // 2) for n in too_large)])

    def _write_data(self, path: Path, frame: pd.DataFrame) -> None:
        """Only the columns that pacemaker is to see: with an `energy` column it might undo the subtraction."""
        data = frame[[ATOMS, "energy_corrected", "forces", NAME]].reset_index(drop=True)
        # pacemaker treats names that begin with this word as artificial structures.
        data[NAME] = data[NAME].str.replace(r"^augmented", "_augmented", regex=True)
        w_energy, w_forces = loss_weights(frame, self.training.weighting)
        data["w_energy"], data["w_forces"] = w_energy, pd.Series(w_forces, dtype=object)
        save_frame(data, path)

    def _follow(self, attempt: Path, before: int) -> None:
        history = _metrics(attempt)
        self.progress({**history[-1], "iteration": before + _last_iteration(history)} if history else {})


def convert(potential: Path, target: Path, e0: dict[str, float]) -> None:
    """Write the `.yace` of a B-basis file, with the atomic energies `e0` (eV) in its `E0` line."""
    from pyace.basis import ACEBBasisSet

    part = target.with_name(f".{target.name}.part")
    basis_set = ACEBBasisSet(str(potential))
    basis_set.to_ACECTildeBasisSet().save_yaml(str(part))
    text = part.read_text()
    values = ", ".join(repr(float(e0.get(symbol, 0.0))) for symbol in basis_set.elements_name)
    text, count = re.subn(r"^E0:.*$", f"E0: [{values}]", text, count=1, flags=re.MULTILINE)
    if count != 1:
        raise ToolError(f"{target.name} has no line E0", "python-ace writes another format than the one this version knows")
    part.write_text(text)
    part.replace(target)


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


def fit(
    folder: Path, *, target: pd.DataFrame, chosen: dict[str, float], potential: dict[str, Any], reference: Reference,
    shortest: dict[str, float], e0: dict[str, float], training: TrainingSettings, override: dict[str, Any],
    threads: int, device: str, gpu_memory: str, deadline: float, progress: Progress, warn: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """The stage: train on the `chosen` sources with their weights, settle the core, write `potential.yaml`, `.yace`, `.asi`."""
    runner = PacemakerRunner(
        folder, potential, training, threads=threads, device=device, gpu_memory=gpu_memory, deadline=deadline,
        override=override, progress=progress, warn=warn,
    )  # fmt: skip
    train, test = target[target[SOURCE].isin(chosen)], target[target[SPLIT] == TEST]
    train = train.assign(**{WEIGHT: train[SOURCE].map(chosen)})
    trained = runner.train(train, test)
    pairs = core.settle(trained.potential, reference, shortest)
    convert(trained.potential, folder / "potential.yace", e0)
    warnings = [
        f"{pair}: the dimer curve does not rise all the way below {values['r_in']:.3f} Å; mind short distances there"
        for pair, values in pairs.items()
        if not values["rises"]
    ]
    try:
        section = {"filename": str(trained.potential)}
        activeset.write(trained.potential.with_suffix(".asi"), list(train[ATOMS]), section, threads)
    except ValueError as error:
        warnings.append(f"no active set (potential.asi), the data are too few or singular for it: {error}")
    return {
        "complete": trained.complete,
        "iterations": trained.iterations,
        "attempts": trained.attempts,
        **({"loss": trained.loss} if trained.loss is not None else {}),
        "linear_start": trained.linear_start,
        "pacemaker_seconds": runner.seconds,
        "kappa": resolve_kappa(train, training.kappa),
        "stopped": trained.stopped,
        "batch_size": runner.batch_size(train),
        "threads": threads,
        "device": device,
        "core": pairs,
        "warnings": warnings,
    }
