"""Every setting: one group for each stage. `sources.py` reads them from the environment. Units: eV, Å, s."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from mlip_pace.errors import SettingsError

PREFIX = "MLIP_PACE_"
_ARRAY_INDEX = ("JOB_COMPLETION_INDEX", "SLURM_ARRAY_TASK_ID")

ELEMENTS = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr
Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir
Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr
""".split()  # noqa: SIM905 (a list of 103 quoted symbols reads worse)


def _split(value: Any) -> Any:
    return [item for item in re.split(r"[,\s]+", value.strip()) if item] if isinstance(value, str) else value


def _elements(value: Any) -> Any:
    symbols = _split(value)
    unknown = [str(symbol) for symbol in symbols or [] if symbol not in ELEMENTS]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no chemical element; symbols such as Al or Mg are expected")
    return sorted(set(symbols)) if symbols else None


def _per_key(value: Any) -> Any:
    """`Al:-0.12,Cu:-0.2` as a dict; anything else unchanged."""
    if not isinstance(value, str) or ":" not in value:
        return value
    pairs = [item.partition(":") for item in _split(value)]
    return {key.strip(): number for key, _, number in pairs}


def _e0(value: Any) -> Any:
    value = _per_key(value)
    if isinstance(value, dict):
        _elements(list(value))
    elif value not in ("auto", "none"):
        raise ValueError("auto, none, or energies of atoms in eV such as Al:-0.12,Cu:-0.2")
    return value


def _per_pair(value: Any) -> Any:
    """Pairs written `Al-Cu:0.3`, in either order, as `{"Al-Cu": 0.3}` with the symbols sorted."""
    value = _per_key(value)
    if not isinstance(value, dict):
        return value
    result = {}
    for pair, number in value.items():
        symbols = pair.split("-")
        if len(symbols) != 2:
            raise ValueError(f"{pair!r}: a pair of elements such as Al-Cu is expected")
        _elements(symbols)
        result["-".join(sorted(symbols))] = number
    return result


def _per_config_type(value: Any) -> Any:
    """`Surface:10,Liquid:energy:0.5` as `{"Surface": 10, "Liquid:energy": 0.5}`; a config_type may have spaces."""
    if not isinstance(value, str):
        return value
    parts = [item.rpartition(":") for item in value.split(",") if item.strip()]
    if not all(name.strip() for name, _, _ in parts):
        raise ValueError("a config_type and its weight, such as Surface:10 or Surface:energy:10, is expected")
    return {name.strip(): weight for name, _, weight in parts}


def _duration(value: Any) -> Any:
    """Seconds from `90`, `2h30m`, `1d12h`, `45s`."""
    if not isinstance(value, str) or re.fullmatch(r"[0-9.]+", value):
        return value
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", value.strip())
    if not value.strip() or match is None:
        raise ValueError("seconds, or a duration such as 2h30m")
    return sum(int(n or 0) * unit for n, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True))


def _ladder(steps: list[float] | None) -> list[float] | None:
    if steps is not None and (len(steps) not in (1, 2) or any(s <= 0 or (s >= 1 and s % 1) for s in steps)):
        raise ValueError("a whole number, a fraction below 1, or one of each, such as 10,0.02, is expected")
    return steps


def _properties(value: Any) -> Any:
    return value if value in ("all", "none") else _split(value)


def _known(names: str | list[str]) -> str | list[str]:
    if isinstance(names, list) and (unknown := [name for name in names if name not in PROPERTIES]):
        raise ValueError(f"{', '.join(unknown)}: all, none, or some of {', '.join(PROPERTIES)}, is expected")
    return names


def _scheduler(where: str | None) -> str | None:
    if where is not None and "://" in where and not re.fullmatch(r"(tcp|tls)://.+:\d+", where):
        raise ValueError("tcp://host:8786, tls://host:8786, or the path of a scheduler file")
    return where


PROPERTIES = (
    "equation",
    "elastic",
    "phonons",
    "vacancies",
    "surfaces",
    "dynamics",
)  # of crystals, in the order that they are computed in
CUTOFFS = (4.5, 5.0, 5.5, 6.0, 7.0, 8.0)  # Å, that are tried for BASIS_CUTOFF=auto

Positive = Annotated[float, Field(gt=0)]
Elements = Annotated[list[str] | None, BeforeValidator(_elements)]
E0 = Annotated[Literal["auto", "none"] | dict[str, float], BeforeValidator(_e0)]
PerPair = Annotated[Literal["auto"] | float | dict[str, float], BeforeValidator(_per_pair)]
TimeLimit = Annotated[Positive | None, BeforeValidator(_duration)]
PerConfigType = Annotated[dict[str, Annotated[float, Field(ge=0)]], BeforeValidator(_per_config_type)]
Scheduler = Annotated[str | None, AfterValidator(_scheduler)]
LadderStep = Annotated[list[float] | None, BeforeValidator(_split), AfterValidator(_ladder)]
Properties = Annotated[Literal["all", "none"] | list[str], BeforeValidator(_properties), AfterValidator(_known)]
AutoOrPositive = Literal["auto"] | Positive


def setting(default: Any, meaning: str, unit: str = "", **limits: Any) -> Any:
    return Field(default, description=meaning, json_schema_extra={"unit": unit}, **limits)


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(Group):
    path: str = setting("/data", "a file, a directory (searched recursively) or a glob")
    test_path: str | None = setting(None, "test data of their own, same rules; nothing is held out of PATH then")
    test_fraction: float = setting(0.05, "held out of PATH, by group, if there is no TEST_PATH", ge=0, lt=1)
    energy_key: str = setting("auto", "key of the energy in extended XYZ, .db, .json, .traj")
    forces_key: str = setting("auto", "key of the forces")
    stress_key: str = setting("auto", "key of the stress; `none`: leave stresses out")
    e0: E0 = setting("auto", "`auto` (isolated atoms, else least squares), `none`, or `Al:-0.12,Cu:-0.2`", "eV")
    unconverged: Literal["leave_out", "keep"] = setting(
        "leave_out",
        "structures whose calculation is not valid (SCF not converged, fixed density, …); `keep`: use them, with a warning",
    )
    max_force: Positive | None = setting(None, "leave out structures with a larger force on an atom", "eV/Å")
    max_energy: Positive | None = setting(None, "leave out structures further above the lowest E - E0", "eV/atom")
    max_rejected: float = setting(
        0.05, "fraction of the structures that may be unusable; with more the job is refused", ge=0, le=1
    )


class ReferenceSettings(Group):
    kind: Literal["zbl", "lj", "none"] = setting("zbl", "reference potential that is subtracted before the fit")
    inner: AutoOrPositive = setting("auto", "inner switching radius; auto: half of OUTER", "Å")
    outer: AutoOrPositive = setting("auto", "outer switching radius; auto: 0.85 of the shortest bond length", "Å")
    epsilon: PerPair = setting("auto", "for `lj`: one value or `Al-Mg:0.1,…`", "eV")
    sigma: PerPair = setting("auto", "for `lj`: one value or `Al-Mg:2.5,…`", "Å")

    @field_validator("outer")
    @classmethod
    def _beyond_inner(cls, outer: Any, info: ValidationInfo) -> Any:
        inner = info.data.get("inner")
        if isinstance(inner, float) and isinstance(outer, float) and inner >= outer:
            raise ValueError(f"more than {PREFIX}REFERENCE_INNER={inner} is expected")
        return outer


class BasisSettings(Group):
    elements: Elements = setting(None, "elements of the potential; none: those of the data")
    cutoff: Literal["auto"] | Annotated[float, Field(gt=1, le=15)] = setting(
        "auto", "cutoff radius; auto: that of 4.5 to 8 Å with the highest evidence", "Å"
    )
    functions: Literal["auto"] | Annotated[int, Field(ge=1, le=20000)] = setting(
        500, "functions per element, at most; auto: that of 125 to 1000 with the highest evidence"
    )
    body_order: int = setting(5, "highest body order (central atom included)", ge=2, le=7)
    embedding: Literal["linear", "finnis-sinclair"] = setting(
        "finnis-sinclair", "`linear`: E = ρ; `finnis-sinclair`: E = ρ1 + sqrt(ρ2), with ρ2 for pacemaker's optimizers only"
    )

    @property
    def first(self) -> tuple[float, int]:
        """Cutoff (Å) and number of functions as they are set, or where the search for them begins."""
        return (5.0 if self.cutoff == "auto" else self.cutoff, 500 if self.functions == "auto" else self.functions)

    @property
    def cutoffs(self) -> tuple[float, ...]:
        """Those that the potential may come to have (Å), ascending."""
        return CUTOFFS if self.cutoff == "auto" else (self.cutoff,)


class SelectionSettings(Group):
    method: Literal["doptimal", "none"] = setting("doptimal", "choice of the training structures before the fit")
    max_structures: int | None = setting(None, "choose this many, if there are so many; none: as many as it takes", ge=1)


class TrainingSettings(Group):
    """How the fit goes: weights of the loss, start, optimizer, iterations, seed."""

    kappa: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = setting(
        0.01, "weight of forces (eV/Å) against energies (eV/atom); `auto`: by cross-validation"
    )
    start: str = setting(
        "auto", "`linear`: least squares; `zero`; a B-basis `.yaml` to refine; auto: linear, but zero with a ladder"
    )
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = setting("auto", "structures in a batch of pacemaker")
    ladder_step: LadderStep = setting(None, "pacemaker: grow the basis in steps: a number, a fraction, or both (`10,0.02`)")
    ladder_type: Literal["body_order", "power_order"] = setting("body_order", "pacemaker: what the ladder adds first")
    max_epochs: int = setting(10, "iterations, at most (of each ladder step, if there is one); 0: the start alone", ge=0)
    weighting: Literal["uniform", "energy"] = setting("uniform", "`energy`: low-energy structures weigh more")
    weights: PerConfigType = setting(
        {}, "weights of config_types in the loss, `Surface:10,Liquid:0.5`; of energies, forces or stresses: `Surface:energy:10`"
    )
    optimizer: Literal["auto", "BFGS", "L-BFGS-B"] = setting(
        "auto", "auto: variable projection after a linear start, else BFGS; BFGS and L-BFGS-B are pacemaker's"
    )
    l1: float = setting(1e-8, "L1 regularisation of the function coefficients by pacemaker's optimizers", ge=0)
    l2: float = setting(1e-8, "L2 regularisation of the function coefficients by pacemaker's optimizers", ge=0)
    early_stopping_patience: int = setting(50, "iterations of pacemaker's optimizers without gain before they end", ge=1)
    early_stopping_gain: float = setting(
        1e-4, "relative gain of the loss per iteration that counts as one there; 0 turns early stopping off", ge=0
    )
    display_step: int = setting(20, "iterations of pacemaker's optimizers between looks at the test set", ge=1)
    seed: int = setting(42, "seed of the split into train and test, of variable projection and of pacemaker", ge=0, lt=2**32)
    override: Path | None = setting(
        None, "YAML file that is merged into pacemaker's input.yaml; its `potential` counts for any fit"
    )

    @field_validator("max_epochs")
    @classmethod
    def _something_to_do(cls, epochs: int, info: ValidationInfo) -> int:
        if epochs == 0 and (info.data.get("start") == "zero" or info.data.get("ladder_step")):
            raise ValueError(f"0 needs {PREFIX}TRAINING_START=linear and no ladder")
        return epochs


class ProbeSettings(Group):
    """The search for holes: structures unlike the data whose energies cannot be."""

    rounds: int = setting(8, "of the search for holes after the fit, at most; until two of them find nothing; 0: none", ge=0)
    share: float = setting(
        0.2,
        "of the time of the fit, that the search may take; a minute in any case, of a time limit never more than this",
        gt=0,
        le=1,
    )


class PhysicsSettings(Group):
    """What the potential says of the crystals of its data."""

    properties: Properties = setting(
        "all", f"of the crystals of the data, dynamics also of what is none: {', '.join(PROPERTIES)}; or all, or none"
    )
    share: float = setting(
        0.2,
        "of the time of the job, that they may take; half a minute in any case, of a time limit never more than this",
        gt=0,
        le=1,
    )

    @property
    def names(self) -> list[str]:
        """Those that are computed, in the order that they are computed in."""
        return [name for name in PROPERTIES if self.properties == "all" or name in self.properties]


class EvaluateSettings(Group):
    max_energy_rmse: Positive | None = setting(None, "quality gate on the test set (exit code 81)", "eV/atom")
    max_forces_rmse: Positive | None = setting(None, "quality gate on the test set (exit code 81)", "eV/Å")


class OutputSettings(Group):
    path: Path = setting(Path("/out"), "where the results go")
    overwrite: bool = setting(False, "replace the result of other inputs; the old one is kept aside")
    committee: int = setting(
        0, "so many potentials drawn from the posterior of the fit, for committees in LAMMPS", ge=0, le=100
    )


class RunSettings(Group):
    device: Literal["auto", "cpu", "gpu"] = setting("auto", "where pacemaker computes; all else is for the CPU")
    gpu_memory: Literal["grow", "all"] = setting("grow", "pacemaker takes GPU memory as needed, or all at the start")
    threads: Literal["auto"] | Annotated[int, Field(ge=1)] = setting(
        "auto",
        "threads of pacemaker, processes of all else (predict, suggest: always auto); auto: what affinity, cgroup, SLURM leave",
    )
    member: Literal["auto"] | Annotated[int, Field(ge=0)] | None = setting(
        None, "of an ensemble: its number is added to SEED, its output goes to `member-N`; `auto`: that of the array job"
    )
    scheduler: Scheduler = setting(
        None, "of a Dask cluster that computes instead: tcp://host:8786, tls://host:8786, or the path of its scheduler file"
    )
    time_limit: TimeLimit = setting(None, "publish the potential so far and stop by then: seconds, or such as 2h30m", "s")
    log_format: Literal["auto", "text", "json"] = setting("auto", "auto: text on a terminal, JSON lines otherwise")


class Settings(BaseModel):
    """All groups, and where each value came from (`{"DATA_PATH": "environment", ...}`)."""

    data: DataSettings = Field(default_factory=DataSettings)
    reference: ReferenceSettings = Field(default_factory=ReferenceSettings)
    basis: BasisSettings = Field(default_factory=BasisSettings)
    selection: SelectionSettings = Field(default_factory=SelectionSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    probe: ProbeSettings = Field(default_factory=ProbeSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    physics: PhysicsSettings = Field(default_factory=PhysicsSettings)
    output: OutputSettings = Field(default_factory=OutputSettings)
    run: RunSettings = Field(default_factory=RunSettings)
    origins: dict[str, str] = Field(default_factory=dict)

    def of_member(self, environ: Mapping[str, str] = os.environ) -> Settings:
        """These settings for one member of an ensemble: seed + member, a folder of its own. Raises `SettingsError`."""
        member: int | str | None = self.run.member
        if member == "auto":
            given = [environ[name] for name in _ARRAY_INDEX if environ.get(name)]
            if not given or not given[0].isdecimal():
                raise SettingsError(
                    f"MLIP_PACE_RUN_MEMBER=auto, but {' and '.join(_ARRAY_INDEX)} give no number",
                    "it is for an Indexed Job of Kubernetes or an array job of SLURM; elsewhere give the number itself",
                )
            member = int(given[0])
        if member is None:
            return self
        if self.data.test_path is not None or self.data.test_fraction == 0:
            raise SettingsError(
                "MLIP_PACE_RUN_MEMBER: members differ by the test set that the seed draws; without it they are nearly the same",
                "give MLIP_PACE_DATA_TEST_FRACTION without a TEST_PATH, or have MLIP_PACE_OUTPUT_COMMITTEE drawn from one fit",
            )
        training = self.training.model_copy(update={"seed": self.training.seed + int(member)})
        output = self.output.model_copy(update={"path": self.output.path / f"member-{member}"})
        return self.model_copy(update={"training": training, "output": output})


GROUPS: dict[str, type[Group]] = {
    "data": DataSettings,
    "reference": ReferenceSettings,
    "basis": BasisSettings,
    "selection": SelectionSettings,
    "training": TrainingSettings,
    "probe": ProbeSettings,
    "evaluate": EvaluateSettings,
    "physics": PhysicsSettings,
    "output": OutputSettings,
    "run": RunSettings,
}


def rows() -> list[tuple[str, str, str, str, str]]:
    """`(variable, type, default, unit, meaning)` of every setting, for `mlip-pace settings` and the README."""
    result = []
    for group, cls in GROUPS.items():
        properties = cls.model_json_schema()["properties"]
        for field, info in cls.model_fields.items():
            default = "none" if info.default in (None, {}) else str(info.default)
            kind = _kind(properties[field])
            result.append(
                (f"{PREFIX}{group.upper()}_{field.upper()}", kind, default, properties[field]["unit"], info.description or "")
            )
    return result


def _kind(schema: dict[str, Any]) -> str:
    options = schema.get("anyOf", [schema])
    names = []
    for option in options:
        if "enum" in option or "const" in option:
            names += [str(v) for v in option.get("enum", [option.get("const")])]
        elif option.get("type") == "array":
            names.append("list")
        elif option.get("type") == "object":
            names.append("name:number,…")
        elif option.get("type") != "null":
            names.append({"string": "text", "integer": "whole number", "boolean": "yes/no"}.get(option["type"], option["type"]))
    return ", ".join(names)


def json_schema() -> dict[str, Any]:
    """A JSON schema of the YAML file: one object for each group."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mlip-pace settings",
        "type": "object",
        "additionalProperties": False,
        "properties": {group: cls.model_json_schema() for group, cls in GROUPS.items()},
    }
