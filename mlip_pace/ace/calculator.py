"""The ASE calculator of a published potential: ACE + reference + E0, energies on the scale of the DFT that it learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import voigt_6_to_full_3x3_stress

from mlip_pace.ace.evaluators import calculator_of, from_content
from mlip_pace.ace.uncertainty import Uncertainty
from mlip_pace.arrays import VOIGT, Array
from mlip_pace.collect.audit import fully_periodic
from mlip_pace.reference import Reference


class PotentialCalculator(Calculator):
    """Energy in eV, forces in eV/Å, stress in eV/Å^3 (Voigt, tension positive), of structures with any cell or none.

    With an `uncertainty`, 68 % intervals as well: `energy_uncertainty` in eV and `forces_uncertainty` (n, 3) in eV/Å.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's interface)

    def __init__(self, yace: Path, reference: Reference, uncertainty: Uncertainty | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.yace, self.ace = yace, calculator_of(yace)
        self.reference, self.uncertainty = reference, uncertainty
        if uncertainty is not None:
            self.implemented_properties = [*self.implemented_properties, "energy_uncertainty", "forces_uncertainty"]

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent as what it is made of: pyace's objects cannot be sent."""
        return from_content, (PotentialCalculator, self.yace.name, self.yace.read_bytes(), self.reference, self.uncertainty)

    @property
    def cutoff(self) -> float:
        """Å."""
        return float(self.ace.cutoff)

    def check_state(self, atoms: Any, tol: float = 0.0) -> list[str]:
        """What is other than at the last results: all or nothing. (ASE's own way takes a fifth of a small structure's time.)"""
        names, last = ("numbers", "positions", "cell", "pbc"), self.atoms
        same = last is not None and all(np.array_equal(getattr(atoms, name), getattr(last, name)) for name in names)
        return [] if same else list(all_changes)

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        """As ASE calls it; the results are in `results`."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        energy, forces, stress = self.predict(atoms)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        if stress is not None:
            self.results["stress"] = stress[VOIGT]
        if self.uncertainty is not None:
            sound, _ = fully_periodic(atoms, self.cutoff)
            self.results["energy_uncertainty"], self.results["forces_uncertainty"] = self.uncertainty(sound)

    def predict(self, atoms: Atoms) -> tuple[float, Array, Array | None]:
        """Energy, forces (n, 3), and stress (3, 3) where there is a three-dimensional cell."""
        sound, shrink = fully_periodic(atoms, self.cutoff)
        self.ace.calculate(sound)
        energy, forces, stress = self.reference.evaluate(sound)
        if stress is not None:
            stress = stress + voigt_6_to_full_3x3_stress(self.ace.results["stress"])
            stress = stress / shrink if atoms.cell.rank == 3 else None
        return self.ace.results["energy"] + energy, self.ace.results["forces"] + forces, stress
