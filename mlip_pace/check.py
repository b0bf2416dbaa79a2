"""What `mlip-pace check` says before a run: every refusal at once, and the plan. Writes no file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlip_pace import estimate, job, reference
from mlip_pace.ace import basis, core
from mlip_pace.collect import dataset
from mlip_pace.collect.files import find_files
from mlip_pace.errors import JobError
from mlip_pace.publish import potential
from mlip_pace.run.log import Journal
from mlip_pace.settings import Settings
from mlip_pace.train import pacemaker


def check(settings: Settings, journal: Journal) -> dict[str, Any]:
    """Refuse what `run_job` would refuse, all at once, and say what it would do. Writes no file.

    Returns the plan: counts, elements, E0, reference, functions, parameters, `seconds`, `memory` (bytes), `left_out`,
    `warnings` and pacemaker's `input_yaml`.
    """
    settings = settings.of_member()
    _refuse(settings)
    files, test_files, digests = job.input_files(settings)
    override, start = pacemaker.load_override(settings.training.override), basis.from_file(settings.training.start)
    if job.already_published(settings, job.plan_stages(settings, override, digests, start)) is not None:
        journal.say(f"{settings.output.path} holds the potential of just these inputs: run would have nothing to do")
    journal.enter("collect")
    test = None if test_files is None else dataset.structures_of(test_files)
    cutoff = basis.cutoff_of(start) if start else settings.basis.cutoff
    rules = dataset.Rules(settings.data, settings.basis.elements, cutoff, settings.training.seed)
    frames, about = dataset.assemble(dataset.structures_of(files), test, rules)
    collected = asdict(about)
    job.say_collected(journal, collected)
    journal.enter("subtract")
    train = frames[frames[dataset.SPLIT] == dataset.TRAIN]
    ref = reference.choose(settings.reference, train, cutoff)
    target = reference.delta(ref, frames)
    target = target[target[dataset.SPLIT] == dataset.TRAIN]
    journal.say(f"reference {ref.form}" + (f", {ref.inner:g} to {ref.outer:g} Å" if ref.kind != "none" else ""))
    for warning in collected["warnings"]:
        journal.warn(warning)
    journal.enter("train")
    shortest = reference.shortest_distances(train[dataset.ATOMS], cutoff)
    every = core.shortest_of_every_pair(shortest, collected["elements"])
    section = job.potential_section(settings, start, override, collected["elements"], every)
    size = basis.size(section)
    parameters = size.pop("parameters")
    functions = ", ".join(f"{count} functions of {symbol}" for symbol, count in size.items())
    journal.say(f"{functions}, {parameters} parameters, at most {settings.training.max_epochs} iterations")
    with tempfile.TemporaryDirectory() as scratch:
        runner = pacemaker.PacemakerRunner(Path(scratch), section, settings.training, override=override)
        batch = runner.batch_size(target)
        stage = settings.output.path / "work" / "4-train"
        first = stage / pacemaker.LEAST_SQUARES / "iteration-0.yaml" if runner.starts_linear() else None
        text = runner.render(target, len(train) < len(frames), start=first)
    own = runner.starts_linear() and runner.refines()
    seconds = estimate.seconds(
        section, list(train[dataset.ATOMS]), settings.training.max_epochs, job.threads(settings), pacemaker=not own
    )
    memory = estimate.memory(batch * train[dataset.ATOMS].map(len).mean())
    _say_expected(journal, seconds, memory, job.threads(settings), own)
    journal.say("pacemaker's input.yaml:\n" + text)
    return {
        **{key: collected[key] for key in ("read", "used", "train", "test", "atoms", "elements", "e0", "e0_source", "keys")},
        "reference": ref.as_dict(),
        "shortest": shortest,
        "functions": size,
        "parameters": parameters,
        "iterations": settings.training.max_epochs,
        "batch_size": batch,
        "threads": job.threads(settings),
        "seconds": seconds,
        "memory": memory,
        "left_out": collected["left_out"],
        "warnings": collected["warnings"],
        "input_yaml": text,
    }


def _refuse(settings: Settings) -> None:
    """Raise all that can be refused before any data are read as one error, of the kind of the first."""
    probes: tuple[Callable[[], Any], ...] = (
        lambda: find_files(settings.data.path),
        lambda: find_files(settings.data.test_path) if settings.data.test_path else None,
        lambda: pacemaker.load_override(settings.training.override),
        lambda: basis.from_file(settings.training.start),
        lambda: potential.refuse_unwritable(settings.output.path),
        lambda: job.refuse_missing_gpu(settings),
    )
    refused = []
    for probe in probes:
        try:
            probe()
        except JobError as error:
            refused.append(error)
    if refused:
        raise type(refused[0])("\n".join(e.message for e in refused), "\n".join(e.hint for e in refused if e.hint))


def _say_expected(journal: Journal, seconds: dict[str, float], memory: dict[str, int], threads: int, own: bool) -> None:
    """Time and memory of the fit; `own` if the refinement is not pacemaker's."""
    journal.say(
        f"about {seconds['linear_start']:.0f} s for the linear start, {seconds['training']:.0f} s for all iterations; they end "
        f"when they gain no more ({threads} threads; to a factor of two or so)"
    )
    if own:
        journal.say("the refinement is ours (variable projection); with MLIP_PACE_TRAINING_OPTIMIZER=BFGS pacemaker would get")
    else:
        journal.say(f"about {memory['needed'] / 2**30:.1f} GB of {memory['available'] / 2**30:.1f} GB of memory for pacemaker")
        if memory["needed"] > memory["available"]:
            journal.warn("that is more than there is: lower MLIP_PACE_TRAINING_BATCH_SIZE or MLIP_PACE_BASIS_FUNCTIONS")
