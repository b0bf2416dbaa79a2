"""A real Docker engine and the image of this very code.

`engine.sh` makes the engine and the base image on a bare machine. Without an engine these tests are skipped, unless
TESTS_REQUIRE_DOCKER=1.
"""

import os
import subprocess

import pytest
from conftest import REQUIRE_DOCKER

from container.engine import BASE_IMAGE, IMAGE, UID, shell


@pytest.fixture(scope="session")
def engine():
    try:
        shell("docker", "info")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = f"no Docker engine is reachable: {getattr(error, 'stderr', '') or error}"
        if REQUIRE_DOCKER:
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def image(engine):
    """The CPU image of this very code."""
    shell("make", "image-cpu", f"BASE_IMAGE={BASE_IMAGE}", timeout=1200)
    return IMAGE


@pytest.fixture
def out(tmp_path):
    """An output folder that the container's user may write to."""
    folder = tmp_path / "out"
    folder.mkdir()
    os.chown(folder, UID, UID)
    tmp_path.chmod(0o755)
    return folder
