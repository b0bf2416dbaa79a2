"""The stage that trains: least squares, then the refinement or pacemaker, then the core, `.yace` and `.asi`."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mlip_pace.ace import activeset, core
from mlip_pace.ace.basis import Basis, BasisFile
from mlip_pace.ace.files import convert
from mlip_pace.collect.dataset import ATOMS, SOURCE, SPLIT, WEIGHT
from mlip_pace.collect.split import TEST
from mlip_pace.reference import Reference
from mlip_pace.run.compute import Compute
from mlip_pace.settings import TrainingSettings
from mlip_pace.train import linear, radial
from mlip_pace.train.pacemaker import DONE, Fit, PacemakerRunner
from mlip_pace.train.weights import resolve_kappa

# Settings of TRAINING that only pacemaker's optimizers look at.
FOR_PACEMAKER = (
    "batch_size", "l1", "l2", "early_stopping_patience", "early_stopping_gain", "display_step", "ladder_step", "ladder_type",
)  # fmt: skip
LEAST_SQUARES = "least-squares"  # folder of the linear start and of its refinement


@dataclass(frozen=True)
class Task:
    """What is to be fitted: the delta of all structures, those chosen with their weights, and what goes into the files."""

    target: pd.DataFrame  # the columns of `reference.delta`
    chosen: dict[str, float]  # weights by source
    basis: Basis
    reference: Reference
    shortest: dict[str, float]  # Å, of every pair of elements
    e0: dict[str, float]  # eV

    def train(self) -> pd.DataFrame:
        """The chosen structures, with their weights in the column `weight`."""
        train = self.target[self.target[SOURCE].isin(self.chosen)]
        return train.assign(**{WEIGHT: train[SOURCE].map(self.chosen)})

    def test(self) -> pd.DataFrame:
        return self.target[self.target[SPLIT] == TEST]


@dataclass(frozen=True)
class Trained:
    """What the stage says of the fit; its files are in the folder of the stage."""

    complete: bool  # False: the time limit came first
    iterations: int
    stopped: str  # why it ended
    kappa: float
    threads: int
    core: dict[str, core.Core]  # by pair of elements
    loss: float | None = None
    linear_start: dict[str, float] = field(default_factory=dict)  # lambda, log_evidence
    attempts: list[dict[str, Any]] = field(default_factory=list)  # of pacemaker: PacemakerRunner.records
    pacemaker_seconds: float | None = None
    batch_size: int | None = None  # structures in a batch, of pacemaker
    device: str = "cpu"  # that the fit was computed on
    warnings: list[str] = field(default_factory=list)


def starts_linear(training: TrainingSettings, from_file: bool) -> bool:
    """Whether the fit starts from least squares; `from_file`: whether it has a B-basis file to go on from."""
    return not from_file and (training.start == "linear" or (training.start == "auto" and not training.ladder_step))


def needs_pacemaker(training: TrainingSettings, from_file: bool) -> bool:
    """Whether pacemaker's optimizers have a part in the fit, or least squares and our own refinement are all of it."""
    ours = training.optimizer == "auto" or training.max_epochs == 0
    return not (starts_linear(training, from_file) and ours)


def fit(folder: Path, task: Task, training: TrainingSettings, override: dict[str, Any], compute: Compute) -> Trained:
    """The stage: train, settle the core, write `potential.yaml`, `.yace` and `.asi`."""
    train, test = task.train(), task.test()
    kappa = resolve_kappa(train, training.kappa)
    state, start, linear_start = None, None, {}
    of_pacemaker: dict[str, Any] = {}
    from_file = isinstance(task.basis, BasisFile)
    if starts_linear(training, from_file):
        watched = linear.labelled(test, training.weighting) if len(test) else []
        problem = radial.Problem(linear.labelled(train, training.weighting), watched, kappa, training.seed)
        most = training.max_epochs if training.optimizer == "auto" else 0
        state = least_squares(folder / LEAST_SQUARES, problem, task.basis, most, compute)
        linear_start = {"lambda": state.solution.lam, "log_evidence": state.solution.log_evidence}
        start = folder / LEAST_SQUARES / state.potential
    if state is None or needs_pacemaker(training, from_file):
        runner = PacemakerRunner(folder, task.basis, training, override, compute)
        fitted = runner.train(train, test, start)
        of_pacemaker = {
            "attempts": runner.records(),
            "pacemaker_seconds": runner.seconds,
            "batch_size": runner.batch_size(train),
            "device": compute.device,
        }
    else:
        complete = bool(state.ended) or state.iteration >= training.max_epochs
        why = state.ended or (DONE if complete else "the time limit came first")
        fitted = Fit(folder / "potential.yaml", state.iteration, state.solution.loss, why, complete)
        shutil.copyfile(folder / LEAST_SQUARES / state.potential, fitted.potential)
    cores = core.settle(fitted.potential, task.reference, task.shortest)
    convert(fitted.potential, folder / "potential.yace", task.e0)
    return Trained(
        complete=fitted.complete, iterations=fitted.iterations, stopped=fitted.stopped, kappa=kappa, threads=compute.threads,
        core=cores, loss=fitted.loss, linear_start=linear_start,
        warnings=_doubts(cores) + _written_active_set(fitted.potential, train, compute.threads), **of_pacemaker,
    )  # fmt: skip


def least_squares(folder: Path, problem: radial.Problem, basis: Basis, most: int, compute: Compute) -> radial.State:
    """The least-squares solution, with the radial functions refined (`radial.py`) in at most `most` iterations."""
    folder.mkdir(exist_ok=True)
    begin = time.monotonic()
    state = radial.load(folder) or radial.start(folder, problem, basis, compute.threads)
    iteration = radial.ITERATION * (time.monotonic() - begin)
    return radial.refine(folder, problem, most, compute, longest=iteration) if most else state


def _doubts(cores: dict[str, core.Core]) -> list[str]:
    return [
        f"{pair}: the dimer curve does not rise all the way below {settled.r_in:.3f} Å; mind short distances there"
        for pair, settled in cores.items()
        if not settled.rises
    ]


def _written_active_set(potential: Path, train: pd.DataFrame, workers: int) -> list[str]:
    """Write the active set beside the potential; why there is none, if that cannot be done."""
    try:
        activeset.write(potential.with_suffix(".asi"), list(train[ATOMS]), BasisFile(potential), workers)
    except ValueError as error:
        return [f"no active set (potential.asi), the data are too few or singular for it: {error}"]
    return []
