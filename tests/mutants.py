"""Puts faults into a copy of the package, one at a time, and runs the tests that concern them: those that live are printed.

    make mutants                                            the named faults, and some of every module below
    make mutants ARGS="mlip_pace/train/weights.py --each 20"

A fault is a named one (each was once seen by no test), or made at a place drawn at random: a comparison turned round, plus for
minus, a number changed, a condition negated. A mutant that lives is a place to look: a test is missing, or the fault makes no
difference. Slow: minutes for a module.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The tests that concern a module: of the first name that fits.
TESTS = {
    "mlip_pace/ace/core.py": "tests/train/test_training.py",
    "mlip_pace/ace/": "tests/ace tests/train/test_training.py",
    "mlip_pace/train/weights.py": "tests/train/test_weights.py",
    "mlip_pace/train/crossvalidation.py": "tests/train/test_crossvalidation.py",
    "mlip_pace/train/search.py": "tests/train/test_search.py",
    "mlip_pace/train/linear.py": "tests/train/test_training.py tests/train/test_crossvalidation.py",
    "mlip_pace/train/radial.py": "tests/train/test_training.py",
    "mlip_pace/train/hold.py": "tests/train/test_hold.py",
    "mlip_pace/train/calibration.py": "tests/train/test_calibration.py",
    "mlip_pace/train/": "tests/train",
    "mlip_pace/probe/": "tests/train/test_hold.py",
    "mlip_pace/selection.py": "tests/test_selection.py",
    "mlip_pace/reference.py": "tests/test_reference.py",
    "mlip_pace/publish/suggest.py": "tests/publish/test_suggest.py",
    "mlip_pace/publish/": "tests/publish",
    "mlip_pace/physics/measure.py": "tests/physics/test_measure.py",
    "mlip_pace/physics/dft.py": "tests/physics/test_dft.py",
    "mlip_pace/physics/strained.py": "tests/physics/test_dft.py",
    "mlip_pace/physics/": "tests/physics",
    "mlip_pace/report/": "tests/report",
    "mlip_pace/run/": "tests/run",
    "mlip_pace/train/estimate.py": "tests/train/test_estimate.py",
    "mlip_pace/settings.py": "tests/test_settings.py",
    "mlip_pace/sources.py": "tests/test_settings.py",
    "mlip_pace/collect/columns.py": "tests/collect/test_columns.py",
    "mlip_pace/collect/": "tests/collect",
}
MODULES = (
    "mlip_pace/ace/kernels.py",
    "mlip_pace/ace/bonds.py",
    "mlip_pace/ace/expansion.py",
    "mlip_pace/ace/functions.py",
    "mlip_pace/ace/basis.py",
    "mlip_pace/ace/core.py",
    "mlip_pace/train/weights.py",
    "mlip_pace/train/linear.py",
    "mlip_pace/train/radial.py",
    "mlip_pace/train/crossvalidation.py",
    "mlip_pace/train/search.py",
    "mlip_pace/selection.py",
    "mlip_pace/reference.py",
    "mlip_pace/train/estimate.py",
    "mlip_pace/publish/evaluate.py",
    "mlip_pace/report/verdict.py",
    "mlip_pace/physics/volumes.py",
    "mlip_pace/train/hold.py",
    "mlip_pace/probe/ground.py",
    "mlip_pace/probe/hunt.py",
    "mlip_pace/collect/columns.py",
    "mlip_pace/sources.py",
    "mlip_pace/run/child.py",
    "mlip_pace/run/limits.py",
    "mlip_pace/run/log.py",
    "mlip_pace/run/steps.py",
    "mlip_pace/ace/uncertainty.py",
    "mlip_pace/train/calibration.py",
    "mlip_pace/publish/suggest.py",
)
NAMED = [  # file, what is there, the fault in its place
    ("mlip_pace/train/crossvalidation.py", "np.log(errors[kappa].energy_mae) +", "0 * np.log(errors[kappa].energy_mae) +"),
    ("mlip_pace/train/crossvalidation.py", "if n not in left]", "]"),
    ("mlip_pace/train/search.py", "key=lambda count: evidence", "key=lambda count: -evidence"),
    ("mlip_pace/train/search.py", "and height(values[best]) < height", "and height(values[best]) > height"),
    ("mlip_pace/train/fit.py", "self.target[self.target[SPLIT] == TRAIN]", "self.target"),
    ("mlip_pace/ace/kernels.py", "by_place[links - 1] = own + value", "by_place[links - 1] = 0.0"),
    ("mlip_pace/train/weights.py", "* frame[WEIGHT].to_numpy() if WEIGHT in frame else factor", ""),
    ("mlip_pace/train/fit.py", "train.assign(**{WEIGHT: train[SOURCE].map(self.chosen)})", "train.assign(**{WEIGHT: 1.0})"),
    ("mlip_pace/train/pacemaker.py", 'data["w_forces"] = weights.energy,', 'data["w_forces"] = 1.0,'),
    ("mlip_pace/train/pacemaker.py", '"BFGS" if self.training.optimizer == "auto" else self.training.optimizer', '"BFGS"'),
    ("mlip_pace/train/radial.py", "if solution.log_evidence <= state.solution.log_evidence:", "if False:"),
    ("mlip_pace/train/radial.py", "np.random.default_rng((problem.seed, number))", "np.random.default_rng((42, number))"),
    ("mlip_pace/ace/basis.py", "1 / (1 + sum(n**2 + l**2 for", "1 / (1 + 0 * sum(n**2 + l**2 for"),
    ("mlip_pace/selection.py", "LARGEST_WEIGHT = 0.01, 2.0", "LARGEST_WEIGHT = 0.01, 1e9"),
    ("mlip_pace/selection.py", "spread**2", "spread"),
    ("mlip_pace/run/child.py", "ResourceExhaustedError|std::bad_alloc|MemoryError", "no such words"),
    ("mlip_pace/run/log.py", "(total - iteration) / rate", "(total - iteration) * rate"),
    ("mlip_pace/collect/dataset.py", "atoms=int(frame[ATOMS].map(len).sum())", "atoms=len(frame)"),
    ("mlip_pace/train/estimate.py", "return Measured(spent / atoms", "return Measured(1000 * spent / atoms"),
    ("mlip_pace/train/pacemaker.py", "memory_of_an_atom(functions) * atoms_in_batch", "0.0 * atoms_in_batch"),
    ("mlip_pace/report/verdict.py", "def verdict_word(", "def verdict_word(*_):\n    return WORDS[0]\n\n\ndef _unused("),
    ("mlip_pace/report/verdict.py", "def advice(", "def advice(*_):\n    return []\n\n\ndef _unused2("),
    ("mlip_pace/physics/volumes.py", "/ GPa", "* 1.0"),
]  # fmt: skip


class Fault(ast.NodeTransformer):
    """Changes the `wanted`th place that can be changed; without one, counts them."""

    def __init__(self, wanted: int = -1) -> None:
        self.wanted, self.count, self.line, self.what = wanted, 0, 0, ""

    def here(self, node: ast.AST, what: str) -> bool:
        self.count += 1
        if self.count - 1 != self.wanted:
            return False
        self.line, self.what = getattr(node, "lineno", 0), what
        return True

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        other = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
        if type(node.ops[0]) in other and self.here(node, "comparison turned round"):
            node.ops[0] = other[type(node.ops[0])]()
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        other = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
        if type(node.op) in other and self.here(node, f"{type(node.op).__name__} changed"):
            node.op = other[type(node.op)]()
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if type(node.value) in (int, float) and self.here(node, f"{node.value} changed"):
            return ast.copy_location(ast.Constant(node.value * 3 + 1), node)
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if self.here(node, "condition negated"):
            node.test = ast.UnaryOp(ast.Not(), node.test)
        return node


def faults_of(text: str, count: int, seed: int) -> list[tuple[str, str]]:
    """Some faulty texts of a module, each with where and what."""
    counter = Fault()
    counter.visit(ast.parse(text))
    drawn = random.Random(seed).sample(range(counter.count), min(count, counter.count))
    result = []
    for place in sorted(drawn):
        fault = Fault(place)
        faulty = ast.unparse(ast.fix_missing_locations(fault.visit(ast.parse(text))))
        result.append((f"{fault.line}: {fault.what}", faulty))
    return result


def passes(name: str, text: str, seconds: float) -> bool:
    """Whether the tests of a module pass, in time, with this text in its place."""
    tests = next(tests for prefix, tests in TESTS.items() if name.startswith(prefix))
    with tempfile.TemporaryDirectory() as above:
        folder = Path(above) / "copy"
        # With the compiled kernels, or each process would compile them anew.
        shutil.copytree(
            ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", ".tools", ".*_cache", "out", "__pycache__")
        )
        if (ROOT.parent / "shared").exists():
            (Path(above) / "shared").symlink_to(ROOT.parent / "shared")
        if text != (folder / name).read_text():
            (folder / name).write_text(text)
        environ = {**os.environ, "PYTHONPATH": str(folder)}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
        try:
            return subprocess.run(command, cwd=folder, env=environ, capture_output=True, timeout=seconds).returncode == 0
        except subprocess.TimeoutExpired:
            return False


def limit_of(name: str) -> float:
    """Seconds after which the tests of a module count as failed: many times what they take without a fault."""
    begin = time.monotonic()
    if not passes(name, (ROOT / name).read_text(), 3600):
        sys.exit(f"the tests of {name} fail without a fault")
    return 60 + 5 * (time.monotonic() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="files of mlip_pace; none: the named faults, and some of the core")
    parser.add_argument("--each", type=int, default=8, help="faults of a module")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    mutants = []
    if not given.modules:
        for name, there, fault in NAMED:
            text = (ROOT / name).read_text()
            assert there in text, f"{name}: {there!r} is not there any more"
            mutants.append((name, f"named: {fault}", text.replace(there, fault)))
    for name in given.modules or MODULES:
        mutants += [(name, *fault) for fault in faults_of((ROOT / name).read_text(), given.each, given.seed)]
    living, limits = 0, dict[str, float]()
    for name, what, faulty in mutants:
        if name not in limits:
            limits[name] = limit_of(name)
        alive = passes(name, faulty, limits[name])
        living += alive
        print(f"{'LIVES' if alive else 'dies '} {name}:{what}".replace("\n", " "), flush=True)
    print(f"{len(mutants) - living} of {len(mutants)} died")


if __name__ == "__main__":
    main()
