"""Children: what their end means, as an exit code. Real processes."""

import os
import sys

import pytest

from mlip_pace.errors import JobError, OutOfMemoryError, StorageError, ToolError
from mlip_pace.run import child


@pytest.mark.parametrize(
    ("said", "kind", "code"),
    [
        ("terminate called after throwing an instance of 'std::bad_alloc'", OutOfMemoryError, 71),
        ("MemoryError: Unable to allocate 1.2 TiB for an array", OutOfMemoryError, 71),
        ("tensorflow.python.framework.errors_impl.ResourceExhaustedError: OOM when allocating tensor", OutOfMemoryError, 71),
        ("OSError: [Errno 28] No space left on device", StorageError, 74),
        ("OSError: [Errno 122] Disk quota exceeded", StorageError, 74),
        ("KeyError: 'no such thing'", ToolError, 70),
    ],
)
def test_what_a_child_says_last_tells_why_it_failed(tmp_path, said, kind, code):
    script = f"import sys; print({said!r}); sys.exit(3)"
    with pytest.raises(JobError) as failed:
        child.run([sys.executable, "-c", script], tmp_path, tmp_path / "log", os.environ)
    assert type(failed.value) is kind
    assert failed.value.code == code
    assert "exit code 3" in failed.value.message
    assert said in failed.value.detail


def test_a_killed_child_is_named_with_its_signal(tmp_path):
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(ToolError, match="was killed by SIGKILL"):
        child.run([sys.executable, "-c", script], tmp_path, tmp_path / "log", os.environ)


def test_a_child_that_does_well_is_followed_to_its_end(tmp_path):
    seen = []
    script = "open('done', 'w').write('x')"
    assert child.run([sys.executable, "-c", script], tmp_path, tmp_path / "log", os.environ, lambda: seen.append(1))
    assert seen
    assert (tmp_path / "done").exists()


def test_at_the_deadline_a_child_is_ended(tmp_path):
    """It is told to, before it is killed, and nothing of it is left."""
    script = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(600)"
    assert not child.run([sys.executable, "-c", script], tmp_path, tmp_path / "log", os.environ, deadline=0.0)
