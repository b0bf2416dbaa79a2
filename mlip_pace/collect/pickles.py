"""Pickles, read without importing anything: what a pickle asks for is never looked up, so nothing that it names can run.

A class becomes a stand-in that keeps what the pickle says of its objects (`Inert`). Only NumPy's arrays are real, made by
functions of ours from types that hold plain data; an array of pointers with a forged type would be a way into memory. What
would run code if it were called (`os.system`, `eval`, any function that is not known to rebuild data) is refused, although a
stand-in would do no harm: a file with it is no data set.
"""

from __future__ import annotations

import gc
import math
import pickle
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from mlip_pace.errors import UnsafeError


class Inert:
    """An object of a class that was not looked up: the arguments it was made with, its state, its items. It does nothing."""

    module = name = ""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any]
    state: Any = None
    items: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        made = object.__new__(cls)
        made.args, made.kwargs, made.items = args, kwargs, []
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes anything."""

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        """What it would return is not known, so it is one more of its kind."""
        return type(self)(*args, **kwargs)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Any) -> None:
        self.items.extend(items)

    add = append  # of a set


class _Function:
    """A function of ours that a pickle may call; it has no state to be overwritten."""

    __slots__ = ("_run",)
    _run: Callable[..., Any]

    def __init__(self, run: Callable[..., Any]) -> None:
        object.__setattr__(self, "_run", run)

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafeError("the pickle changes a function", _HINT)

    def __setstate__(self, state: Any) -> None:
        raise UnsafeError("the pickle changes a function", _HINT)


_HINT = "write the data as extended XYZ, or as a DataFrame of ase.Atoms, numbers and NumPy arrays"


class _DType(Inert):
    """A NumPy type as pickled: its name, and its byte order once the state is known."""

    found: np.dtype[Any] | None

    def real(self) -> np.dtype[Any] | None:
        """The type, if it is one of plain data. Thousands of arrays ask for the same one."""
        if not hasattr(self, "found"):
            self.found = self._real()
        return self.found

    def __setstate__(self, state: Any) -> None:
        self.state, self.found = state, None
        self.found = self._real()

    def _real(self) -> np.dtype[Any] | None:
        text = self.args[0] if self.args else None
        if isinstance(text, type) and issubclass(text, Inert):  # np.dtype(np.float64)
            text = text.name
        if not isinstance(text, str) or not re.fullmatch(r"[<>|=]?[a-zA-Z]+_?\d*", text):
            return None
        state: Any = self.state if isinstance(self.state, tuple) else ()
        try:
            dtype = np.dtype(text)
            if dtype.kind in "Mm" and len(state) > 8:
                unit, number = state[8][1][:2]  # the unit of a time is not in its name
                dtype = np.dtype(f"{dtype.kind}8[{int(number)}{unit.decode('ascii')}]")
        except (TypeError, ValueError, AttributeError, LookupError):
            return None
        if dtype.kind not in "biufcSUOMm":
            return None
        order: Any = state[1] if len(state) > 1 else "="
        order = order.decode("latin1") if isinstance(order, bytes) else order
        return dtype.newbyteorder(order) if order in ("<", ">") else dtype


class _Array(np.ndarray[Any, Any]):
    """An array as pickled; it stays empty if its type is none of plain data."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state if len(state) == 5 else (1, *state)
        real = dtype.real() if isinstance(dtype, _DType) else None
        if real is None:
            return
        if isinstance(content, str):  # written by Python 2
            content = content.encode("latin1")
        # NumPy itself trusts the length of a list.
        if real.kind == "O" and not (isinstance(content, list) and len(content) == math.prod(map(int, shape))):
            raise ValueError("an array of objects has not as many of them as its shape says")
        checked: Any = (1, shape, real, bool(fortran), content)
        super().__setstate__(checked)


def _array(*_: Any) -> _Array:
    return np.ndarray.__new__(_Array, (0,), "b")


def _scalar(dtype: Any, content: Any = b"") -> Any:
    real = dtype.real() if isinstance(dtype, _DType) else None
    if real is None or real.kind == "O":
        return content
    content = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(content, real, count=1)[0] if real.itemsize else real.type()


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
    real = dtype.real() if isinstance(dtype, _DType) else None
    if real is None or real.kind == "O":
        return Inert(buffer, dtype, shape)
    return np.frombuffer(buffer, real).reshape(shape, order="F" if order == "F" else "C").copy()


def _new(cls: Any, *args: Any) -> Any:
    """`object.__new__` and its like, for the stand-ins."""
    return cls(*args) if isinstance(cls, type) and issubclass(cls, Inert) else Inert(cls, *args)


def _attribute(owner: Any, name: Any, *_: Any) -> Inert:
    """An attribute, of a stand-in only: one more stand-in."""
    if isinstance(owner, Inert) or (isinstance(owner, type) and issubclass(owner, Inert)):
        return Inert(owner, name)
    raise UnsafeError("the pickle asks for builtins.getattr of something that is no stand-in", _HINT)


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise UnsafeError(f"the pickle encodes something as {encoding!r}", _HINT)
    return text.encode(encoding)


def _bytes(given: Any = b"", *_: Any) -> bytearray:
    return bytearray(given.encode("latin1") if isinstance(given, str) else given if isinstance(given, bytes) else b"")


_KNOWN: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "slice"): slice,
    ("builtins", "bytearray"): _Function(_bytes),
    ("builtins", "getattr"): _Function(_attribute),
    ("_codecs", "encode"): _Function(_encode),
    ("copyreg", "_reconstructor"): _Function(lambda cls, *_: _new(cls)),
    ("copyreg", "__newobj__"): _Function(_new),
    ("collections", "OrderedDict"): dict,
    ("collections", "defaultdict"): _Function(lambda *_: {}),
    ("collections", "deque"): _Function(lambda given=(), *_: list(given)),
    ("numpy", "dtype"): _DType,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Function(_array) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Function(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Function(_from_buffer) for core in ("core", "_core")},
}
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# A function has a name in lower case. These are classes, or rebuild data; they become stand-ins like any class.
_LOWER_CASE_DATA = {
    *(("builtins", name) for name in (
        "object", "type", "int", "float", "str", "bytes", "bool", "list", "tuple", "dict", "range")),
    *(("datetime", name) for name in ("date", "datetime", "time", "timedelta", "timezone", "tzinfo")),
    ("functools", "partial"), ("array", "array"), ("array", "_array_reconstructor"), ("copyreg", "__newobj_ex__"),
    ("pandas.core.internals.blocks", "new_block"), ("pandas._libs.internals", "new_block"),
    ("numpy", "ndarray"), ("numpy", "matrix"), ("numpy", "recarray"),
    *(("numpy", np.dtype(code).type.__name__) for code in "?bhilqBHILQefdgFDGSUOMmV"),
    *(("numpy", name) for name in ("bool_", "str_", "bytes_", "unicode_", "string_", "object_", "float_", "int_")),
}  # fmt: skip
# Modules that rebuild their data by functions: those with an underscore in front, in the last two any.
_REBUILD = ("numpy", "pandas", "ase", "zoneinfo", "dateutil", "pytz", "pyarrow")
_REBUILD_BY_ANY = ("dateutil", "pyarrow")
# Modules that run code by classes too, or are never in data.
_RUN = {
    "os", "posix", "nt", "posixpath", "subprocess", "_posixsubprocess", "sys", "importlib", "_frozen_importlib", "imp", "runpy",
    "pkgutil", "pickle", "_pickle", "cPickle", "pickletools", "shelve", "marshal", "dill", "cloudpickle", "joblib", "code",
    "codeop",
    "codecs", "operator", "_operator", "types", "inspect", "ctypes", "_ctypes", "cffi", "socket", "_socket", "socketserver",
    "shutil", "signal", "threading", "_thread", "multiprocessing", "concurrent", "asyncio", "pty", "pdb", "bdb", "cProfile",
    "profile", "timeit", "trace", "doctest", "unittest", "webbrowser", "urllib", "http", "ftplib", "smtplib", "telnetlib",
    "requests",
    "tempfile", "glob", "io", "_io", "pip", "setuptools", "distutils", "site", "gc", "weakref", "atexit", "platform",
    "ast", "dis", "linecache", "tokenize", "venv", "ensurepip", "commands", "popen2", "pydoc", "xmlrpc", "logging",
}  # fmt: skip


class _Reader(pickle.Unpickler):
    """Gives stand-ins for everything that it is asked for, or refuses."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")
        self.classes: dict[tuple[str, str], type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        module = _PYTHON_2.get(module, module)
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if _could_run(module, name):
            raise UnsafeError(f"the pickle asks for {module}.{name}, which could run code", _HINT)
        if (module, name) not in self.classes:
            self.classes[module, name] = type("Inert", (Inert,), {"module": module, "name": name})
        return self.classes[module, name]

    def persistent_load(self, pid: Any) -> Inert:
        return Inert(pid)


def _could_run(module: str, name: str) -> bool:
    """Whether that is, by its name, a function, or of a module that is there to run something."""
    top, last = module.partition(".")[0], name.rpartition(".")[2]
    if (module, name) in _LOWER_CASE_DATA:
        return False
    if top in _RUN or top in ("copyreg", "functools", "_codecs"):
        return True
    if top == "builtins":
        return not last[:1].isupper()  # exceptions and such
    if last[:1].isupper() or last.lstrip("_")[:1].isupper():
        return False
    if top in _REBUILD:
        return not (last.startswith("_") or top in _REBUILD_BY_ANY)
    return True


def load(file: IO[bytes]) -> Any:
    """What a pickle holds, its objects as `Inert`. Raises `UnsafeError`; whatever a broken pickle makes `pickle` raise."""
    collecting = gc.isenabled()
    gc.disable()  # a hundred thousand new objects, none of them garbage: looking through them takes as long as all the rest
    try:
        return _Reader(file).load()
    finally:
        if collecting:
            gc.enable()
