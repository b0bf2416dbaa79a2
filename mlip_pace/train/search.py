"""The basis by evidence: the cutoff, and how many functions, where the settings leave them to us (`auto`).

A basis is judged by a linear fit (`linear.py`) to some of the training structures: by the log of its evidence, the probability
of these data given the basis (D. J. C. MacKay, Neural Computation 4, 415 (1992)). It weighs how well the data are described
against how much the basis could describe, from the training data alone, and ranks cutoffs as test errors do (docs/design.md).
The cutoff is climbed: from 5 Å upwards as long as the evidence rises, or else downwards. Errors of held-out folds and
the cost of a step of molecular dynamics stand beside it, so that a person sees what a cheaper potential would cost in accuracy.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from mlip_pace.ace import cost
from mlip_pace.ace.basis import Basis
from mlip_pace.ace.files import convert, write_linear
from mlip_pace.collect.dataset import GROUP, SPLIT
from mlip_pace.collect.split import TRAIN
from mlip_pace.errors import SettingsError
from mlip_pace.reference import VIRIAL
from mlip_pace.run.compute import Compute
from mlip_pace.run.pool import Workers
from mlip_pace.run.steps import write_whole
from mlip_pace.settings import CUTOFFS, BasisSettings, TrainingSettings
from mlip_pace.train import agreement, crossvalidation, linear, weights
from mlip_pace.train.crossvalidation import Errors

FUNCTIONS = (125, 250, 500, 1000)  # of each element
TRIED = "tried.json"

Build = Callable[[float, int], Basis]  # from a cutoff (Å) and a number of functions


@dataclass(frozen=True)
class Tried:
    """A basis that was tried, and what came out."""

    cutoff: float  # Å
    functions: int  # of each element, at most
    log_evidence: float
    seconds: float
    errors: Errors | None = None  # of held-out structures; eV/atom, eV/Å per component
    md_step_us_per_atom: float | None = None


@dataclass(frozen=True)
class Searched:
    """The basis that was found, or that of the settings."""

    cutoff: float  # Å
    functions: int
    structures: int = 0  # that it was judged by; 0: nothing was tried
    tried: list[Tried] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stress: bool = True  # whether stresses are fitted, where there are some

    def fitted(self, target: pd.DataFrame) -> pd.DataFrame:
        """The columns of `reference.delta` but those that are not fitted."""
        return target if self.stress else target.drop(columns=VIRIAL)


def wanted(settings: BasisSettings) -> list[tuple[float, int]]:
    """The cutoffs and numbers of functions that might be tried, in the order of the search."""
    cutoff, functions = settings.first
    cutoffs = sorted(CUTOFFS, key=lambda value: abs(value - cutoff)) if settings.cutoff == "auto" else [cutoff]
    counts = [n for n in FUNCTIONS if n != functions] if settings.functions == "auto" else []
    if len(cutoffs) == 1 and not counts:
        return []
    return [(cutoff, functions) for cutoff in cutoffs] + [(cutoffs[0], count) for count in counts]


def search(
    folder: Path, target: pd.DataFrame, build: Build, settings: BasisSettings, training: TrainingSettings, compute: Compute,
    tell: Callable[[Tried], None] = lambda _: None,
) -> Searched:  # fmt: skip
    """The stage: look at the stresses, find what the settings leave open, and `tell` what is tried.

    What has been tried is in `tried.json`, and is not tried again. Raises `DataError` if energies and forces do not belong
    together, `SettingsError` for weights of config_types that are not there.
    """
    cutoff, functions = settings.first
    train, seed = target[target[SPLIT] == TRAIN], training.seed
    doubt = agreement.doubt_about_stresses(train, partial(build, cutoff), seed, compute.workers)
    found = Searched(cutoff, functions, warnings=[doubt] if doubt else [], stress=not doubt)
    if not wanted(settings):
        return found
    weights.refuse_unknown(target, training.weights)
    frame = linear.sample(found.fitted(train), build(cutoff, functions), seed)
    kappa = crossvalidation.WITHOUT_FOLDS if training.kappa == "auto" else training.kappa
    tried, missed = _load(folder / TRIED), list[tuple[float, int]]()

    def evidence(cutoff: float, functions: int) -> float:
        known = {(one.cutoff, one.functions): one.log_evidence for one in tried}
        if (cutoff, functions) in known:
            return known[cutoff, functions]
        if tried and time.monotonic() + tried[-1].seconds > compute.deadline:
            missed.append((cutoff, functions))
            return -np.inf
        tried.append(_try(folder, (cutoff, functions), build, frame, training, kappa, compute.workers))
        write_whole(folder / TRIED, json.dumps([asdict(one) for one in tried], indent=1))
        tell(tried[-1])
        return tried[-1].log_evidence

    if settings.cutoff == "auto":
        cutoff = climb(CUTOFFS, cutoff, lambda value: evidence(value, functions))
    if settings.functions == "auto":
        functions = max(_possible(build, cutoff), key=lambda count: evidence(cutoff, count))
    warnings = found.warnings
    if settings.cutoff == "auto" and cutoff in (CUTOFFS[0], CUTOFFS[-1]):
        end, beyond = ("shortest", "shorter") if cutoff == CUTOFFS[0] else ("longest", "longer")
        warnings.append(
            f"the evidence is highest for the {end} cutoff that is tried, {cutoff} Å; a {beyond} one may be better "
            "(MLIP_PACE_BASIS_CUTOFF)"
        )
    if missed:
        warnings.append("the search for the basis ended with its share of the time limit, before all was tried")
    return Searched(cutoff, functions, len(frame), tried, warnings, found.stress)


def climb(values: Sequence[float], first: float, height: Callable[[float], float]) -> float:
    """The value where a function with one summit is highest, from `first` upwards, or else downwards."""
    begin = best = list(values).index(first)
    for step in (1, -1):
        while 0 <= best + step < len(values) and height(values[best]) < height(values[best + step]):
            best += step
        if best != begin:
            break
    return values[best]


def _possible(build: Build, cutoff: float) -> list[int]:
    """The numbers of functions with which all elements see each other."""
    possible = []
    for count in FUNCTIONS:
        try:
            build(cutoff, count)
            possible.append(count)
        except SettingsError:
            continue
    return possible


def _try(
    folder: Path, tried: tuple[float, int], build: Build, frame: pd.DataFrame, training: TrainingSettings, kappa: float,
    workers: Workers,
) -> Tried:  # fmt: skip
    """Fit a basis to some structures."""
    begin = time.monotonic()
    on = build(*tried)
    labelled = linear.labelled(frame, training)
    fitted = crossvalidation.validate(labelled, frame[GROUP].tolist(), on, kappa, workers)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        written = Path(name) / "tried.yaml"
        write_linear(written, on, fitted.solution.coefficients)
        convert(written, written.with_suffix(".yace"), {})
        step = cost.md_step(written.with_suffix(".yace"), frame)
    return Tried(
        *tried, fitted.solution.log_evidence, round(time.monotonic() - begin, 3),
        fitted.held_out.errors if fitted.held_out else None, step.md_step_us_per_atom if step else None,
    )  # fmt: skip


def _load(path: Path) -> list[Tried]:
    if not path.exists():
        return []
    return TypeAdapter(list[Tried]).validate_json(path.read_text())
