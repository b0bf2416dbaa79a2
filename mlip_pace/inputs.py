"""What a job is given: its settings and the files that they name, and what each of its stages depends on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mlip_pace.ace import basis
from mlip_pace.ace.basis import Basis, BasisFile, Section
from mlip_pace.ace.shapes import FEW
from mlip_pace.collect import dataset
from mlip_pace.collect.files import InputFile, digests_of, find_files
from mlip_pace.errors import SettingsError
from mlip_pace.publish import potential
from mlip_pace.publish.potential import SIDECAR
from mlip_pace.reference import Reference
from mlip_pace.run.steps import Stage, plan, sha256
from mlip_pace.settings import BasisSettings, Settings
from mlip_pace.train import fit, linear, search
from mlip_pace.train.override import load_override, merged
from mlip_pace.train.search import Build

# The version of each stage: raised when the same inputs give another result, so that what was made before is made anew.
COLLECT, SUBTRACT, BASIS, SELECT, TRAIN, EVALUATE, PHYSICS = 7, 1, 3, 2, 6, 4, 5

# Settings that have no effect beside another: of each kind of reference, and of a basis that is in a file.
REFERENCE_IN_VAIN = {
    "zbl": ("epsilon", "sigma"),
    "lj": (),
    "none": ("inner", "outer", "epsilon", "sigma"),
}
BASIS_IN_VAIN = tuple(name for name in BasisSettings.model_fields if name != "elements")


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
            if len(elements) > FEW and fit.starts_linear(self.settings.training, False):
                linear.refuse_too_many(functions, len(elements))  # before it is built, which takes a minute for sixty
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
        for name in REFERENCE_IN_VAIN[settings.reference.kind]:
            del group["reference"][name]
        for name in BASIS_IN_VAIN if self.start else ():
            del group["basis"][name]
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
        settings, kind = self.settings, self.settings.reference.kind

        def given(group: str, fields: Iterable[str]) -> list[str]:
            names = [f"{group}_{field}".upper() for field in fields]
            return [f"MLIP_PACE_{name}" for name in names if settings.origins.get(name, "default") != "default"]

        unused = [
            (given("reference", REFERENCE_IN_VAIN[kind]), f" with MLIP_PACE_REFERENCE_KIND={kind}"),
            (given("basis", BASIS_IN_VAIN if self.start else ()), ", the basis is that of MLIP_PACE_TRAINING_START"),
        ]
        if not self.needs_pacemaker:
            names = given("training", fit.FOR_PACEMAKER) + given("run", ["gpu_memory"])
            names += [f"`{section}` of MLIP_PACE_TRAINING_OVERRIDE" for section in self.override if section != "potential"]
            names += ["MLIP_PACE_RUN_DEVICE=gpu"] * (settings.run.device == "gpu")
            iterations = "" if settings.training.max_epochs else " with iterations"
            why = (
                ", it is for pacemaker's optimizers, and this fit is by least squares and variable projection on the CPU "
                f"(MLIP_PACE_TRAINING_OPTIMIZER=BFGS{iterations} would use pacemaker)"
            )
            unused.append((names, why))
        return [f"{', '.join(names)}: no effect{why}" for names, why in unused if names]

    def moved(self, e0: dict[str, float], reference: Reference) -> list[str]:
        """What is not as it was for the potential to go on from, in words: that holds what other E0 (eV) and reference left.

        Nothing is known of a file without the sidecar that names it, so nothing is said.
        """
        before = potential.intact(self.start.path.with_name(SIDECAR)) if self.start else None
        if self.start is None or before is None or self.start.path.name not in before.metadata["files"]:
            return []
        said, known = [], before.metadata["e0"]["energies"]
        shifts = {
            symbol: energy - known[symbol] for symbol, energy in e0.items() if abs(energy - known.get(symbol, energy)) > 1e-6
        }
        if shifts:
            told = ", ".join(f"{symbol} by {shift:.3g} eV" for symbol, shift in shifts.items())
            kept = ",".join(f"{symbol}:{known[symbol]:.13g}" for symbol in e0 if symbol in known)
            said.append(
                f"E0 is not that of the potential to go on from, whose energies move with it ({told}): "
                f"MLIP_PACE_DATA_E0={kept} keeps it"
            )
        if differing := reference.differing(before.reference):
            kept = ", ".join(f"MLIP_PACE_REFERENCE_{name.upper()}={value}" for name, value in differing.items())
            said.append(
                f"the reference is not that of the potential to go on from, which holds the rest of another: {kept} keeps it"
            )
        return said


def inputs_of(settings: Settings) -> Inputs:
    """Find and read what the settings name. Raises `NoInputError`, `SettingsError`."""
    files = find_files(settings.data.path)
    test_files = None if settings.data.test_path is None else find_files(settings.data.test_path)
    digests = digests_of(files) | {f"test:{name}": digest for name, digest in digests_of(test_files or []).items()}
    override, start = load_override(settings.training.override), basis.to_start_from(settings.training.start)
    return Inputs(settings, files, test_files, digests, override, start)
