"""Where compiled kernels are kept."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = "from mlip_pace.ace import kernels; import os; print(kernels.CACHE, len(os.listdir(kernels.CACHE)))"


def imported(environ, **options):
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environ}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_they_are_kept_beside_their_module():
    folder, _ = imported({})
    assert folder == str(ROOT / "mlip_pace" / "ace" / ".kernels")
    assert list((ROOT / "mlip_pace" / "ace" / ".kernels").rglob("*.nbc"))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be somebody else")
def test_who_may_not_write_there_has_a_copy_that_is_gone_at_the_end(tmp_path):
    imported({})  # compiled, whatever was before
    try:
        subprocess.run(
            [sys.executable, "-c", f"open({str(ROOT / 'README.md')!r})"], user=65534, capture_output=True, check=True
        )
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("nobody can read this clone, or run its Python")
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(0o777 if path == tmp_path else 0o755)
    folder, count = imported({"TMPDIR": str(tmp_path)}, user=65534, group=65534, cwd="/")
    assert folder.startswith(str(tmp_path / "mlip-pace-"))
    assert int(count) > 0
    assert list(tmp_path.iterdir()) == []
