"""Data frames of every pandas and ASE come back as pandas reads them; no pickle runs, imports or opens anything."""

import builtins
import bz2
import gzip
import io
import lzma
import os
import pathlib
import pickle
import pickletools
import subprocess
import sys
from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk, fcc100, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength
from conftest import RAW
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlip_pace.collect import pickles
from mlip_pace.collect.files import format_of
from mlip_pace.collect.frames import load_frame, read
from mlip_pace.collect.labels import labels
from mlip_pace.errors import UnsafeError
from mlip_pace.settings import DataSettings

KEYS = DataSettings.model_construct()
BUILD = [lambda: bulk("Al", cubic=True), lambda: molecule("H2O"), lambda: fcc100("Cu", (1, 1, 3), vacuum=4.0)]


def frame():
    """Twelve structures with labels and all sorts of info."""
    rng, rows = np.random.default_rng(0), []
    for n in range(12):
        atoms = BUILD[n % 3]()
        atoms.rattle(0.02, seed=n)
        atoms.info.update(path=pathlib.Path("/tmp/x") / f"y{n}", when=datetime(2020, 1, 1), at=pd.Timestamp("2020-01-01"))
        atoms.info.update(tag="t", nested={"k": [1, 2, {"z": np.arange(3)}]}, array=np.arange(4))
        forces = rng.normal(size=(len(atoms), 3))
        rows.append({"ase_atoms": atoms, "energy": float(rng.normal()), "forces": forces, "config_type": "abc"[n % 3]})
    return pd.DataFrame(rows).assign(group=[f"g{n % 4}" for n in range(12)])


def with_atoms(change):
    table = frame()
    table["ase_atoms"].map(change)
    return table


def calculated(atoms):
    atoms.calc = SinglePointCalculator(atoms, energy=-99.0, forces=np.zeros((len(atoms), 3)))


def constrained(atoms):
    atoms.set_constraint([FixAtoms([0]), FixBondLength(0, 1)])


KINDS = {
    "plain": frame,
    "single points": lambda: with_atoms(calculated),
    "calculators": lambda: with_atoms(lambda atoms: setattr(atoms, "calc", EMT())),
    "constraints": lambda: with_atoms(constrained),
    "categories": lambda: frame().astype({"config_type": "category"}).assign(bins=lambda t: pd.cut(t["energy"], 3)),
    "strings": lambda: frame().astype({"config_type": "string", "group": "string"}),
    "dates": lambda: frame().assign(
        date=pd.date_range("2020", periods=12), zone=pd.date_range("2020", periods=12, tz="Europe/Berlin"),
        period=pd.period_range("2020", periods=12), long=pd.to_timedelta(np.arange(12), "h")),
    "gaps": lambda: frame().assign(n=pd.array([1, None] * 6, dtype="Int64"), b=pd.array([True, None] * 6, dtype="boolean")),
    "named index": lambda: frame().set_index(pd.Index([f"s{n}" for n in range(12)], name="id")),
    "two levels": lambda: frame().set_index(pd.MultiIndex.from_product([["a", "b"], range(6)], names=["x", "y"])),
    "index of dates": lambda: frame().set_index(pd.date_range("2020", periods=12)),
    "index of categories": lambda: frame().set_index(pd.CategoricalIndex(list("abc" * 4))),
    "filtered": lambda: frame()[lambda t: t["energy"] > 0],
    "sparse": lambda: frame().assign(x=pd.arrays.SparseArray([0.0] * 11 + [1.0])),
    "appended": lambda: pd.concat([frame(), frame()]),
    "reversed": lambda: frame()[::-1],
    "other byte order": lambda: frame().assign(forces=lambda t: t["forces"].map(lambda f: f.astype(">f8"))),
    "by columns": lambda: frame().assign(forces=lambda t: t["forces"].map(np.asfortranarray)),
    "lists": lambda: frame().assign(forces=lambda t: t["forces"].map(np.ndarray.tolist)),
}  # fmt: skip
OPENERS = {".pckl": open, ".pckl.gzip": gzip.open, ".pkl.bz2": bz2.open, ".pickle.xz": lzma.open}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_data_frame_comes_back_as_pandas_has_it(tmp_path, kind, protocol):
    table = KINDS[kind]()
    suffix = list(OPENERS)[(list(KINDS).index(kind) + protocol) % 4]
    path = tmp_path / f"data{suffix}"
    with OPENERS[suffix](path, "wb") as file:
        pickle.dump(table, file, protocol=protocol)
    assert format_of(path) == "pacemaker"
    back = list(read(path))
    assert len(back) == len(table)
    for atoms, (_, row) in zip(back, table.iterrows(), strict=True):
        for ours, theirs in zip(
            (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc),
            (row.ase_atoms.numbers, row.ase_atoms.positions, row.ase_atoms.cell.array, row.ase_atoms.pbc),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)
        found = labels(atoms, KEYS).found
        assert found["energy"] == row.energy
        np.testing.assert_array_equal(found["forces"], row.forces)
        assert (atoms.info["config_type"], atoms.info["group"]) == (row.config_type, row.group)
        assert (atoms.info["path"], atoms.info["tag"]) == (str(row.ase_atoms.info["path"]), "t")
        assert "when" not in atoms.info  # what is not known to be data is not given on
        assert atoms.copy() == row.ase_atoms  # a whole structure of ASE


@pytest.mark.parametrize("path", sorted((RAW / "frames").iterdir()), ids=lambda path: path.name)
def test_frames_of_other_versions_of_pandas_and_ase(path):
    """Written by those versions: categories, strings, dates, gaps, a named index, paths, calculators, constraints."""
    back = list(read(path))
    assert [len(atoms) for atoms in back] == [4, 4, 4, 2]
    for n, atoms in enumerate(back):
        found, keys, _ = labels(atoms, KEYS)
        assert keys == "energy=energy forces=forces"
        assert found["energy"] == -3.5 * len(atoms) + n / 8
        np.testing.assert_array_equal(found["forces"], np.arange(3.0 * len(atoms)).reshape(-1, 3) / 8 + n)
        assert (atoms.info["config_type"], atoms.info["group"]) == ("ab"[n % 2], f"g{n // 2}")
        assert atoms.info["path"] == f"/data/run/{n}"
        assert atoms.positions[0, 0] == n / 16
    assert str(back[0].symbols), back[0].pbc.tolist() == ("Al4", [True] * 3)
    assert str(back[3].symbols), back[3].pbc.tolist() == ("AlNi", [True, True, False])
    assert load_frame(path).index.tolist() == ["s0", "s1", "s2", "s3"]


def test_labels_of_the_atoms_count_where_there_are_no_columns(tmp_path):
    table = with_atoms(calculated)[["ase_atoms"]]
    table.to_pickle(tmp_path / "a.pckl")
    assert {labels(atoms, KEYS).found["energy"] for atoms in read(tmp_path / "a.pckl")} == {-99.0}


def test_a_column_that_is_needed_and_cannot_be_read_is_named(tmp_path):
    frame().assign(config_type=pd.period_range("2020", periods=12)).to_pickle(tmp_path / "a.pckl")
    table = load_frame(tmp_path / "a.pckl")
    assert len(table) == 12
    frame().assign(config_type=pd.arrays.SparseArray([0.0] * 12)).to_pickle(tmp_path / "b.pckl")
    *structures, reason = read(tmp_path / "b.pckl")
    assert len(structures) == 12
    assert reason == "its column 'config_type' is no plain data and is not read"


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], bulk("Al")], ids=["a dict", "a list", "a structure"])
def test_what_is_no_data_frame_says_so(tmp_path, content):
    (tmp_path / "a.pckl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="not a DataFrame"):
        load_frame(tmp_path / "a.pckl")


# What Python reports to its audit hooks while a pickle is being read; a hook cannot be taken away again.
SEEN: list[tuple[str, object]] = []
WATCHING = False
FORBIDDEN = (
    "import",
    "open",
    "exec",
    "compile",
    "os.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "shutil.",
    "code.",
    "builtins.input",
)


def watch(event, arguments):
    if WATCHING and event.startswith(FORBIDDEN):
        SEEN.append((event, arguments))


sys.addaudithook(watch)


def load_watched(content: bytes):
    """Load a pickle, and fail if anything was imported, opened or run meanwhile. Returns what came of it."""
    global WATCHING
    SEEN.clear()
    before, modules = {name: getattr(builtins, name) for name in dir(builtins)}, set(sys.modules)
    file = io.BytesIO(content)
    WATCHING = True
    try:
        return pickles.load(file)
    except Exception as error:
        return error
    finally:
        WATCHING = False
        assert SEEN == []
        assert set(sys.modules) == modules
        assert {name: getattr(builtins, name) for name in dir(builtins)} == before


def named(text):
    return [tuple(word.split(":")) for word in text.split()]


DANGEROUS = named("""
os:system posix:system nt:system os:popen subprocess:Popen subprocess:call builtins:eval builtins:exec
builtins:__import__ builtins:open builtins:compile __builtin__:eval builtins:getattr.__class__ importlib:import_module
runpy:run_path numpy:load numpy.f2py:compile numpy.testing._private.utils:runstring numpy:vectorize pandas:read_pickle
pandas:eval pandas.core.computation.eval:eval pickle:loads pickle:Unpickler functools:reduce operator:attrgetter
operator:methodcaller types:FunctionType types:CodeType copyreg:add_extension codecs:decode _codecs:decode ctypes:CDLL
webbrowser:open ase.io:read ase.io.jsonio:decode timeit:timeit cProfile:run pdb:run code:InteractiveInterpreter
torch:load joblib:load dill:loads mlip_pace.cli:main shutil:rmtree socket:socket pathlib:os.system collections:abc.sys
logging.config:fileConfig pip:main sys:exit
""")
INNOCENT = named("""
ase.calculators.vasp.vasp:Vasp ase.calculators.calculator:FileIOCalculator pandas.core.frame:DataFrame numpy:dtype
numpy:ndarray numpy.core.multiarray:_reconstruct numpy._core.multiarray:scalar numpy._core.numeric:_frombuffer
builtins:set builtins:bytearray builtins:getattr builtins:object builtins:type copyreg:_reconstructor copyreg:__newobj__
_codecs:encode functools:partial collections:OrderedDict collections:defaultdict pyace.preparedata:DataFrameWithMetadata
pathlib:PosixPath some.module:SomeClass datetime:datetime uuid:UUID builtins:slice ase.atoms:Atoms
""")


def global_(name):
    return b"c" + f"{name[0]}\n{name[1]}\n".encode()


def test_the_watch_sees_what_a_plain_unpickler_does(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "load", pickle.load)
    with pytest.raises(AssertionError):
        load_watched(global_(("os", "system")) + f"(S'touch {tmp_path / 'touched'}'\ntR.".encode())
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", DANGEROUS, ids=".".join)
@pytest.mark.parametrize("argument", ["touch {}", "__import__('os').system('touch {}')"])
def test_what_could_run_code_is_refused_and_does_not_run(tmp_path, name, argument):
    touched = tmp_path / "touched"
    text = argument.format(touched).encode()
    call = global_(name) + b"(X" + len(text).to_bytes(4, "little") + text + b"tR."
    assert isinstance(load_watched(call), UnsafeError)
    assert not touched.exists()


@pytest.mark.parametrize("name", INNOCENT, ids=".".join)
def test_what_is_not_known_stands_still(name):
    made = load_watched(global_(name) + b"(S'touch /tmp/x'\ntR}S'command'\nS'touch /tmp/x'\nsb.")
    assert (
        not isinstance(made, UnsafeError) or name in [("builtins", "getattr"), ("_codecs", "encode")] or "function" in str(made)
    )


WORDS = ["O8", "f8", "b", "|", "__setstate__", "__class__", "__globals__", "system", "latin1"]
PIECES = st.one_of(
    st.sampled_from([*DANGEROUS, *INNOCENT, *INNOCENT, *INNOCENT]).map(global_),
    st.sampled_from([bytes([code]) for code in b"(t)\x85\x86\x87RRRbbb\x81\x92}]suae\x8f\x90021N\x88\x94oQ\x93"]),
    st.sampled_from(
        [b"K\x01", b"K\x03", b"h\x00", b"h\x01", b"h\x02", b"q\x00", b"q\x01", b"C\x08" + bytes(8), b"G" + bytes(8)]
    ),
    st.sampled_from(WORDS).map(lambda t: f"S'{t}'\n".encode()),
    st.sampled_from(["os", "system", "builtins", "eval"]).map(lambda text: b"\x8c" + bytes([len(text)]) + text.encode()),
)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PIECES, max_size=40))
def test_no_sequence_of_a_pickles_words_runs_anything(pieces):
    load_watched(b"\x80\x04" + b"".join(pieces) + b".")


REAL = [pickle.dumps(frame().head(2), protocol=protocol) for protocol in (0, 2, 4)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(REAL), st.sampled_from(DANGEROUS), st.data())
def test_no_name_in_a_real_data_frame_can_be_exchanged_for_one_that_runs(content, name, data):
    places = [
        (position, argument) for operation, argument, position in pickletools.genops(content) if operation.name == "GLOBAL"
    ]
    texts = [argument for operation, argument, _ in pickletools.genops(content) if "UNICODE" in operation.name]
    if places:
        _, argument = data.draw(st.sampled_from(places))
        changed = content.replace(("c" + argument.replace(" ", "\n") + "\n").encode(), global_(name))
        assert isinstance(load_watched(changed), Exception) or changed == content
    else:
        old = data.draw(st.sampled_from([text for text in texts if text.isidentifier()])).encode()
        new = name[1].encode()
        changed = content.replace(b"\x8c" + bytes([len(old)]) + old, b"\x8c" + bytes([len(new)]) + new)
        load_watched(changed)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, exec, eval, subprocess.check_output, pd.read_pickle], ids=lambda f: f.__name__)
def test_code_in_the_info_of_a_structure_is_refused_in_the_files_name(tmp_path, function):
    table = frame()
    table["ase_atoms"].iat[3].info["note"] = Evil(function, f"touch {tmp_path / 'touched'}")
    table.to_pickle(tmp_path / "evil.pckl.gzip", compression="gzip")
    with pytest.raises(UnsafeError, match=r"evil\.pckl\.gzip: the pickle asks for .*, which could run code") as refused:
        load_frame(tmp_path / "evil.pckl.gzip")
    assert refused.value.code == 77
    assert not (tmp_path / "touched").exists()


def test_an_array_of_objects_with_a_forged_type_is_no_way_into_memory():
    """NumPy would take eight bytes for a pointer if a pickled type says that its objects are plain."""
    reconstruct = global_(("numpy.core.multiarray", "_reconstruct")) + global_(("numpy", "ndarray")) + b"K\x00\x85C\x01b\x87R"
    dtype = global_(("numpy", "dtype")) + b"S'O8'\nI00\nI01\n\x87R(K\x03S'|'\nNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    forged = reconstruct + b"(K\x01K\x01\x85" + dtype + b"I00\nC\x08\x41\x41\x41\x41\x41\x41\x41\x41tb."
    assert isinstance(load_watched(b"\x80\x04" + forged), ValueError)
    short = reconstruct + b"(K\x01K\x09\x85" + dtype + b"I00\n]tb."  # nine objects of an empty list
    assert isinstance(load_watched(b"\x80\x04" + short), ValueError)


def test_classes_and_functions_of_ours_cannot_be_changed():
    for name in [
        ("numpy", "dtype"),
        ("copyreg", "_reconstructor"),
        ("some.module", "SomeClass"),
        ("numpy.core.multiarray", "scalar"),
    ]:
        for state in (b"}S'x'\nK\x01s", b"N}S'__init__'\nK\x01s\x86"):
            assert isinstance(load_watched(b"\x80\x04" + global_(name) + state + b"b."), Exception), name
    assert Atoms("Al").get_chemical_symbols() == ["Al"]
