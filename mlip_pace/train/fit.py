"""The stage that trains: least squares, then the refinement or pacemaker, holes, the core, `.yace`, `.asi`.

The refinement of the radial functions works on the chosen structures. The function coefficients are then fitted once more, to
all training structures, unless a number of structures was asked for; held-out folds of them say how good that is. Holes that
are then found are closed by the same least squares (`hold.py`); those of pacemaker's optimizers are only told.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mlip_pace.ace import activeset, basis, core, uncertainty
from mlip_pace.ace.basis import Basis, BasisFile
from mlip_pace.ace.files import convert, write_linear
from mlip_pace.ace.uncertainty import Calibration
from mlip_pace.collect.dataset import ATOMS, GROUP, SOURCE, SPLIT, WEIGHT
from mlip_pace.collect.split import TEST, TRAIN
from mlip_pace.reference import Reference
from mlip_pace.run.compute import Compute
from mlip_pace.run.pool import Workers
from mlip_pace.run.steps import write_whole
from mlip_pace.settings import ProbeSettings, TrainingSettings
from mlip_pace.train import calibration, crossvalidation, hold, linear, radial, weights
from mlip_pace.train.crossvalidation import CrossValidated, Errors
from mlip_pace.train.pacemaker import DONE, Fit, PacemakerRunner

# Settings of TRAINING that only pacemaker's optimizers look at.
FOR_PACEMAKER = (
    "batch_size", "l1", "l2", "early_stopping_patience", "early_stopping_gain", "display_step", "ladder_step", "ladder_type",
)  # fmt: skip
LEAST_SQUARES = "least-squares"  # folder of the linear start and of its refinement
CHOSEN, ALL = "chosen", "all"
AT_FLOOR = (
    "the strength of the prior (lambda) is at its floor, the limit of double precision: the data determine the functions as "
    "far as numbers go; no harm if test errors are like training errors, else give MLIP_PACE_BASIS_FUNCTIONS less or more data"
)
SECONDS = "seconds.json"  # that the first solve took
HELD_OUT = 1.5  # times the solve for as many atoms: the second pass of cross-validation


@dataclass(frozen=True)
class Task:
    """What is to be fitted: the delta of all structures, those chosen with their weights, and what goes into the files."""

    target: pd.DataFrame  # the columns of `reference.delta`
    chosen: dict[str, float]  # weights by source
    to_chosen: bool  # whether all of the fit is to the chosen structures alone, as a user asks who asks for their number
    basis: Basis
    reference: Reference
    shortest: dict[str, float]  # Å, of every pair of elements
    e0: dict[str, float]  # eV
    probe: ProbeSettings

    def train(self) -> pd.DataFrame:
        """The chosen structures, with their weights in the column `weight`."""
        train = self.target[self.target[SOURCE].isin(self.chosen)]
        return train.assign(**{WEIGHT: train[SOURCE].map(self.chosen)})

    def everything(self) -> pd.DataFrame:
        """The structures that the function coefficients are fitted to in the end."""
        return self.train() if self.to_chosen else self.target[self.target[SPLIT] == TRAIN]

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
    fitted_to: str = CHOSEN  # the structures of the function coefficients: those chosen, or all to train on
    loss: float | None = None  # of the chosen structures
    cross_validation: CrossValidated | None = None
    kappas: dict[float, Errors] = field(default_factory=dict)  # of held-out structures, where κ was looked for
    linear_start: dict[str, float] = field(default_factory=dict)  # lambda, log_evidence
    attempts: list[dict[str, Any]] = field(default_factory=list)  # of pacemaker: PacemakerRunner.records
    pacemaker_seconds: float | None = None
    batch_size: int | None = None  # structures in a batch, of pacemaker
    held: hold.Held | None = None  # what the search for holes found
    uncertainty: Calibration | None = None  # of the file `uncertainty.FILE`; None: the fit gives none
    device: str = "cpu"  # that the fit was computed on
    warnings: list[str] = field(default_factory=list)

    def of(self, chosen: Iterable[str]) -> list[str] | None:
        """The sources of the structures that the published coefficients were fitted to; None: all to train on."""
        return list(chosen) if self.fitted_to == CHOSEN else None


def starts_linear(training: TrainingSettings, from_file: bool) -> bool:
    """Whether the fit starts from least squares; `from_file`: whether it has a B-basis file to go on from."""
    return not from_file and (training.start == "linear" or (training.start == "auto" and not training.ladder_step))


def needs_pacemaker(training: TrainingSettings, from_file: bool) -> bool:
    """Whether pacemaker's optimizers have a part in the fit, or least squares and our own refinement are all of it."""
    return training.max_epochs > 0 and not (starts_linear(training, from_file) and training.optimizer == "auto")


def fit(folder: Path, task: Task, training: TrainingSettings, override: dict[str, Any], compute: Compute) -> Trained:
    """The stage: train, settle the core, write `potential.yaml`, `.yace` and `.asi`."""
    weights.refuse_unknown(task.target, training.weights)
    train, test = task.train(), task.test()
    kappa, kappas = _kappa(train, training, task.basis, compute.workers)
    training = training.model_copy(update={"kappa": kappa})
    from_file = isinstance(task.basis, BasisFile)
    start, of_fit = None, dict[str, Any]()
    search = hold.Search(task.everything(), task.reference, task.shortest, task.probe, training.seed, compute, time.monotonic())
    if starts_linear(training, from_file):
        ours = not needs_pacemaker(training, from_file)
        fitted, of_fit = _least_squares(folder, task, training, kappa, compute, search, refined=ours)
        start = fitted.potential
    elif isinstance(task.basis, BasisFile):
        fitted = Fit(task.basis.path, 0, None, DONE)
    if needs_pacemaker(training, from_file):
        runner = PacemakerRunner(folder, task.basis, training, override, compute)
        fitted = runner.train(train, test, start)
        of_fit |= {
            "attempts": runner.records(),
            "pacemaker_seconds": runner.seconds,
            "batch_size": runner.batch_size(train),
            "device": compute.device,
        }
    else:
        fitted = replace(fitted, potential=shutil.copyfile(fitted.potential, folder / "potential.yaml"))
    cores = core.settle(fitted.potential, task.reference, task.shortest)
    if "held" not in of_fit and task.probe.rounds:
        of_fit["held"] = hold.look(folder, fitted.potential, search)
    convert(fitted.potential, folder / "potential.yace", task.e0)
    return Trained(
        complete=fitted.complete, iterations=fitted.iterations, stopped=fitted.stopped, kappa=kappa, kappas=kappas,
        threads=compute.threads, core=cores, loss=fitted.loss,
        warnings=[*of_fit.pop("warnings", []), *(of_fit["held"].warnings if "held" in of_fit else []), *_doubts(cores),
                  *_written_active_set(fitted.potential, task.everything(), compute.workers)], **of_fit,
    )  # fmt: skip


def _kappa(
    train: pd.DataFrame, training: TrainingSettings, on: Basis, workers: Workers
) -> tuple[float, dict[float, Errors]]:  # fmt: skip
    """κ as it is set, or of cross-validation, then with the errors of what was held out for each."""
    if training.kappa != "auto":
        return training.kappa, {}
    labelled = linear.labelled(train, training)
    errors = crossvalidation.choose_kappa(labelled, train[GROUP].tolist(), on, workers)
    return (crossvalidation.best(errors) if errors else crossvalidation.WITHOUT_FOLDS), errors


def _least_squares(
    folder: Path, task: Task, training: TrainingSettings, kappa: float, compute: Compute, search: hold.Search, refined: bool
) -> tuple[Fit, dict[str, Any]]:  # fmt: skip
    """The fit by least squares: where it is, and what `Trained` says of it. `refined`: its own refinement is to follow.

    What is refined ends with a last solve, for all structures; what is not is the start of pacemaker's optimizers.
    """
    place = folder / LEAST_SQUARES
    place.mkdir(exist_ok=True)
    if refined and not training.max_epochs:
        potential, solution, of_fit = _last_solve(place, task, task.basis, training, kappa, search)
        of_fit["linear_start"] = {"lambda": solution.lam, "log_evidence": solution.log_evidence}
        return Fit(potential, 0, solution.loss, DONE), of_fit
    train, test = task.train(), task.test()
    watched = linear.labelled(test, training) if len(test) else []
    problem = radial.Problem(linear.labelled(train, training), watched, kappa, training.seed)
    state = radial.load(place)
    if state is None or state.structures != len(train):
        begin = time.monotonic()
        state = radial.start(place, problem, task.basis, compute.workers)
        write_whole(place / SECONDS, json.dumps(time.monotonic() - begin))
    if refined:
        solve = float(json.loads((place / SECONDS).read_text()))  # of the run that made it, which may be an earlier one
        atoms, of_all = (int(frame[ATOMS].map(len).sum()) for frame in (train, task.everything()))
        last = solve * (of_all + HELD_OUT * min(of_all, crossvalidation.ATOMS_LOOKED_AT)) / atoms
        before = replace(compute, deadline=compute.deadline - last)
        state = radial.refine(place, problem, training.max_epochs, before, longest=radial.ITERATION * solve)
    complete = not refined or bool(state.ended) or state.iteration >= training.max_epochs
    why = state.ended or (DONE if complete else "the time limit came first")
    fitted = Fit(place / state.potential, state.iteration, state.solution.loss, why, complete)
    of_fit = {"linear_start": {"lambda": state.solution.lam, "log_evidence": state.solution.log_evidence}}
    if refined:
        potential, _, of_last = _last_solve(place, task, BasisFile(fitted.potential), training, kappa, search)
        fitted, of_fit = replace(fitted, potential=potential), of_fit | of_last
    return fitted, of_fit


def _last_solve(
    place: Path, task: Task, on: Basis, training: TrainingSettings, kappa: float, search: hold.Search
) -> tuple[Path, linear.Solution, dict[str, Any]]:  # fmt: skip
    """The function coefficients, fitted to everything, holes closed: the file of the potential, the solution of the data alone,
    and what `Trained` says.
    """
    everything = task.everything()
    labelled, groups = linear.labelled(everything, training), everything[GROUP].tolist()
    last = crossvalidation.validate(labelled, groups, on, kappa, search.compute.workers, spreads=True)
    said = weights.warnings(weights.loss_weights(everything, training)) + [AT_FLOOR] * last.solution.at_floor
    about: dict[str, Any] = {
        "cross_validation": last.held_out,
        "fitted_to": CHOSEN if task.to_chosen else ALL,
        "warnings": said,
    }
    data = hold.Data(last.normal, last.solution, last.unseen, basis.smoothness(on))
    coefficients, matrix = last.solution.coefficients, data.matrix
    if task.probe.rounds:
        coefficients, matrix, about["held"] = hold.hold(place, on, data, search)
    write_linear(place / "last.yaml", on, coefficients)
    if last.residuals is not None:
        # Weights of the loss add up to one, so that this is their mean.
        mean = (1 - kappa) / len(everything), kappa / int(everything[ATOMS].map(len).sum())
        about["uncertainty"] = calibration.calibrated(last.residuals, groups, mean, data.noise)
    if about.get("uncertainty"):
        uncertainty.save(place.parent / uncertainty.FILE, uncertainty.factor(matrix, data.noise))
    return place / "last.yaml", last.solution, about


def _doubts(cores: dict[str, core.Core]) -> list[str]:
    return [
        f"{pair}: the dimer curve does not rise all the way below {settled.r_in:.3f} Å; mind short distances there"
        for pair, settled in cores.items()
        if not settled.rises
    ]


def _written_active_set(potential: Path, train: pd.DataFrame, workers: Workers) -> list[str]:
    """Write the active set beside the potential; why there is none, if that cannot be done."""
    try:
        activeset.write(potential.with_name(activeset.FILE), train[ATOMS].array, BasisFile(potential), workers)
    except ValueError as error:
        return [f"no active set (potential.asi), the data are too few or singular for it: {error}"]
    return []
