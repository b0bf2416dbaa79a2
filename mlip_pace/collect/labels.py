"""Which labels of a structure are taken: energy (eV), forces (n, 3) in eV/Å, stress in eV/Å^3, tension positive (as ASE).

Labels come from one place: keys with the same prefix and suffix, such as `REF_energy`, `REF_forces` and `REF_stress`. The place
is that of a key which the user names; else the first of a calculator's results (`energy`, `forces`, `stress`), `REF_*`,
`dft_*`, `*_dft` that has an energy and forces. `free_energy`, the force-consistent one, comes before `energy`. A stress has six
numbers in Voigt's order (xx, yy, zz, yz, xz, xy) or nine. A `virial` or `virials` (eV) is minus the volume times the stress,
the convention of QUIP, MACE and DeePMD: positive where the structure wants to expand. `energy_corrected`, pacemaker's, has E0
subtracted already. A label is converted from the unit that a key such as `energy-unit` or `REF_forces_unit` names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from mlip_pace.arrays import Array
from mlip_pace.collect.files import NOTE
from mlip_pace.collect.units import ANGSTROM, in_ours
from mlip_pace.settings import DataSettings

_LABEL = re.compile(r"(.*?)(free_energy|energy_corrected|energy|forces?|stress|virials?)(.*)", re.IGNORECASE)
# What each name is, the better one first.
_NAMES = {
    "energy": ("free_energy", "energy", "energy_corrected"),
    "forces": ("forces", "force"),
    "stress": ("stress", "virial", "virials"),
}
_DFT = ("dft_", "")
_USUAL = (("", ""), ("ref_", ""), _DFT, ("", "_dft"))
# Names that look like labels; whether they are, only the user can say.
_ALIKE = {
    "energy": re.compile(r"^(?!.*per_?atom)(.*energ|.*toten|e(_|$)|.*_e(_|$)|u0?$)", re.IGNORECASE),
    "forces": re.compile(r"forc|frc|grad|^f(_|$)|_f(_|$)", re.IGNORECASE),
    "stress": re.compile(r"stress|virial|^vir(_|$)|_vir(_|$)", re.IGNORECASE),
}
# But about one: pacemaker's `w_energy`, a tolerance of an energy.
_NO_LABEL = re.compile(r"^w_|weight|uncertainty|spread|[-_]units?$|[-_]tol(erance)?$", re.IGNORECASE)
_UNIT = re.compile(r"(.+)[-_]units?", re.IGNORECASE)  # of a label that is called so
_LENGTHS = re.compile(r"length|distance|pos|positions?|coord\w*|cell|lattice", re.IGNORECASE)
_PREDICTED = ("energy_uncertainty", "max_gamma")  # what `mlip-pace predict` writes beside energies that are a potential's
_ARTICLE = {"energy": "an energy", "forces": "forces", "stress": "a stress"}
# Numbers of a structure that are no energy, of those that are not called like one either.
_NO_ENERGY = re.compile(
    r"vol|temp|time|press|gap|mag|charge|dens|cutoff|angle|dist|strain|spacing|step|entrop|rms|error|per_?atom|tol$",
    re.IGNORECASE,
)
# Parts of the names that ASE gives the calculators of DFT programs. Others may be of potentials: there are ever more of these.
_DFT_PROGRAMS = re.compile(
    "abacus|abinit|aims|bigdft|castep|conquest|cp2k|crystal|dacapo|dftd|dftk|dmol|elk|espresso|exciting|fleur|gaussian|gpaw|"
    "jdftx|mixed|nwchem|octopus|onetep|openmx|orca|psi4|pwscf|pyscf|qchem|siesta|single|sum|turbomole|unknown|vasp|wien",
    re.IGNORECASE,
)
_SHOWN = 6  # keys that may be an energy, by no more than being a float
_SAME = 1e-5  # eV/atom, eV/Å, eV/Å^3; less is how labels are rounded

Family = tuple[str, str]  # prefix and suffix, in lower case


class Broken(Exception):
    """A structure cannot be used; says why."""


class Labels(NamedTuple):
    """`found` has energy, forces and stress as they were given; `keys` names where; `notes` are what a user should know."""

    found: dict[str, Any]
    keys: str
    notes: tuple[str, ...]


def labels(atoms: Atoms, data: DataSettings) -> Labels:
    """The labels of a structure and where they are from. Raises `Broken` if it has no energy, or no forces of the same place.

    A single atom needs no forces: nothing is there to push it.
    """
    has = {} if atoms.calc is None else dict(atoms.calc.results)
    has |= {key: value for key, value in (*atoms.info.items(), *atoms.arrays.items()) if key not in (*_GEOMETRY, *has)}
    has = {k: value for k, value in has.items() if isinstance(k, str) and value is not None and not _NO_LABEL.search(k)}
    has, units = _in_our_units(has, atoms.info)
    families = _families(tuple(has))
    named = {kind: key for kind in _NAMES if (key := str(getattr(data, f"{kind}_key"))) != "auto"}
    if missing := [kind for kind, key in named.items() if key not in has and kind != "stress"]:
        kind = missing[0]
        raise Broken(f"no {kind} under the key {named[kind]!r} ({_setting(kind)})" + _hint(missing, has, {}, len(atoms)))
    family = _chosen(families, named, len(atoms))
    predicted = not named and family == _USUAL[0] and any(key in atoms.info for key in _PREDICTED)
    if predicted and {"energy", "forces"} <= set(families.get(_DFT, ())):
        family, predicted = _DFT, False
    place = {**families.get(family, {}), **named}
    if place.get("stress") not in has:
        place.pop("stress", None)
    needed = ("energy",) if len(atoms) == 1 else ("energy", "forces")
    if missing := [kind for kind in needed if kind not in place]:
        beside = next((f" beside {key!r} ({_setting(kind)})" for kind, key in named.items() if kind in needed), "")
        raise Broken(f"no {' and '.join(missing)}{beside}" + _hint(missing, has, place, len(atoms)))
    found = {kind: has[key] for kind, key in place.items()}
    notes = [] if named else _other_sets(has, found, place, families, len(atoms))
    notes += _unused(has, found, place, family, families, named)
    notes += _named_units(place.values(), units)
    notes += [str(atoms.info[NOTE])] if NOTE in atoms.info else []
    if predicted:
        beside = next(key for key in _PREDICTED if key in atoms.info)
        notes.append(f"{place['energy']!r} is taken beside {beside!r}, as `mlip-pace predict` writes them: is it DFT's?")
    if "corrected" in place["energy"].lower():
        notes.append(
            f"the energy is taken from {place['energy']!r}; if E0 is subtracted there already, as pacemaker has it, "
            "set MLIP_PACE_DATA_E0=none"
        )
    if len(atoms) > 1 and _plausible("energy", found["energy"], 1) and np.asarray(found["energy"], dtype=float) == 0:
        notes.append("an energy of exactly 0, which DFT does not give: is it a placeholder?")
    name = getattr(atoms.calc, "name", None)
    if name and not _DFT_PROGRAMS.search(name):
        notes.append(f"the labels are those of {name!r}, as the file itself says: is that DFT, or a potential?")
    if "stress" in place and "virial" in place["stress"].lower():
        found["stress"] = _stress(found["stress"], atoms)
    elif "stress" in place and "stress" not in named and (other := _contradicted(found["stress"], has, family, atoms)):
        notes.append(
            f"the stress is not used: {place['stress']!r} is not minus {other!r} over the volume; {_setting('stress')} names "
            "the one to take"
        )
        found.pop("stress")
        place.pop("stress")
    return Labels(found, " ".join(f"{kind}={place[kind]}" for kind in _NAMES if kind in place), tuple(notes))


_GEOMETRY = ("numbers", "positions")


def is_label(key: Any) -> bool:
    """Whether a key is called as a label is, or looks like one."""
    return isinstance(key, str) and (_parsed(key) is not None or any(pattern.search(key) for pattern in _ALIKE.values()))


def _in_our_units(has: Mapping[str, Any], info: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, tuple[str, float]]]:
    """The labels in eV and Å; and of those whose unit is named, that, and how much it is (none: it is not known).

    Raises `Broken` if lengths are in another unit: the reader has taken them as Å.
    """
    named = {match[1]: str(unit) for key, unit in info.items() if isinstance(key, str) and (match := _UNIT.fullmatch(key))}
    if lengths := [
        f"{key!r} in {unit!r}" for key, unit in named.items() if _LENGTHS.fullmatch(key) and unit.lower() not in ANGSTROM
    ]:
        raise Broken(f"{', '.join(lengths)}: lengths in Å are expected")
    of_kind = {(_dimension(parsed[0]), parsed[2]): unit for key, unit in named.items() if (parsed := _parsed(key))}
    result, units = dict(has), dict[str, tuple[str, float]]()
    for key, value in has.items():
        parsed, dimension, unit = _parsed(key), "energy", named.get(key)
        if parsed is not None:
            dimension = _dimension(parsed[0])
            unit = unit or of_kind.get((dimension, parsed[2]))
            if dimension == "virial":  # an energy
                unit, dimension = unit or of_kind.get(("energy", parsed[2])), "energy"
        if unit is None:
            continue
        try:
            units[key] = unit, in_ours(unit, dimension)
            result[key] = np.asarray(value, dtype=float) * units[key][1]
        except ValueError:
            units.setdefault(key, (unit, np.nan))
    return result, units


def _dimension(name: str) -> str:
    return "virial" if name.startswith("virial") else next(kind for kind, names in _NAMES.items() if name in names)


def _named_units(keys: Iterable[str], units: Mapping[str, tuple[str, float]]) -> list[str]:
    """Which labels are converted. Raises `Broken` if a unit is not known."""
    those = {key: units[key] for key in keys if key in units}
    if unknown := [f"{key!r} is in {unit!r}" for key, (unit, factor) in those.items() if not factor > 0]:
        raise Broken(f"{', '.join(unknown)}: no unit that is known")
    converted = [f"{key!r} from {unit}" for key, (unit, factor) in those.items() if factor != 1]
    return [f"labels are converted as the file says: {', '.join(converted)}"] if converted else []


def kinds_of_energy(keys: Mapping[str, int]) -> list[str]:
    """What a user should know of energies of several kinds, from the keys of labels and their numbers of structures."""
    counts = Counter[str]()
    for told, count in keys.items():
        key = dict(part.split("=", 1) for part in told.split(" ") if "=" in part).get("energy", "")
        if (parsed := _parsed(key)) is not None:
            counts[parsed[0]] += count
    if not (counts["free_energy"] and counts["energy"]):
        return []
    return [
        f"energies are of two kinds: the free energy, which forces belong to, of {counts['free_energy']} structures, and what "
        f"is called energy of {counts['energy']}, which have no other; where electrons are smeared these differ: take one kind "
        "for all"
    ]


def _setting(kind: str) -> str:
    return f"MLIP_PACE_DATA_{kind.upper()}_KEY"


@lru_cache(maxsize=1024)
def _parsed(key: str) -> tuple[str, str, Family] | None:
    """What a key is called, of which kind that is, and its family."""
    match = _LABEL.fullmatch(key)
    if match is None:
        return None
    name = match[2].lower()
    kind = next(kind for kind, names in _NAMES.items() if name in names)
    return name, kind, (match[1].lower(), match[3].lower())


@lru_cache(maxsize=1024)
def _families(keys: tuple[str, ...]) -> dict[Family, dict[str, str]]:
    """The keys of energy, forces and stress of each family."""
    families: dict[Family, dict[str, str]] = {}
    ranks: dict[tuple[Family, str], int] = {}
    for key in keys:
        if (parsed := _parsed(key)) is not None:
            name, kind, family = parsed
            rank = _NAMES[kind].index(name)
            if rank < ranks.get((family, kind), len(_NAMES[kind])):
                ranks[family, kind] = rank
                families.setdefault(family, {})[kind] = key
    return families


def _chosen(families: Mapping[Family, Mapping[str, str]], named: Mapping[str, str], count: int) -> Family:
    """The family of a key that the user names, else the first usual one that has what is needed."""
    if "energy" in named or "forces" in named:
        parsed = _parsed(named.get("energy", named.get("forces", "")))
        return parsed[2] if parsed is not None else ("?", "?")
    needed = [{"energy", "forces"}, *([{"energy"}] if count == 1 else [])]
    usual = list(_USUAL)
    if (parsed := _parsed(named.get("stress", ""))) is not None:
        usual.insert(0, parsed[2])
    complete = (family for needs in needed for family in usual if needs <= set(families.get(family, ())))
    some = (family for family in usual if set(families.get(family, ())) & {"energy", "forces"})
    return next(chain(complete, some), ("?", "?"))


def _plausible(kind: str, value: Any, count: int) -> bool:
    """Whether a value has the shape of such a label."""
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        return False
    return {"energy": array.size == 1 and array.ndim <= 1, "forces": array.shape == (count, 3), "stress": array.size in (6, 9)}[
        kind
    ]


def _hint(missing: Sequence[str], has: Mapping[str, Any], place: Mapping[str, str], count: int) -> str:
    """Which keys may be what is missing, and the settings that take them with the labels that are there; of several of a kind
    only the user can say which.
    """
    others = {key: value for key, value in has.items() if key not in place.values()}
    alike = {kind: _candidates(kind, others, count) for kind in missing}
    names = [key for keys in alike.values() for key in keys]
    if not names:
        return ""
    said = f"; {' and '.join(map(repr, names))} may be what is missing: "
    if several := [_setting(kind) for kind, keys in alike.items() if len(keys) > 1]:
        return said + " and ".join(f"{setting} names the one to take" for setting in several)
    first = {kind: next(iter(alike.get(kind, ())), place.get(kind)) for kind in ("energy", "forces")}
    return said + "set " + " ".join(f"{_setting(kind)}={key}" for kind, key in first.items() if key is not None)


def _candidates(kind: str, others: Mapping[str, Any], count: int) -> list[str]:
    """The keys that are called like a label of this kind; if none is called like an energy, the first few that are floats."""
    fit = [key for key, value in others.items() if _plausible(kind, value, count)]
    called = [key for key in fit if _ALIKE[kind].search(key)]
    floats = [key for key in fit if isinstance(others[key], float) and not _NO_ENERGY.search(key)]
    return called or (floats[:_SHOWN] if kind == "energy" else [])


def _same(kind: str, one: Any, other: Any, count: int) -> bool:
    try:
        difference = np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).max()
    except (TypeError, ValueError):
        return False
    return bool(difference <= _SAME * (count if kind == "energy" else 1))


def _other_sets(
    has: Mapping[str, Any], found: Mapping[str, Any], place: Mapping[str, str], families: Mapping[Family, Mapping[str, str]],
    count: int,
) -> list[str]:  # fmt: skip
    """Whole sets of other labels that the structure has: taking one of them is a choice."""
    notes = []
    for keys in families.values():
        if {"energy", "forces"} <= set(keys) and keys["energy"] != place["energy"]:
            differ = [kind for kind in ("energy", "forces") if not _same(kind, found.get(kind, 0.0), has[keys[kind]], count)]
            if differ:
                notes.append(
                    f"there are two sets of labels, and their {' and '.join(differ)} differ: {place['energy']!r} is taken, "
                    f"{keys['energy']!r} is not; {_setting('energy')} names the one to take"
                )
    return notes


def _unused(
    has: Mapping[str, Any], found: Mapping[str, Any], place: Mapping[str, str], family: Family,
    families: Mapping[Family, Mapping[str, str]], named: Mapping[str, str],
) -> list[str]:  # fmt: skip
    """Keys that look like labels, are no whole set or the same by another spelling, and are not used."""
    notes = []
    count = max((len(value) for value in has.values() if isinstance(value, np.ndarray) and value.ndim == 2), default=1)
    for key, value in has.items():
        parsed = _parsed(key)
        if key in place.values():
            continue
        if parsed is not None and (parsed[2] == family or len(families[parsed[2]]) > 1) and not _spelled(key, place):
            continue
        for kind, pattern in _ALIKE.items():
            wanted = kind not in named and (kind not in found or not named)
            if wanted and pattern.search(key) and _plausible(kind, value, count):
                if kind not in found or not _same(kind, found[kind], value, count):
                    notes.append(f"{key!r} looks like {_ARTICLE[kind]} and is not used; {_setting(kind)}={key} takes it")
                break
    return notes


def _spelled(key: str, place: Mapping[str, str]) -> bool:
    """Whether a key is that of a label but for its spelling: `Energy` and `energy`, `force` and `forces`."""
    return any(key.lower().removesuffix("s") == taken.lower().removesuffix("s") for taken in place.values())


def _contradicted(stress: Any, has: Mapping[str, Any], family: Family, atoms: Atoms) -> str:
    """The key of a virial of the same place that a stress does not go with; empty if there is none."""
    for key in has:
        if (parsed := _parsed(key)) is not None and parsed[2] == family and parsed[0].startswith("virial"):
            try:
                one, other = (tensor(value) for value in (stress, _stress(has[key], atoms)))
            except (TypeError, ValueError):
                continue  # the audit says what is wrong with it
            if np.abs(one - other).max() > max(_SAME, 0.01 * np.abs(one).max()):
                return key
    return ""


def tensor(given: Any) -> Array:
    """A stress (3, 3) of nine numbers, or of six in Voigt's order. Raises `ValueError` or `TypeError`."""
    values = np.asarray(given, dtype=float).ravel()
    return voigt_6_to_full_3x3_stress(values) if len(values) == 6 else values.reshape(3, 3)


def _stress(virial: Any, atoms: Atoms) -> Any:
    """Stress (eV/Å^3) of a virial (eV) in the same order; as it is, if that is for the audit to refuse."""
    volume = abs(atoms.cell.volume)
    try:
        return -np.asarray(virial, dtype=float) / volume if volume > 1e-6 else None
    except (TypeError, ValueError):
        return virial
