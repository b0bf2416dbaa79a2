"""What is in the image: no more than is needed, said in labels and in an SBOM."""

import json
import re
import subprocess
import time
from urllib.parse import unquote

import docker
import pytest
from conftest import ROOT

from container.engine import BASE_IMAGE, HARDENED, shell
from mlip_pace import __version__

pytestmark = pytest.mark.usefixtures("image")


@pytest.fixture(scope="module")
def about(image):
    (found,) = json.loads(shell("docker", "image", "inspect", image))
    return found


@pytest.fixture(scope="module")
def inside(image):
    """Runs a command in a container and returns what it prints."""
    client = docker.from_env()

    def output(*command, **options):
        container = client.containers.create(image, command[1:], entrypoint=command[0], **{**HARDENED, **options})
        try:
            container.start()
            code = container.wait()["StatusCode"]
            # Read when it has ended: containers.run() follows the log, removes the container, and then loses its last lines.
            printed = container.logs(stdout=True, stderr=False).decode()
            assert code == 0, container.logs().decode()
            return printed
        finally:
            container.remove(force=True)

    return output


def test_it_is_small(about):
    assert about["Size"] < 1.8e9  # of which LLVM, for the kernels, is 0.17, and phonopy with what it needs 0.02


def test_its_environment_says_nothing_about_the_job(about):
    names = {item.partition("=")[0] for item in about["Config"]["Env"]}
    assert "PYTHONNOUSERSITE=1" in about["Config"]["Env"]
    assert not {name for name in names if name.startswith("MLIP_PACE_") or name == "OMP_NUM_THREADS"}


def test_its_user_is_not_root(about, inside):
    assert about["Config"]["User"] == "10001:10001"
    assert inside("id", "-u", user=None).strip() == "10001"
    assert inside("stat", "-c", "%a", "/data", "/config", "/out").split() == ["755", "755", "1777"]


def test_its_labels_say_what_it_is(about):
    labels = about["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"] == shell("git", "rev-parse", "HEAD").strip()
    assert "Academic-Software-License" in labels["org.opencontainers.image.licenses"]
    assert "python-ace, tensorpotential" in labels["mlip-pace.licenses.bundled"]


def test_nothing_in_it_is_setuid_or_a_compiler(inside):
    found = inside(
        "sh", "-c", "find / -xdev -perm /6000 -type f; for c in cc gcc g++ c++ clang ld pip; do command -v $c; done; true"
    )
    assert found == ""


@pytest.fixture(scope="module")
def sbom(inside):
    return json.loads(inside("cat", "/opt/mlip-pace/sbom.cdx.json"))


def listed(sbom, kind):
    """`(name, version)` of every component of a kind of package."""
    purls = [unquote(c["purl"].partition("?")[0]) for c in sbom["components"]]
    return sorted(tuple(purl.removeprefix(kind).split("@")) for purl in purls if purl.startswith(kind))


def normal(name):
    """The name of a Python package as PyPI compares it."""
    return re.sub("[-_.]+", "-", name).lower()


def test_the_sbom_lists_exactly_what_is_installed(inside, sbom):
    code = "import importlib.metadata as m\nfor d in m.distributions(): print(d.name, d.version)"
    python = {tuple(line.split()) for line in inside("python", "-c", code).splitlines()} - {("mlip-pace", __version__)}
    assert [(normal(name), version) for name, version in listed(sbom, "pkg:pypi/")] == sorted((normal(n), v) for n, v in python)
    debian = inside("dpkg-query", "-W", "-f", "${Package} ${Version}\n").splitlines()
    assert listed(sbom, "pkg:deb/debian/") == sorted(tuple(line.split()) for line in debian)
    assert (sbom["bomFormat"], sbom["metadata"]["component"]["name"]) == ("CycloneDX", "mlip-pace")


def test_every_dependency_is_the_locked_one(sbom):
    lock = (ROOT / "requirements" / "cpu-py311.txt").read_text().splitlines()
    locked = sorted(tuple(line.split()[0].split("==")) for line in lock if "==" in line)
    assert [(normal(name), version) for name, version in listed(sbom, "pkg:pypi/")] == locked


def test_the_time_is_utc(inside):
    assert inside("date", "+%Z").strip() == "UTC"


def test_settings_are_printed_at_once(image, inside):
    seconds = []
    for _ in range(3):
        begin = time.monotonic()
        assert "MLIP_PACE_DATA_PATH" in shell("docker", "run", "--rm", "--network", "none", image, "settings")
        seconds.append(time.monotonic() - begin)
    assert min(seconds) < 1.5


def test_the_entrypoint_is_the_program(inside):
    assert inside("mlip-pace", "version") == inside("python", "/opt/mlip-pace/entrypoint.py", "version")


@pytest.mark.parametrize("builder", ["0", "1"], ids=["classic", "buildkit"])
def test_both_builders_take_the_dockerfile(builder):
    """The whole image is built by the builder of `make image-cpu`; here both build its first stage."""
    command = ["docker", "build", "--target", "base", "--build-arg", f"BASE_IMAGE={BASE_IMAGE}", "--quiet", "."]
    done = subprocess.run(command, cwd=ROOT, env={"DOCKER_BUILDKIT": builder, "PATH": "/usr/bin:/bin"}, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_change_of_the_code_reuses_the_dependencies(image, tmp_path):
    """The layer with the dependencies is the same after a change of our code."""
    shell("cp", "-r", *(str(ROOT / name) for name in shell("git", "ls-files").split() if "/" not in name), str(tmp_path))
    for folder in ("mlip_pace", "requirements", "deploy"):
        shell("cp", "-r", str(ROOT / folder), str(tmp_path))
    (tmp_path / "mlip_pace" / "new.py").touch()
    arguments = ("--build-arg", "VARIANT=cpu", "--build-arg", f"BASE_IMAGE={BASE_IMAGE}", "--quiet", str(tmp_path))
    changed = shell("docker", "build", *arguments).strip()
    layers = [json.loads(shell("docker", "image", "inspect", name))[0]["RootFS"]["Layers"] for name in (image, changed)]
    shell("docker", "image", "rm", changed)
    assert layers[0][:-1] == layers[1][:-1]
    assert layers[0][-1] != layers[1][-1]
