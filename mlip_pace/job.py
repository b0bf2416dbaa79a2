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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from ase import Atoms
from filelock import FileLock, Timeout

from mlip_pace import reference, selection
from mlip_pace.ace import core
from mlip_pace.collect import columns, dataset
from mlip_pace.collect.dataset import GROUP, Collected
from mlip_pace.errors import BusyError, GateError, OtherResultError, TimeLimitError, WorthlessError
from mlip_pace.inputs import Stages, inputs_of
from mlip_pace.physics import measure
from mlip_pace.publish import evaluate, potential, sidecar
from mlip_pace.publish.committee import Asked
from mlip_pace.publish.potential import SIDECAR, Potential
from mlip_pace.reference import Subtracted
from mlip_pace.report import drawn, telling
from mlip_pace.run import child, gpu, limits
from mlip_pace.run.compute import Compute, cluster_of, end_of_share
from mlip_pace.run.log import Journal
from mlip_pace.run.steps import Stage, identity, leads_to, once
from mlip_pace.selection import Selected
from mlip_pace.settings import Settings
from mlip_pace.sources import load
from mlip_pace.train import fit, search
from mlip_pace.train.fit import Trained
from mlip_pace.train.search import Searched

T = TypeVar("T")

SEARCH_SHARE = 0.25  # of the time limit, that the search for the basis may take


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
        telling.say_warnings(journal, inputs.in_vain())
        stages = inputs.stages()
        if (published := already_published(settings, stages)) is not None:
            journal.say(f"already published: {published.path}")
            return _within_gate(published)
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
        moved = inputs.moved(collected.e0, subtracted.reference)
        telling.say_warnings(journal, moved)

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
            searched.fitted(_frame(stages.subtract, "target")), chosen, settings.selection.max_structures is not None, built,
            subtracted.reference, shortest, collected.e0, settings.probe),
            settings.training, inputs.override, compute))  # fmt: skip
        telling.say_trained(journal, trained)

        scored = stages.evaluate if trained.complete else _so_far(stages.evaluate, trained)
        published_as = evaluate.Published(
            stages.train.result / "potential.yace", subtracted.reference, trained.of(chosen), trained.uncertainty,
            Asked(settings.output.committee, settings.training.seed, collected.e0, shortest), searched.stress)  # fmt: skip
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
        described["warnings"] = [*moved, *described["warnings"]]
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
        Settings by group, as in `basis={"functions": 100}, training={"max_epochs": 50}`; environment variables count as well,
        those of RUN_LOG_FORMAT and OUTPUT_PATH excepted.

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
            for number, atoms in enumerate(structures):
                labelled = atoms.copy()  # and a group of its own, as in a collection: nothing says that they are of one run
                labelled.calc, labelled.info[GROUP] = atoms.calc, atoms.info.get(GROUP, f"structures#{number}")
                trajectory.write(labelled)
        groups = {**groups, "data": {**groups.get("data", {}), "path": str(given)}}
        groups["output"] = {"path": Path(output)} | ({"overwrite": True} if overwrite else {})
        try:
            return run_job(load(**groups), journal)
        finally:
            journal.end_progress()


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
