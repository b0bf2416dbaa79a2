"""The active set against pace_activeset's."""

import subprocess

import numpy as np
import pytest
from conftest import EXAMPLES

from mlip_pace import reference
from mlip_pace.ace import activeset, basis, projections
from mlip_pace.ace.basis import BasisFile
from mlip_pace.ace.files import write_linear
from mlip_pace.collect import dataset
from mlip_pace.collect.files import find_files
from mlip_pace.run import child
from mlip_pace.settings import BasisSettings, DataSettings


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A B-basis file, the structures of the example, and what pace_activeset makes of them."""
    folder = tmp_path_factory.mktemp("activeset")
    settings = DataSettings.model_construct(test_fraction=0.0)
    frame, about = dataset.assemble(dataset.structures_of(find_files(str(EXAMPLES))), None, dataset.Rules(settings, seed=1))
    frame["energy_corrected"], frame["forces"] = frame[dataset.ENERGY], frame[dataset.FORCES]
    shortest = reference.shortest_distances(frame[dataset.ATOMS], 5.0)
    section = basis.section(BasisSettings.model_construct(functions=30), about.elements, shortest)
    file = folder / "potential.yaml"
    write_linear(file, section, np.zeros(sum(basis.expansion(section).counts)))
    dataset.save_frame(frame[[dataset.ATOMS, "energy_corrected", "forces"]], folder / "data.pckl.gzip")
    command = [child.program("pace_activeset"), file.name, "-d", "data.pckl.gzip", "-a"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return file, list(frame[dataset.ATOMS]), dict(np.load(folder / "potential.asi"))


def volume(inverse):
    return -np.linalg.slogdet(inverse)[1] / len(inverse)


def test_it_is_that_of_pace_activeset(fitted, tmp_path):
    file, structures, theirs = fitted
    activeset.write(tmp_path / "ours.asi", structures, BasisFile(file), workers=2)
    ours = dict(np.load(tmp_path / "ours.asi"))
    assert [path.name for path in tmp_path.iterdir()] == ["ours.asi"]
    assert ours.keys() == theirs.keys() == {"Al", "Mg"}
    for symbol, inverse in ours.items():
        assert volume(inverse) == pytest.approx(volume(theirs[symbol]), abs=0.01)


def test_part_by_part_it_is_as_good(fitted, tmp_path):
    file, structures, theirs = fitted
    expansion = basis.expansion(BasisFile(file))
    stored = projections.on_disk(tmp_path, structures, expansion, 1, np.float64)
    rows = {symbol: stored.rows(symbol) for symbol in stored.files}
    for symbol, count in zip(expansion.elements, expansion.counts, strict=True):
        assert len(rows[symbol]) > 2 * count  # more than a part
        inverse = np.linalg.pinv(activeset.of_largest_volume(rows[symbol], part_bytes=0))
        assert np.abs(rows[symbol][:] @ inverse).max() <= activeset.HIGHEST
        assert volume(inverse) > volume(theirs[symbol]) - 0.05


def test_too_few_atoms_are_refused(fitted, tmp_path):
    file, structures, _ = fitted
    with pytest.raises(ValueError, match=r"\d+ functions of Al, but \d+ atoms"):
        activeset.write(tmp_path / "ours.asi", structures[:3], BasisFile(file), workers=1)
    assert not list(tmp_path.iterdir())


def test_a_function_that_is_the_same_for_all_atoms_does_not_hurt():
    rows = np.random.default_rng(0).normal(size=(50, 6))
    rows[:, 2] = 0
    inverse = np.linalg.pinv(activeset.of_largest_volume(rows))
    assert np.isfinite(inverse).all()
    assert np.abs(rows @ inverse).max() <= 1.02
