"""The job from top to bottom: DFT files in, potential out. The table of contents of this package.

Each stage is a function that gets what it reads and a folder to write in, and returns a dataclass. `steps.once` runs it unless
it has been run with the same inputs. Heavy data passes through files that pacemaker itself can read.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from ase import Atoms
from filelock import FileLock, Timeout

from mlip_pace import reference, selection
from mlip_pace.ace import basis, core
from mlip_pace.ace.basis import Basis, BasisFile, Section
from mlip_pace.collect import columns, dataset
from mlip_pace.collect.dataset import Collected
from mlip_pace.collect.files import InputFile, digests_of, find_files
from mlip_pace.errors import BusyError, GateError, OtherResultError, SettingsError, TimeLimitError, WorthlessError
from mlip_pace.physics import measure
from mlip_pace.publish import evaluate, potential, sidecar
from mlip_pace.publish.committee import Asked
from mlip_pace.publish.potential import SIDECAR, Potential
from mlip_pace.reference import Subtracted
from mlip_pace.report import drawn, telling
from mlip_pace.run import child, gpu, limits
from mlip_pace.run.compute import Compute, cluster_of, end_of_share
from mlip_pace.run.log import Journal
from mlip_pace.run.steps import Stage, identity, leads_to, once, plan, sha256
from mlip_pace.selection import Selected
from mlip_pace.settings import BasisSettings, Settings
from mlip_pace.sources import load
from mlip_pace.train import fit, search
from mlip_pace.train.fit import Trained
from mlip_pace.train.override import load_override, merged
from mlip_pace.train.search import Build, Searched

T = TypeVar("T")

SEARCH_SHARE = 0.25  # of the time limit, that the search for the basis may take

# The version of each stage: raised when the same inputs give another result, so that what was made before is made anew.
COLLECT, SUBTRACT, BASIS, SELECT, TRAIN, EVALUATE, PHYSICS = 5, 1, 1, 2, 4, 3, 2


def run_job(settings: Settings, journal: Journal) -> Potential:
    """Collect, subtract, choose, train, evaluate, publish. Raises `errors.JobError`, one for each exit code but 0."""
    begin = time.monotonic()
    settings = settings.of_member()
    output = settings.output.path
    potential.prepare(output)
    with _only_run(output), ExitStack() as beyond:
        journal.open(output)
        journal.say(f"uid {os.getuid()}, {threads(settings)} threads, {limits.memory() / 2**30:.1f} GB of memory")
        gpu.refuse_missing(settings.run.device)
        inputs = inputs_of(settings)
        stages = inputs.stages()
        if (published := already_published(settings, stages)) is not None:
            journal.say(f"already published: {published.path}")
            return _within_gate(published)
        telling.say_warnings(journal, inputs.in_vain())
        cluster = beyond.enter_context(cluster_of(settings.run.scheduler, output, [file.path for file in inputs.files],
                                                  journal.say, begin + (settings.run.time_limit or math.inf)))  # fmt: skip
        compute = Compute(
            threads=threads(settings), cluster=cluster, device=_device(settings, journal) if inputs.needs_pacemaker else "cpu",
            gpu_memory=settings.run.gpu_memory, warn=journal.warn,
            progress=lambda values: journal.progress(values, settings.training.max_epochs))  # fmt: skip

        def stage(this: Stage, kind: type[T], run: Callable[[Path], T]) -> T:
            journal.enter(this.name.split("-")[1])
            if this.done:
                journal.say("unchanged, not run again")
            return once(this, kind, run)

        collected = stage(stages.collect, Collected, lambda folder: dataset.collect(
            folder, inputs.files, inputs.test_files, inputs.rules(), compute.workers))  # fmt: skip
        telling.say_collected(journal, collected)

        subtracted = stage(stages.subtract, Subtracted, lambda folder: reference.subtract(
            folder, _frame(stages.collect, "frames"), settings.reference, inputs.cutoff, compute.workers))  # fmt: skip
        telling.say_subtracted(journal, subtracted)

        shortest = core.shortest_of_every_pair(subtracted.shortest, collected.elements)
        share = replace(compute, deadline=begin + SEARCH_SHARE * (settings.run.time_limit or math.inf))
        searched = stage(stages.basis, Searched, lambda folder: search.search(
            folder, _frame(stages.subtract, "target"), inputs.builder(collected.elements, shortest), inputs.basis_settings,
            settings.training, share, partial(telling.say_tried, journal)))  # fmt: skip
        telling.say_searched(journal, searched)
        built = inputs.builder(collected.elements, shortest)(searched.cutoff, searched.functions)
        selected = stage(stages.select, Selected, lambda folder: selection.select(
            folder, _frame(stages.subtract, "target"), built, settings.selection, compute.workers,
            settings.training.max_epochs))  # fmt: skip
        telling.say_selected(journal, selected)

        # Evaluation and publishing take less than all before the training.
        compute = replace(compute, deadline=_deadline(settings, begin, time.monotonic() - begin))
        chosen = selection.chosen_in(stages.select.folder)
        trained = stage(stages.train, Trained, lambda folder: fit.fit(folder, fit.Task(
            _frame(stages.subtract, "target"), chosen, settings.selection.max_structures is not None, built,
            subtracted.reference, shortest, collected.e0, settings.probe),
            settings.training, inputs.override, compute))  # fmt: skip
        telling.say_trained(journal, trained)

        scored = stages.evaluate if trained.complete else _so_far(stages.evaluate, trained)
        published_as = evaluate.Published(
            stages.train.result / "potential.yace", subtracted.reference, trained.of(chosen), trained.uncertainty,
            Asked(settings.output.committee, settings.training.seed, collected.e0, shortest))  # fmt: skip
        scores = stage(scored, evaluate.Scores, lambda folder: evaluate.score(
            folder, _frame(stages.subtract, "target"), published_as, settings.evaluate, compute.workers))  # fmt: skip
        telling.say_warnings(journal, scores.warnings)

        beyond.close()  # the cluster is no longer needed
        known, done = None, stages.ending(scored)
        if settings.physics.names and trained.complete:
            last = _deadline(settings, begin, scored.seconds)
            end = end_of_share(settings.physics.share, begin, last, measure.LEAST)
            known = stage(stages.physics, measure.Physics, lambda _: measure.measure(
                _frame(stages.subtract, "target"), published_as, collected.e0, settings.physics, end,
                compute.threads))  # fmt: skip
            telling.say_physics(journal, known)
            telling.say_warnings(journal, known.warnings)
            done.append(stages.physics)
        journal.enter("publish")
        made = sidecar.Made(collected, subtracted, searched, built, selected, trained, scores)
        described = identity(stages.physics) | sidecar.metadata(made, settings, inputs.described(), done)
        if known is not None:
            described |= {"physics": known.as_dict(), "warnings": described["warnings"] + known.warnings}
        result = potential.publish(
            output, (stages.train.result, scored.result), subtracted.reference, collected.elements, described,
            lambda so_far: drawn.draw(
                journal, so_far, stages.select.folder, stages.train.result, scored.folder, compute.threads))  # fmt: skip
        journal.say(f"published {result.path}")
        journal.say(evaluate.error_table(scores.errors), errors=scores.errors)
        if not trained.complete:
            raise TimeLimitError(
                f"the time limit came first, after {trained.iterations} iterations; the potential so far is published",
                "run the same command again to continue",
            )
        return _within_gate(result)


def learn(
    structures: Sequence[Atoms], output: str | Path = "out", overwrite: bool = False, **groups: Mapping[str, Any]
) -> Potential:  # fmt: skip
    """Train on labelled `ase.Atoms` and return the published potential: the whole job, for structures in memory.

    Parameters
    ----------
    structures
        With energies (eV) and forces (eV/Å) in the calculator's results or under `REF_*`/`dft_*` keys.
    output
        The output path.
    overwrite
        Whether the result of other inputs, if the output path holds one, is to be replaced; it is then kept aside.
    **groups
        Settings by group, as in `basis={"functions": 100}, training={"max_epochs": 50}`; environment variables count as well.

    Returns
    -------
    Potential
        What is published, as `Potential.load(output / "potential.json")` gives it.

    Raises
    ------
    errors.JobError
        One subclass for each exit code of docs/contract.md.
    """
    from ase.io.trajectory import Trajectory

    journal = Journal("text")
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "structures.traj"
        with Trajectory(str(given), "w") as trajectory:
            for atoms in structures:
                trajectory.write(atoms)
        groups = {**groups, "data": {**groups.get("data", {}), "path": str(given)}}
        groups["output"] = {"path": Path(output)} | ({"overwrite": True} if overwrite else {})
        try:
            return run_job(load(**groups), journal)
        finally:
            journal.end_progress()


@dataclass(frozen=True)
class Stages:
    """The stages of a job, in their order."""

    collect: Stage
    subtract: Stage
    basis: Stage
    select: Stage
    train: Stage
    evaluate: Stage
    physics: Stage

    def ending(self, evaluate: Stage) -> list[Stage]:
        return [self.collect, self.subtract, self.basis, self.select, self.train, evaluate]


@dataclass(frozen=True)
class Inputs:
    """The settings of a job, and the files that they name."""

    settings: Settings
    files: list[InputFile]
    test_files: list[InputFile] | None
    digests: dict[str, str]  # SHA-256 by name
    override: dict[str, Any]  # of pacemaker's input.yaml
    start: BasisFile | None  # to go on from

    @property
    def basis_settings(self) -> BasisSettings:
        """Those of the settings, with nothing left to find where there is a file to go on from."""
        settings = self.settings.basis
        if self.start is None:
            return settings
        known = {"cutoff": basis.cutoff_of(self.start), "functions": max(basis.size(self.start).functions.values())}
        return settings.model_copy(update=known)

    @property
    def cutoff(self) -> float:
        """The shortest that the potential may come to have, Å."""
        return self.basis_settings.cutoffs[0]

    def rules(self) -> dataset.Rules:
        settings = self.settings
        return dataset.Rules(settings.data, settings.basis.elements, self.basis_settings.cutoffs, settings.training.seed)

    def builder(self, elements: list[str], shortest: dict[str, float]) -> Build:
        """What makes the basis of a cutoff and a number of functions: that of the file to go on from, or of the settings, with
        the user's override. It raises `DataError`, `SettingsError`.
        """
        return partial(self._basis, elements, shortest)

    def _basis(self, elements: list[str], shortest: dict[str, float], cutoff: float, functions: int) -> Basis:
        over = self.override.get("potential", {})
        if self.start is not None:
            if over:
                raise SettingsError(
                    "MLIP_PACE_TRAINING_OVERRIDE: `potential` has no effect beside a file in MLIP_PACE_TRAINING_START",
                    "leave one of them out",
                )
            built: Basis = self.start
        else:
            settings = self.settings.basis.model_copy(update={"cutoff": cutoff, "functions": functions})
            built = Section(merged(basis.section(settings, elements, shortest).content, over))
        basis.refuse_unusable(built, elements)
        return built

    def stages(self) -> Stages:
        """What each stage depends on: its own settings, its files, the stages before it."""
        settings, work = self.settings, self.settings.output.path / "work"
        groups = ("data", "reference", "basis", "training", "probe", "evaluate")
        group = {name: getattr(settings, name).model_dump(mode="json") for name in groups}
        for name in ("path", "test_path"):
            del group["data"][name]  # the files count, not where they are
        common = {
            "elements": settings.basis.elements,
            "cutoffs": self.basis_settings.cutoffs,
            "seed": settings.training.seed,
            "start": sha256(self.start.path) if self.start else None,
        }
        training = {name: value for name, value in group["training"].items() if name not in ("override", "max_epochs")}
        override = self.override if self.needs_pacemaker else {}
        if not self.needs_pacemaker:
            training = {name: value for name, value in training.items() if name not in fit.FOR_PACEMAKER}
        collect = plan(work, "1-collect", COLLECT, {**group["data"], **common}, files=self.digests)
        subtract = plan(work, "2-subtract", SUBTRACT, group["reference"], collect)
        of_search = {**group["basis"], "override": self.override.get("potential")}
        if search.wanted(self.basis_settings):
            of_search |= {name: training[name] for name in ("kappa", "weighting", "weights")}
        found = plan(work, "3-basis", BASIS, of_search, subtract)
        of_choice, refined = settings.selection.model_dump(mode="json"), int(settings.training.max_epochs > 0)
        select = plan(work, "4-select", SELECT, of_choice, found, reach=refined)
        of_fit = {**training, "override": override, "probe": group["probe"]}
        train = plan(work, "5-train", TRAIN, of_fit, select, reach=settings.training.max_epochs)
        score = plan(work, "6-evaluate", EVALUATE, {**group["evaluate"], "committee": settings.output.committee}, train)
        # Of the same potential other properties are no other result: what there is goes on to them.
        physics = plan(work, "7-physics", PHYSICS, {"names": settings.physics.names, "share": settings.physics.share}, score)
        physics = replace(physics, lineage=score.lineage)
        return Stages(collect, subtract, found, select, train, score, physics)

    def described(self) -> list[dict[str, str]]:
        """Name, format and SHA-256 of each file."""
        formats = {file.name: file.format for file in self.files}
        formats |= {f"test:{file.name}": file.format for file in self.test_files or []}
        other = "in place of the one before"
        return [{"name": n, "format": formats.get(n, other), "sha256": digest} for n, digest in self.digests.items()]

    @property
    def needs_pacemaker(self) -> bool:
        """Whether pacemaker's optimizers have a part in the fit."""
        return fit.needs_pacemaker(self.settings.training, self.start is not None)

    def in_vain(self) -> list[str]:
        """What was set and has no effect, in words."""
        given = {name for name, origin in self.settings.origins.items() if origin != "default"}
        if self.needs_pacemaker:
            return []
        names = [f"MLIP_PACE_TRAINING_{name.upper()}" for name in fit.FOR_PACEMAKER if f"TRAINING_{name.upper()}" in given]
        names += ["MLIP_PACE_RUN_GPU_MEMORY"] * ("RUN_GPU_MEMORY" in given)
        names += [f"`{section}` of MLIP_PACE_TRAINING_OVERRIDE" for section in self.override if section != "potential"]
        names += ["MLIP_PACE_RUN_DEVICE=gpu"] * (self.settings.run.device == "gpu")
        if not names:
            return []
        return [
            f"{', '.join(names)}: no effect, it is for pacemaker's optimizers, and this fit is by least squares and variable "
            "projection on the CPU (MLIP_PACE_TRAINING_OPTIMIZER=BFGS would use pacemaker)"
        ]


def inputs_of(settings: Settings) -> Inputs:
    """Find and read what the settings name. Raises `NoInputError`, `SettingsError`."""
    files = find_files(settings.data.path)
    test_files = None if settings.data.test_path is None else find_files(settings.data.test_path)
    digests = digests_of(files) | {f"test:{name}": digest for name, digest in digests_of(test_files or []).items()}
    override, start = load_override(settings.training.override), basis.to_start_from(settings.training.start)
    return Inputs(settings, files, test_files, digests, override, start)


def _only_run(output: Path) -> FileLock:
    """The lock of an output path; the kernel frees it when its owner dies. Raises `BusyError`."""
    lock = FileLock(output / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(f"another run is at work on {output}", "wait for it, or give another MLIP_PACE_OUTPUT_PATH") from None
    return lock


def _within_gate(result: Potential) -> Potential:
    """The potential, if it is as good as asked for, and better than none. Raises `GateError`, `WorthlessError`."""
    if worthless := result.metadata["worse_than_nothing"]:
        other = "" if result.metadata["selection"]["method"] == "none" else "MLIP_PACE_SELECTION_METHOD=none, or "
        raise WorthlessError(
            "; ".join(worthless),
            "it is published all the same, do not use it: look at the worst structures in report.html for wrong labels, try "
            f"{other}fewer functions",
        )
    if missed := result.metadata["quality_gate_missed"]:
        raise GateError("; ".join(missed), "the potential is published all the same; more data or more functions help")
    return result


def already_published(settings: Settings, stages: Stages) -> Potential | None:
    """The potential of just these inputs, if it is there. Raises `OtherResultError` if that of others is."""
    found = potential.intact(settings.output.path / SIDECAR)
    if found is None:
        return None
    if found.metadata["fingerprint"] == stages.physics.fingerprint:
        return found if found.metadata["complete"] else None
    if not settings.output.overwrite and not leads_to(stages.physics, found.metadata):
        raise OtherResultError(
            f"{settings.output.path} holds the potential of other inputs or settings",
            "set MLIP_PACE_OUTPUT_OVERWRITE=1 (the old result is kept aside), or give another MLIP_PACE_OUTPUT_PATH",
        )
    return None


def _frame(stage: Stage, name: str) -> pd.DataFrame:
    return columns.load(stage.folder / name)


def _deadline(settings: Settings, begin: float, rest: float) -> float:
    """When a stage has to stop, so that what follows and takes about `rest` seconds still fits in."""
    if settings.run.time_limit is None:
        return math.inf
    return begin + settings.run.time_limit - child.SECONDS_TO_END - max(10.0, rest)


def _so_far(evaluation: Stage, trained: Trained) -> Stage:
    """The evaluation of a fit that is not complete: its result is not that of the whole."""
    suffix = f"{trained.iterations} iterations, attempt {len(trained.attempts)}"
    return replace(evaluation, fingerprint=f"{evaluation.fingerprint}: {suffix}")


def threads(settings: Settings) -> int:
    return limits.cpus() if settings.run.threads == "auto" else settings.run.threads


def _device(settings: Settings, journal: Journal) -> str:
    """The GPU's name, or `cpu`. Raises `DeviceError` where a GPU is asked for and TensorFlow cannot use one."""
    environment = child.environment(1, "gpu", settings.run.gpu_memory, settings.output.path)
    name, reason = gpu.usable(settings.run.device, environment)
    if name is None and reason:
        journal.warn(f"there is a GPU, but TensorFlow cannot use it and computes on the CPU: {reason}")
    return name or "cpu"
