"""Columns of structures and arrays: what goes in comes out to the last bit, whatever is done to the frame."""

import pickle

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from mlip_pace.collect import columns

FLOATS = st.floats(allow_nan=False)


def an_array(shape):
    return st.lists(FLOATS, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(lambda v: np.reshape(v, shape))


@st.composite
def rows(draw):
    count = draw(st.integers(1, 4))
    numbers = draw(st.lists(st.integers(1, 118), min_size=count, max_size=count))
    pbc = draw(st.lists(st.booleans(), min_size=3, max_size=3))
    atoms = Atoms(numbers, draw(an_array((count, 3))), cell=draw(an_array((3, 3))), pbc=pbc)
    stress = draw(st.none() | an_array((3, 3)))
    return {
        "atoms": atoms,
        "forces": draw(an_array((count, 3))),
        "stress": stress,
        "energy": draw(FLOATS),
        "name": draw(st.text()),
    }


def frame_of(rows_, folder=None):
    growing = columns.GrowingFrame(["forces", "stress"], ["atoms"], folder=folder)
    for row in rows_:
        growing.append(row)
    return growing.frame()


def same(frame, rows_):
    assert len(frame) == len(rows_)
    for n, row in enumerate(rows_):
        found = frame.iloc[n]
        for attribute in ("numbers", "positions", "pbc"):
            np.testing.assert_array_equal(getattr(found.atoms, attribute), getattr(row["atoms"], attribute))
        np.testing.assert_array_equal(found.atoms.cell.array, row["atoms"].cell.array)
        np.testing.assert_array_equal(found.forces, row["forces"])
        assert (found.stress is None) == (row["stress"] is None)
        if row["stress"] is not None:
            np.testing.assert_array_equal(found.stress, row["stress"])
        assert (found.energy, found["name"]) == (row["energy"], row["name"])


@settings(max_examples=60, deadline=None)
@given(given_=st.lists(rows(), min_size=1, max_size=6), data=st.data())
def test_what_goes_in_comes_out(tmp_path_factory, given_, data):
    folder = tmp_path_factory.mktemp("frame")
    in_memory, frame = frame_of(given_), frame_of(given_, folder)
    assert list(folder.iterdir()) == []  # what grows has no name
    same(in_memory, given_)
    same(frame, given_)
    order = data.draw(st.permutations(range(len(given_))))[: data.draw(st.integers(1, len(given_)))]
    some, expected = frame.iloc[order].reset_index(drop=True), [given_[n] for n in order]
    same(some, expected)
    columns.save(some, folder / "some")
    again = columns.load(folder / "some")
    assert list(again) == list(frame)
    same(again, expected)
    same(pickle.loads(pickle.dumps(again)), expected)
    same(columns.plain(again), expected)
    assert {type(array) for frame in (frame, again) for array in frame.forces} == {np.ndarray}
    same(pd.concat([again, frame]), expected + given_)
    parts = [part for _, part in again.groupby(again["name"])]
    assert sum(map(len, parts)) == len(expected)
    assert again.atoms.map(len).tolist() == [len(row["atoms"]) for row in expected]
    assert again.stress.isna().tolist() == [row["stress"] is None for row in expected]


def some_rows(count=3):
    dimers = [Atoms("Al2", [(0, 0, 0), (0, 0, n + 1)]) for n in range(count)]
    labels = {"stress": None, "energy": 0.0, "name": ""}
    return [{"atoms": atoms, "forces": np.full((2, 3), float(n)), **labels} for n, atoms in enumerate(dimers)]


def test_what_is_changed_is_not_in_the_frame():
    frame = frame_of(some_rows())
    frame.atoms[0].positions += 5
    frame.atoms[0].numbers[:] = 1
    assert frame.atoms[0].positions[0, 0] == 0
    assert frame.atoms[0].symbols[0] == "Al"
    with pytest.raises(ValueError, match="read-only"):
        frame.forces[0][:] = 1


def test_what_is_in_files_already_is_written_once(tmp_path):
    columns.save(frame_of(some_rows(2000)), tmp_path / "one")
    first = columns.load(tmp_path / "one")
    columns.save(first.assign(more=1.0), tmp_path / "two")
    columns.save(first.iloc[::-1], tmp_path / "turned")
    for path in (tmp_path / "one").glob("*.npy"):
        assert path.samefile(tmp_path / "two" / path.name)
        assert not path.samefile(tmp_path / "turned" / path.name)
    for path in (tmp_path / "one").iterdir():  # a folder that goes takes nothing from the other
        path.unlink()
    assert columns.load(tmp_path / "two").forces.iloc[1999][0, 0] == 1999
    assert columns.load(tmp_path / "turned").forces.iloc[0][0, 0] == 1999


def test_what_a_folder_held_goes(tmp_path):
    """A stage that goes on from an earlier result finds its files in its folder."""
    columns.save(frame_of(some_rows(3)), tmp_path / "one")
    columns.save(frame_of(some_rows(2)).drop(columns="stress"), tmp_path / "one")
    names = [path.name for path in (tmp_path / "one").iterdir()]
    assert not any("stress" in name for name in names)
    assert len(columns.load(tmp_path / "one")) == 2


def test_what_is_sent_are_the_rows_alone(tmp_path):
    columns.save(frame_of(some_rows(2000)), tmp_path / "one")
    frame = columns.load(tmp_path / "one")
    assert len(pickle.dumps(frame.atoms.array[:2])) < 3000
    assert len(pickle.dumps(frame.atoms.array)) > 2000 * 2 * 3 * 8


def test_a_gap_cannot_be_filled():
    frame = frame_of(some_rows())
    with pytest.raises(ValueError, match="no value to fill gaps"):
        frame.reindex([0, 1, 7])


def test_parts_are_as_large_as_may_be_and_no_larger(monkeypatch):
    """What is copied into a file, or out of one, is in memory a part at a time."""
    monkeypatch.setattr(columns, "PART", 10)
    lengths = np.array([3, 4, 2, 25, 1, 9, 1, 4, 5])
    rows = columns.Rows(np.arange(54.0), np.cumsum(lengths))
    parts = list(rows.parts(np.arange(9)))
    assert [len(part) for part in parts] == [9, 25, 10, 10]
    assert np.concatenate(parts).tolist() == rows.values.tolist()
