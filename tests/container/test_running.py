"""Any user, anywhere: what a container is given, and what it says where that is not enough."""

import contextlib
import gzip
import json
import os
import pickle
import re
import subprocess

import pytest
from ase.io import read
from conftest import EXAMPLES, ROOT

from container.engine import SMALL, UID, Job, run, shell, until
from mlip_pace import load_calculator
from mlip_pace.publish.potential import Potential, intact
from mlip_pace.run.steps import sha256

pytestmark = pytest.mark.usefixtures("image")


@pytest.mark.parametrize(("user", "epochs"), [("0:0", 0), ("10001:10001", 0), ("54321:0", 1)])
def test_any_user_trains(out, user, epochs):
    """Without a passwd entry, a home, a network, a capability; with an iteration of the real pacemaker."""
    os.chown(out, *map(int, user.split(":")))
    code, last = run(out, options={"user": user}, TRAINING_MAX_EPOCHS=epochs)
    assert code == 0, last
    potential = Potential.load(out / "potential.json")
    assert potential.metadata["training"]["iterations"] == epochs
    assert (out / "potential.json").stat().st_uid == int(user.split(":")[0])
    atoms = read(EXAMPLES, 10)
    atoms.calc = load_calculator(out / "potential.json")
    assert atoms.get_potential_energy() < 0


@pytest.fixture(scope="module")
def finished(image, tmp_path_factory):
    """The output of a job that is done."""
    folder = tmp_path_factory.mktemp("finished")
    os.chown(folder, UID, UID)
    assert run(folder)[0] == 0
    return folder


def test_only_the_output_need_be_writable(out):
    code, last = run(out, options={"tmpfs": {}})
    assert code == 0, last


def test_a_finished_job_runs_nothing_again(finished):
    with Job(finished) as job:
        assert job.wait() == 0
        assert any("already published" in line for line in job.lines())
        state = job.docker.client.api.inspect_container(job.docker.id)["State"]
    begin, end = (state[name][17:26] for name in ("StartedAt", "FinishedAt"))
    assert (float(end) - float(begin)) % 60 < 3


def test_one_setting_changed_is_refused_and_with_overwrite_done(finished, out):
    subprocess.run(["cp", "-a", f"{finished}/.", out], check=True)
    before = sha256(out / "potential.json")
    code, last = run(out, TRAINING_KAPPA=0.5)
    assert code == 78
    assert "OVERWRITE" in last["hint"]
    assert sha256(out / "potential.json") == before
    assert run(out, TRAINING_KAPPA=0.5, OUTPUT_OVERWRITE=1)[0] == 0
    assert sha256(out / "previous-1" / "potential.json") == before
    assert intact(out / "previous-1" / "potential.json")


def test_data_is_read_only_and_not_touched(out, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a@b c\nd.extxyz").write_bytes(EXAMPLES.read_bytes())
    before = [(p.name, p.stat().st_mtime_ns, sha256(p)) for p in data.iterdir()]
    code, last = run(out, data=data)
    assert code == 0, last
    assert [(p.name, p.stat().st_mtime_ns, sha256(p)) for p in data.iterdir()] == before
    names = [file["name"] for file in Potential.load(out / "potential.json").metadata["dataset"]["files"]]
    assert names == ["a@b c\nd.extxyz"]


@pytest.mark.parametrize("case", ["of another owner", "read-only"])
def test_an_output_that_cannot_be_written(out, case):
    if case == "of another owner":
        os.chown(out, 0, 0)
        code, last = run(out)
    else:
        code, last = run(None, mounts=[(out, "/out", "ro")])
    assert code == 73
    assert f"uid {UID}" in last["message"]
    assert "mode 755" in last["message"]
    assert "docker run --user" in last["hint"]


def test_nothing_is_written_through_a_link(out, tmp_path):
    target = tmp_path / "elsewhere"
    target.write_text("mine")
    (out / "potential.yace").symlink_to("/data/elsewhere")
    code, last = run(out, mounts=[(target, "/data/elsewhere", "rw")])
    assert code == 77
    assert "/data/elsewhere" in last["message"]
    assert target.read_text() == "mine"


class Payload:
    def __reduce__(self):
        return os.system, ("touch /out/executed",)


def test_a_pickle_with_code_is_refused(out, tmp_path):
    bad = tmp_path / "bad.pckl.gzip"
    with gzip.open(bad, "wb") as file:
        pickle.dump(Payload(), file)
    code, _ = run(out, data=bad)
    assert code == 77
    assert not (out / "executed").exists()


def test_a_full_disk_is_said_and_harms_nothing(out):
    """8 MB hold an earlier result; the next one does not fit. With room again, the same command goes on."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=8m,uid={UID},gid={UID}", "none", out], check=True)
    try:
        assert run(out)[0] == 0
        before = sha256(out / "potential.json")
        filler = out / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            file.write(bytes(8 << 20))
        code, last = run(out, TRAINING_KAPPA=0.5, OUTPUT_OVERWRITE=1)
        assert (code, last["reason"]) == (74, "storage")
        status = json.loads((out / "status.json").read_text())
        assert (status["code"], status["message"]) == (74, last["message"])
        assert all(json.loads(line) for line in (out / "log.jsonl").read_text().splitlines())
        assert sha256(out / "potential.json") == before
        assert intact(out / "potential.json")
        filler.unlink()
        assert run(out, TRAINING_KAPPA=0.5, OUTPUT_OVERWRITE=1)[0] == 0
    finally:
        subprocess.run(["umount", out], check=True)


def test_a_second_container_on_the_same_output(out):
    with Job(out, TRAINING_MAX_EPOCHS=10000, TRAINING_EARLY_STOPPING_GAIN=0) as first:
        until(lambda: (out / "status.json").exists())
        code, last = run(out)
        assert code == 75
        assert last["resumable"]
        first.docker.kill()


def test_the_limits_of_the_container_are_its_own(out):
    code, _ = run(out, options={"nano_cpus": 10**9, "mem_limit": "1g"})
    assert code == 0
    hardware = Potential.load(out / "potential.json").metadata["hardware"]
    assert hardware["cpus"] == 1
    assert hardware["memory_mb"] == 1024


def test_a_terminal_gets_text(out):
    with Job(out, options={"tty": True}) as job:
        assert job.wait() == 0
        text = job.docker.logs().decode()
    assert "structures read" in text
    assert not any(line.startswith('{"time"') for line in text.splitlines())


def test_without_a_terminal_every_line_is_json(finished, out):
    with Job(out) as job:
        assert job.wait() == 0
        text = job.docker.logs(stderr=True).decode()
    assert "\r" not in text
    assert all(json.loads(line) for line in text.splitlines())


def test_compose_runs_the_example_data(image):
    """As README has it, with fewer functions."""
    compose = ["docker", "compose", "--project-name", "mlip-pace-test"]
    small = [option for name, value in SMALL.items() for option in ("-e", f"MLIP_PACE_{name}={value}")]
    try:
        done = subprocess.run([*compose, "run", "--rm", *small, "mlip-pace"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == json.loads(done.stdout.splitlines()[-1])["code"] == 0, done.stderr
    finally:
        subprocess.run([*compose, "down", "--volumes"], cwd=ROOT, capture_output=True)


def test_compose_runs_a_cluster(image, tmp_path):
    """As docs/howto/cluster.md has it, with fewer functions: a scheduler, two workers, the job."""
    more = tmp_path / "small.yaml"
    small = {f"MLIP_PACE_{name}": str(value) for name, value in SMALL.items()}
    more.write_text(json.dumps({"services": {"mlip-pace-on-cluster": {"environment": small}}}))
    compose = ["docker", "compose", "--project-name", "mlip-pace-cluster", "-f", "compose.yaml", "-f", str(more)]
    compose += ["--profile", "cluster"]
    up = [*compose, "up", "--no-color", "--no-log-prefix", "--exit-code-from", "mlip-pace-on-cluster"]
    try:
        done = subprocess.run(up, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        (last,) = re.findall(r'\{"code": .*\}', done.stdout)
        assert json.loads(last)["code"] == 0
        assert "workers of the cluster at tcp://scheduler:8786" in done.stdout
        assert done.stderr.count("Register worker addr") == 2  # Dask logs there
    finally:
        subprocess.run([*compose, "down", "--volumes"], cwd=ROOT, capture_output=True)


def test_compose_has_a_profile_for_gpus(engine):
    config = shell("docker", "compose", "--profile", "gpu", "config", "--format", "json")
    job = json.loads(config)["services"]["mlip-pace-gpu"]
    assert job["environment"]["MLIP_PACE_RUN_DEVICE"] == "gpu"
    assert job["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert job["read_only"]
    assert job["cap_drop"] == ["ALL"]
