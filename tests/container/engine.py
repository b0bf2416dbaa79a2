"""Jobs in containers of the image, each with the options that README and deploy/ recommend."""

import json
import os
import subprocess
import time

from conftest import EXAMPLES, ROOT

os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"  # it is an image of a registry; `Job` removes its container itself

from testcontainers.core.container import DockerContainer

IMAGE = "mlip-pace:cpu"
BASE_IMAGE = "local/python-base:bookworm"
UID = 54321  # of nobody: no passwd entry in the image
HARDENED = {
    "read_only": True,
    "network_mode": "none",
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "pids_limit": 256,
    "tmpfs": {"/tmp": "size=64m"},
    "user": f"{UID}:{UID}",
}
SMALL = {
    "BASIS_FUNCTIONS": 12,
    "BASIS_BODY_ORDER": 3,
    "TRAINING_MAX_EPOCHS": 0,
    "DATA_TEST_FRACTION": 0.1,
    "TRAINING_OPTIMIZER": "BFGS",  # pacemaker itself
    "PHYSICS_PROPERTIES": "phonons",  # which need most of what is in the image; all of them take half a minute a job
}


def shell(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, **options).stdout


class Job:
    """A hardened container of the image at work on `out`. Settings without MLIP_PACE_; `options` are those of docker-py."""

    def __init__(self, out, data=EXAMPLES, command="run", options=None, mounts=(), **settings):
        options = {**HARDENED, **(options or {})}
        self.container = DockerContainer(IMAGE).with_command(command)
        self.container.tmpfs = options.pop("tmpfs")
        self.container.with_kwargs(**options)
        if out is not None:
            self.container.with_volume_mapping(str(out), "/out", "rw")
        inside = "/data" if data.is_dir() else f"/data/{data.name}"
        self.container.with_volume_mapping(str(data), inside, "ro")
        for source, target, mode in mounts:
            self.container.with_volume_mapping(str(source), target, mode)
        for name, value in {**SMALL, **settings}.items():
            if value is not None:
                self.container.with_env(f"MLIP_PACE_{name}", str(value))

    def __enter__(self):
        self.container.start()
        self.docker = self.container.get_wrapped_container()
        return self

    def __exit__(self, *_):
        self.container.stop()

    def wait(self, timeout=300):
        """Its exit code."""
        return self.docker.wait(timeout=timeout)["StatusCode"]

    def lines(self):
        """Its standard output so far."""
        return self.container.get_logs()[0].decode().splitlines()

    def inside(self, code):
        """Run Python in the container, beside the job."""
        done = self.docker.exec_run(["/opt/venv/bin/python", "-c", code])
        assert done.exit_code == 0, done.output
        return done.output.decode()

    @property
    def last(self):
        """The object that ends every log."""
        return json.loads(self.lines()[-1])


def until(condition, seconds=120):
    """Wait for something to happen."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def run(out, **arguments):
    """Run a job to its end; its exit code and its last line."""
    with Job(out, **arguments) as job:
        code = job.wait()
        assert job.last["code"] == code, job.lines()
        return code, job.last
