"""What `pip install .` gives is enough for what is imported."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT

import mlip_pace

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What belongs to an extra: imported only where it is needed, inside a function or in a room of its own.
EXTRAS = {"matplotlib": "report", "markupsafe": "report", "phonopy": "report", "tensorflow": "train"}
EXTRAS |= dict.fromkeys(("cloudpickle", "dask", "distributed"), "cluster")


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirements):
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def imported():
    """The top-level modules of others that the package imports, with the files that do."""
    for path in (ROOT / "mlip_pace").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                yield str(node.module).partition(".")[0], path
            elif isinstance(node, ast.Import):
                yield from ((alias.name.partition(".")[0], path) for alias in node.names)


def test_everything_imported_is_a_dependency_or_of_an_extra():
    packages = importlib.metadata.packages_distributions()
    needed, extras = named(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    for module, path in imported():
        if module in sys.stdlib_module_names or module == "mlip_pace":
            continue
        distributions = {normal(name) for name in packages[module]}
        if extra := EXTRAS.get(module):
            assert distributions & named(extras[extra]) or module == "tensorflow", (module, path)
        else:
            assert distributions & needed, f"{path} imports {module}, of {distributions}"


def test_a_potential_is_read_without_tensorflow_matplotlib_and_dask():
    """In a process that is not allowed to import them."""
    code = (
        "import sys\n"
        "others = 'tensorflow', 'tensorpotential', 'matplotlib', 'keras', 'tf_keras', 'distributed', 'dask'\n"
        "for name in others: sys.modules[name] = None\n"
        "import mlip_pace, mlip_pace.job, mlip_pace.check, pyace\n"
        "mlip_pace.load_calculator, mlip_pace.learn, mlip_pace.PacemakerRunner\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_in_one_place():
    assert PROJECT["dynamic"] == ["version"]
    assert importlib.metadata.version("mlip-pace") == mlip_pace.__version__
    for name in ("pyproject.toml", "Dockerfile", "CITATION.cff", "Makefile"):
        assert mlip_pace.__version__ not in (ROOT / name).read_text(), name


@pytest.mark.parametrize("name", sorted(mlip_pace.__all__))
def test_public_names_have_types_and_say_what_they_take(name):
    public = getattr(mlip_pace, name)
    assert public.__doc__
    if name in ("learn", "load_calculator", "atoms_to_dataframe"):
        assert public.__annotations__["return"] != "Any"
        for section in ("Parameters\n", "Returns\n", "Raises\n"):
            assert section in public.__doc__, section
