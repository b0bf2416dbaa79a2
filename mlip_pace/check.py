"""What `mlip-pace check` says before a run: refusals of settings, then of files and device, then of data; and the plan.

Writes no file. Whether a cluster answers, another run is at work, or the fit fails, only a run tells.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from mlip_pace import job, reference
from mlip_pace.ace import basis, core
from mlip_pace.ace.basis import Basis
from mlip_pace.collect import dataset
from mlip_pace.collect.dataset import ATOMS, SPLIT
from mlip_pace.collect.files import find_files
from mlip_pace.collect.split import TRAIN
from mlip_pace.errors import JobError
from mlip_pace.inputs import Inputs, inputs_of
from mlip_pace.publish import potential
from mlip_pace.report import telling
from mlip_pace.run import gpu
from mlip_pace.run.log import Journal
from mlip_pace.settings import Settings
from mlip_pace.train import agreement, estimate, fit, linear, search, weights
from mlip_pace.train.override import load_override
from mlip_pace.train.pacemaker import PacemakerRunner


def check(settings: Settings, journal: Journal) -> dict[str, Any]:
    """Refuse what `run_job` would refuse before it fits, and say what it would do. Writes no file.

    Returns the plan: counts, elements, E0, reference, functions, parameters, `seconds`, `left_out`, `warnings`; where
    pacemaker has a part in the fit also `batch_size`, `memory` (bytes) and its `input_yaml`.
    """
    settings = settings.of_member()
    _refuse(settings)
    inputs = inputs_of(settings)
    if job.already_published(settings, inputs.stages()) is not None:
        journal.say(f"{settings.output.path} holds the potential of just these inputs: run would have nothing to do")
    in_vain = inputs.in_vain()
    telling.say_warnings(journal, in_vain)
    journal.enter("collect")
    test = None if inputs.test_files is None else dataset.structures_of(inputs.test_files)
    threads = job.threads(settings)
    frames, collected = dataset.assemble(dataset.structures_of(inputs.files), test, inputs.rules(), threads)
    telling.say_collected(journal, collected, "the last line of `mlip-pace check --json`")
    journal.enter("subtract")
    target, subtracted = reference.subtracted_from(frames, settings.reference, inputs.cutoff, threads)
    telling.say_subtracted(journal, subtracted)
    moved = inputs.moved(collected.e0, subtracted.reference)
    telling.say_warnings(journal, moved)
    journal.enter("train")
    shortest = core.shortest_of_every_pair(subtracted.shortest, collected.elements)
    build, train = inputs.builder(collected.elements, shortest), target[target[SPLIT] == TRAIN]
    weights.refuse_unknown(target, settings.training.weights)
    weights.loss_weights(train, settings.training)
    first, wanted = inputs.basis_settings.first, search.wanted(inputs.basis_settings)
    built = build(*first)
    doubt = agreement.doubt_about_stresses(train, partial(build, first[0]), settings.training.seed, threads)
    doubts = [doubt] if doubt else []
    telling.say_warnings(journal, doubts)
    size = basis.size(built)
    if wanted:
        judged_by = linear.sample(train, built, settings.training.seed)
        tries = ", ".join(f"{cutoff:g} Å with {count}" for cutoff, count in wanted)
        journal.say(f"cutoff and functions by evidence of {len(judged_by)} structures, of at most these: {tries}")
        journal.say(f"what follows is for {first[0]:g} Å and {first[1]} functions")
    functions = ", ".join(f"{count} functions of {symbol}" for symbol, count in size.functions.items())
    journal.say(f"{functions}, {size.parameters} parameters, at most {settings.training.max_epochs} iterations")
    pacemaker = inputs.needs_pacemaker
    seconds = estimate.seconds(built, train[ATOMS].array, settings.training.max_epochs, threads, pacemaker)
    journal.say(
        f"about {seconds['linear_start']:.0f} s for the linear start, {seconds['training']:.0f} s for all iterations, which "
        f"end when they gain no more, {seconds['last_solve']:.0f} s for the last solve ({threads} threads; to a "
        "factor of two or so)"
    )
    if settings.probe.rounds:
        journal.say(f"then the search for holes, {settings.probe.share:.0%} of the time of the fit or a minute, at most")
    if settings.physics.names:
        journal.say(
            f"then what it says of crystals, {settings.physics.share:.0%} of the time of the job or half a minute, at most"
        )
    plan = {
        **asdict(collected),
        "reference": subtracted.reference.as_dict(),
        "shortest": subtracted.shortest,
        "functions": size.functions,
        "parameters": size.parameters,
        "basis": wanted or [first],
        "iterations": settings.training.max_epochs,
        "threads": threads,
        "seconds": seconds,
        "warnings": in_vain + collected.warnings + subtracted.warnings + moved + doubts,
    }
    return plan | (_of_pacemaker(inputs, built, target, journal) if pacemaker else {})


def _of_pacemaker(inputs: Inputs, built: Basis, target: Any, journal: Journal) -> dict[str, Any]:
    """What pacemaker would take and get."""
    train, training = target[target[SPLIT] == TRAIN], inputs.settings.training
    with tempfile.TemporaryDirectory() as scratch:
        runner = PacemakerRunner(Path(scratch), built, training, inputs.override)
        batch = runner.batch_size(train)
        stage = inputs.settings.output.path / "work" / "5-train"
        first = (
            stage / fit.LEAST_SQUARES / "iteration-0.yaml" if fit.starts_linear(training, inputs.start is not None) else None
        )
        text = runner.render(train, len(train) < len(target), start=first)
    memory = estimate.memory(batch * train[ATOMS].map(len).mean(), runner.functions)
    journal.say(f"about {memory['needed'] / 2**30:.1f} GB of {memory['available'] / 2**30:.1f} GB of memory for pacemaker")
    if memory["needed"] > memory["available"]:
        journal.warn("that is more than there is: lower MLIP_PACE_TRAINING_BATCH_SIZE or MLIP_PACE_BASIS_FUNCTIONS")
    found = "" if training.kappa != "auto" else ", where `kappa: auto` is what cross-validation finds in the run"
    journal.say(f"pacemaker's input.yaml{found}:\n" + text)
    return {"batch_size": batch, "memory": memory, "input_yaml": text}


def _refuse(settings: Settings) -> None:
    """Raise all that can be refused before any data are read as one error, of the kind of the first."""
    probes: tuple[Callable[[], Any], ...] = (
        lambda: find_files(settings.data.path),
        lambda: find_files(settings.data.test_path) if settings.data.test_path else None,
        lambda: load_override(settings.training.override),
        lambda: basis.to_start_from(settings.training.start),
        lambda: potential.refuse_unwritable(settings.output.path),
        lambda: gpu.refuse_missing(settings.run.device),
    )
    refused = []
    for probe in probes:
        try:
            probe()
        except JobError as error:
            refused.append(error)
    if refused:
        raise type(refused[0])("\n".join(e.message for e in refused), "\n".join(e.hint for e in refused if e.hint))
