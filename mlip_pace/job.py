"""The job from top to bottom: DFT files in, potential out. The table of contents of this package.

Each stage is a function that gets options and inputs and a folder to write in, and returns a small summary. `steps.once` runs
it unless it has been run with the same inputs. Heavy data passes through files that pacemaker itself can read.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import os
import platform
import resource
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from ase import Atoms
from filelock import FileLock, Timeout

from mlip_pace import __version__, reference, selection
from mlip_pace.ace import basis, core
from mlip_pace.collect import dataset
from mlip_pace.collect.files import InputFile, find_files
from mlip_pace.collect.frames import load_frame
from mlip_pace.errors import BusyError, DeviceError, GateError, JobError, OtherResultError, TimeLimitError
from mlip_pace.publish import evaluate, potential
from mlip_pace.publish.potential import SIDECAR, Potential
from mlip_pace.run import limits, process
from mlip_pace.run.log import Journal
from mlip_pace.run.steps import Stage, once, plan, sha256
from mlip_pace.settings import Settings, load
from mlip_pace.train import pacemaker


def run_job(settings: Settings, journal: Journal) -> Potential:
    """Collect, subtract, choose, train, evaluate, publish. Raises `errors.JobError`, one for each exit code but 0."""
    begin = time.monotonic()
    settings = settings.of_member()
    output = settings.output.path
    potential.prepare(output)
    with _only_run(output):
        journal.open(output)
        journal.say(f"uid {os.getuid()}, {threads(settings)} threads, {limits.memory() / 2**30:.1f} GB of memory")
        refuse_missing_gpu(settings)
        files, test_files, digests = input_files(settings)
        override = pacemaker.load_override(settings.training.override)
        start = basis.from_file(settings.training.start)
        cutoff = basis.cutoff_of(start) if start else settings.basis.cutoff
        stages = plan_stages(settings, override, digests, start)
        if (published := already_published(settings, stages)) is not None:
            journal.say(f"already published: {published.path}")
            return _within_gate(published)
        device = _device(settings, journal)

        def stage(this: Stage, run: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
            journal.enter(this.name.split("-")[1])
            if not once(this, run):
                journal.say("unchanged, not run again")
            for warning in this.summary.get("warnings", []):
                journal.warn(warning)
            return this.summary

        collected = stage(stages.collect, lambda folder: dataset.collect(
            folder, files=files, test_files=test_files, rules=dataset.Rules(
                settings.data, settings.basis.elements, cutoff, settings.training.seed, threads(settings))))  # fmt: skip
        say_collected(journal, collected)

        subtracted = stage(stages.subtract, lambda folder: reference.subtract(
            folder, frames=_frame(stages.collect, "frames"), settings=settings.reference,
            cutoff=cutoff))  # fmt: skip
        ref = reference.Reference.from_dict(subtracted["reference"])
        journal.say(f"reference {ref.form}" + (f", {ref.inner:g} to {ref.outer:g} Å" if ref.kind != "none" else ""))

        shortest = core.shortest_of_every_pair(subtracted["shortest"], collected["elements"])
        section = potential_section(settings, start, override, collected["elements"], shortest)
        selected = stage(stages.activeset, lambda folder: selection.select(
            folder, target=_frame(stages.subtract, "target"), potential=section, settings=settings.selection,
            workers=threads(settings)))  # fmt: skip
        _say_selected(journal, selected)

        deadline = _deadline(settings, begin)
        trained = stage(stages.train, lambda folder: pacemaker.fit(
            folder, target=_frame(stages.subtract, "target"), chosen=selection.chosen_in(stages.activeset.folder),
            potential=section, reference=ref, shortest=shortest, e0=collected["e0"], training=settings.training,
            override=override, threads=threads(settings), device=device,
            gpu_memory=settings.run.gpu_memory, deadline=deadline,
            progress=lambda values: journal.progress(values, settings.training.max_epochs), warn=journal.warn))  # fmt: skip
        loss = f", loss {trained['loss']:.4g}" if "loss" in trained else ""
        journal.say(f"{trained['iterations']} iterations{loss}: {trained['stopped']}")

        scored = stages.evaluate if trained["complete"] else _so_far(stages.evaluate, trained)
        scores = stage(scored, lambda folder: evaluate.score(
            folder, target=_frame(stages.subtract, "target"), sources=list(selection.chosen_in(stages.activeset.folder)),
            potential=stages.train.result / "potential.yace", reference=ref, gate=settings.evaluate,
            workers=threads(settings)))  # fmt: skip

        journal.enter("publish")
        metadata = _metadata(settings, stages, scores, files, test_files, digests, section)
        result = potential.publish(
            output, stages.train.result, ref, collected["elements"], metadata,
            lambda sidecar: _draw_report(journal, sidecar, stages, scored, threads(settings)))  # fmt: skip
        journal.say(f"published {result.path}")
        journal.say(evaluate.error_table(scores["errors"]), errors=scores["errors"])
        if not trained["complete"]:
            raise TimeLimitError(
                f"the time limit came first, after {trained['iterations']} iterations; the potential so far is published",
                "run the same command again to continue",
            )
        return _within_gate(result)


def learn(structures: Sequence[Atoms], output: str | Path = "out", **groups: Mapping[str, Any]) -> Potential:
    """Train on labelled `ase.Atoms` and return the published potential: the whole job, for structures in memory.

    `groups` are settings by group, as in `learn(atoms, basis={"functions": 100}, training={"max_epochs": 50})`; environment
    variables count as well. Energies in eV, forces in eV/Å, in the calculator's results or under `REF_*`/`dft_*` keys.
    Raises `errors.JobError`.
    """
    from ase.io.trajectory import Trajectory

    given = Path(output) / "work" / "0-given" / "structures.traj"
    potential.prepare(given.parent)
    with Trajectory(str(given), "w") as trajectory:
        for atoms in structures:
            trajectory.write(atoms)
    groups = {**groups, "data": {**groups.get("data", {}), "path": str(given)}}
    groups["output"] = {"overwrite": True, **groups.get("output", {}), "path": Path(output)}
    journal = Journal("text")
    try:
        return run_job(load(**groups), journal)
    finally:
        journal.end_progress()


@dataclass(frozen=True)
class Stages:
    """The stages of a job, in their order."""

    collect: Stage
    subtract: Stage
    activeset: Stage
    train: Stage
    evaluate: Stage


def plan_stages(settings: Settings, override: dict[str, Any], digests: dict[str, str], start: dict[str, Any] | None) -> Stages:
    """What each stage depends on: its own settings, its files, the stages before it."""
    work = settings.output.path / "work"
    group = {name: getattr(settings, name).model_dump(mode="json") for name in ("data", "reference", "basis", "training")}
    for name in ("path", "test_path"):
        del group["data"][name]  # the files count, not where they are
    choice = settings.selection.model_dump(mode="json")
    first = sha256(Path(start["filename"])) if start else None
    common = {
        "elements": settings.basis.elements,
        "cutoff": settings.basis.cutoff,
        "seed": settings.training.seed,
        "start": first,
    }
    training = {name: value for name, value in group["training"].items() if name != "override"}
    collect = plan(work, "1-collect", {**group["data"], **common}, files=digests)
    subtract = plan(work, "2-subtract", group["reference"], collect)
    activeset = plan(work, "3-activeset", {**choice, **group["basis"], "override": override.get("potential")}, subtract)
    train = plan(work, "4-train", {**training, "override": override}, activeset)
    score = plan(work, "5-evaluate", settings.evaluate.model_dump(mode="json"), train)
    return Stages(collect, subtract, activeset, train, score)


def _only_run(output: Path) -> FileLock:
    """The lock of an output path; the kernel frees it when its owner dies. Raises `BusyError`."""
    lock = FileLock(output / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(f"another run is at work on {output}", "wait for it, or give another MLIP_PACE_OUTPUT_PATH") from None
    return lock


def input_files(settings: Settings) -> tuple[list[InputFile], list[InputFile] | None, dict[str, str]]:
    """Training files, test files, and the SHA-256 of each."""
    files = find_files(settings.data.path)
    test_files = None if settings.data.test_path is None else find_files(settings.data.test_path)
    digests = {file.name: file.sha256() for file in files}
    digests |= {f"test:{file.name}": file.sha256() for file in test_files or []}
    return files, test_files, digests


def potential_section(
    settings: Settings, start: dict[str, Any] | None, override: dict[str, Any], elements: list[str], shortest: dict[str, float]
) -> dict[str, Any]:  # fmt: skip
    """pacemaker's potential section: of the file to start from or of the settings, with the user's override."""
    section = pacemaker.merged(
        start or basis.potential_section(settings.basis, elements, shortest), override.get("potential", {})
    )
    basis.refuse_other_elements(section, elements)
    return section


def _within_gate(result: Potential) -> Potential:
    """The potential, if it is as good as asked for. Raises `GateError`."""
    if missed := result.metadata["quality_gate_missed"]:
        raise GateError("; ".join(missed), "the potential is published all the same; more data or more functions help")
    return result


def already_published(settings: Settings, stages: Stages) -> Potential | None:
    """The potential of just these inputs, if it is there. Raises `OtherResultError` if that of others is."""
    found = potential.intact(settings.output.path / SIDECAR)
    if found is None:
        return None
    if found.metadata["fingerprint"] == stages.evaluate.fingerprint:
        return found if found.metadata["complete"] else None
    if not settings.output.overwrite:
        raise OtherResultError(
            f"{settings.output.path} holds the potential of other inputs or settings",
            "set MLIP_PACE_OUTPUT_OVERWRITE=1 (the old result is kept aside), or give another MLIP_PACE_OUTPUT_PATH",
        )
    return None


def _frame(stage: Stage, name: str) -> pd.DataFrame:
    return load_frame(stage.folder / f"{name}.pckl.gzip")


def _deadline(settings: Settings, begin: float) -> float:
    """When the training has to stop, so that evaluation and publishing still fit in: they take less than all before."""
    if settings.run.time_limit is None:
        return math.inf
    rest = process.SECONDS_TO_END + max(10.0, time.monotonic() - begin)
    return begin + settings.run.time_limit - rest


def _so_far(evaluation: Stage, trained: dict[str, Any]) -> Stage:
    """The evaluation of a fit that is not complete: its result is not that of the whole."""
    suffix = f"{trained['iterations']} iterations, attempt {len(trained['attempts'])}"
    return replace(evaluation, fingerprint=f"{evaluation.fingerprint}: {suffix}")


def threads(settings: Settings) -> int:
    return limits.cpus() if settings.run.threads == "auto" else settings.run.threads


NVIDIA = Path("/dev/nvidiactl")  # made by the driver, and by docker --gpus and apptainer --nv


def refuse_missing_gpu(settings: Settings) -> None:
    if settings.run.device == "gpu" and not NVIDIA.exists():
        raise DeviceError(
            f"MLIP_PACE_RUN_DEVICE=gpu, but there is no NVIDIA GPU here ({NVIDIA} is missing)",
            "docker run needs --gpus all, apptainer needs --nv; MLIP_PACE_RUN_DEVICE=cpu computes without",
        )


def _device(settings: Settings, journal: Journal) -> str:
    """The GPU's name, or `cpu`. Raises `DeviceError` where a GPU is asked for and TensorFlow cannot use one."""
    if settings.run.device == "cpu" or not NVIDIA.exists():
        return "cpu"
    name, reason = process.gpu(process.environment(1, "gpu", settings.run.gpu_memory, settings.output.path))
    if name is None and settings.run.device == "gpu":
        raise DeviceError(
            f"MLIP_PACE_RUN_DEVICE=gpu, but TensorFlow cannot use the GPU here: {reason}",
            "the driver must be new enough for CUDA 12.5, and the image the one with VARIANT=cuda",
        )
    if name is None:
        journal.warn(f"there is a GPU, but TensorFlow cannot use it and computes on the CPU: {reason}")
    return name or "cpu"


def say_collected(journal: Journal, collected: dict[str, Any]) -> None:
    journal.say(
        f"{collected['read']} structures read, {collected['train']} to train on, {collected['test']} to test, "
        f"{len(collected['left_out'])} left out; {collected['atoms']} atoms of {', '.join(collected['elements'])}"
    )
    for keys, count in collected["keys"].items():
        journal.say(f"labels of {count} structures: {keys}")
    for symbol, energy in collected["e0"].items():
        journal.say(f"E0 of {symbol}: {energy:.6f} eV ({collected['e0_source'][symbol]})")
    for item in collected["left_out"][:20]:
        journal.say(f"left out: {item['source']}: {item['reason']}")
    if len(collected["left_out"]) > 20:
        journal.say(f"… and {len(collected['left_out']) - 20} more; all are in potential.json, dataset.left_out")


def _say_selected(journal: Journal, selected: dict[str, Any]) -> None:
    journal.say(
        f"{selected['chosen']} of {selected['given']} structures chosen ({selected['method']}) for "
        + ", ".join(
            f"{count} functions of {symbol}" for symbol, count in selected["functions"].items() if symbol != "parameters"
        )
    )


def _draw_report(journal: Journal, sidecar: Potential, stages: Stages, scored: Stage, workers: int) -> str | None:
    """report.html; without it a potential is still one, so that what goes wrong here is a warning."""
    # Matplotlib wants to write, and without a home or a temporary directory only the output path can be written.
    os.environ.setdefault("MPLCONFIGDIR", str((stages.train.result / "scratch").resolve()))
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # pyace has logging print all that libraries say
    try:
        from mlip_pace.report import page as report  # takes its time

        return report.draw(sidecar, stages.activeset.folder, stages.train.result, scored.folder, workers)
    except JobError:
        raise
    except Exception as error:
        (scored.folder / "report.log").write_text(traceback.format_exc())
        warning = f"no report.html: {type(error).__name__}: {error}; the whole story is in {scored.folder / 'report.log'}"
        journal.warn(warning)
        sidecar.metadata["warnings"].append(warning)
        return None


def _metadata(
    settings: Settings, stages: Stages, scores: dict[str, Any], files: list[InputFile], test_files: list[InputFile] | None,
    digests: dict[str, str], section: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What the sidecar says (docs/contract.md, section 4)."""
    collected, subtracted, trained = stages.collect.summary, stages.subtract.summary, stages.train.summary
    every = (stages.collect, stages.subtract, stages.activeset, stages.train)
    formats = {file.name: file.format for file in files} | {f"test:{file.name}": file.format for file in test_files or []}
    values = {
        f"{group.upper()}_{field}".upper(): value
        for group in ("data", "reference", "basis", "selection", "training", "evaluate", "output", "run")
        for field, value in getattr(settings, group).model_dump(mode="json").items()
    }
    return {
        "complete": trained["complete"],
        "fingerprint": stages.evaluate.fingerprint,
        "errors": scores["errors"],
        "errors_by_config_type": scores["errors_by_config_type"],
        "quality_gate_missed": scores["missed"],
        "reference": subtracted["reference"],
        "e0": {"energies": collected["e0"], "source": collected["e0_source"]},
        "basis": {"potential": section, "functions": stages.activeset.summary["functions"], "shortest": subtracted["shortest"]},
        "training": {"settings": settings.training.model_dump(mode="json"), **trained},
        "selection": stages.activeset.summary,
        "dataset": {
            "files": [{"name": name, "format": formats[name], "sha256": digest} for name, digest in digests.items()],
            **{key: collected[key] for key in ("read", "used", "train", "test", "atoms", "keys", "left_out")},
        },
        "warnings": [warning for summary in (*(s.summary for s in every), scores) for warning in summary.get("warnings", [])],
        "versions": versions(),
        "settings": {name: {"value": value, "from": settings.origins.get(name, "default")} for name, value in values.items()},
        "hardware": {
            "machine": platform.machine(),
            "cpus": limits.cpus(),
            "host_cpus": os.cpu_count(),
            "memory_mb": limits.memory() // 2**20,
            "peak_memory_mb": _peak_memory(),
        },
        "seconds": {stage.name.split("-")[1]: stage.seconds for stage in every},
    }


def _peak_memory() -> int:
    """Largest memory of our own process so far, MB; pacemaker's is not in it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def versions() -> dict[str, str]:
    """Versions of Python and of what computes."""
    result = {"mlip-pace": __version__, "python": platform.python_version()}
    for name in (
        "python-ace",
        "tensorpotential",
        "tensorflow-cpu",
        "tensorflow",
        "numpy",
        "scipy",
        "pandas",
        "ase",
        "matscipy",
    ):
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return result
