"""The image as a .sif in a real Apptainer, as an unprivileged user of a Debian sid (`engine.sh apptainer`)."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import EXAMPLES, REQUIRE_DOCKER, ROOT

from container.engine import IMAGE, SMALL, shell
from mlip_pace.publish.potential import Potential, intact

SID = Path("/var/tmp/mlip-pace-apptainer")
HOME = SID / "home" / "tester"
# Apptainer wants a real root, not a chroot.
ENTER = """
mount --make-rprivate / && mount --bind "$0" "$0" && cd "$0" && mkdir -p .old
mount -t proc proc proc && mount --rbind /dev dev && mount -t sysfs sys sys && mount -t tmpfs tmp tmp && chmod 1777 tmp
pivot_root . .old && cd / && umount -l /.old
exec su tester --login --command "$1"
"""
SETTINGS = "".join(f"MLIP_PACE_{name}={value}\n" for name, value in SMALL.items())


def as_tester(command, timeout=600):
    """Run shell commands in sid as its user; the finished process."""
    enter = ["unshare", "--mount", "sh", "-c", ENTER, SID, command]
    return subprocess.run(enter, capture_output=True, text=True, timeout=timeout)


def clear():
    for entry in HOME.iterdir():
        shell("rm", "-rf", str(entry))


@pytest.fixture(scope="module")
def desk(image):
    """The user's folder: the .sif, the data, the settings in a file. A killed run may have left its own."""
    if not (SID / "usr" / "bin" / "apptainer").exists():
        reason = f"there is no Apptainer in {SID}: tests/container/engine.sh apptainer"
        (pytest.fail if REQUIRE_DOCKER else pytest.skip)(reason)
    clear()
    shell("docker", "save", IMAGE, "--output", f"{HOME}/image.tar")
    shell("cp", "-r", f"{EXAMPLES.parent}", f"{HOME}/data")
    (HOME / "mlip-pace.env").write_text(SETTINGS)
    for script in ("job.sh", "cluster.sh"):
        shell("cp", str(ROOT / "deploy" / "slurm" / script), f"{HOME}")
    shell("chown", "-R", "--reference", str(HOME), str(HOME))
    # Without compression: it would take minutes, and this file is used once.
    uncompressed = '--mksquashfs-args "-noI -noD -noF -noX"'
    built = as_tester(f"apptainer build {uncompressed} mlip-pace.sif docker-archive:image.tar && rm image.tar")
    assert built.returncode == 0, built.stderr
    yield HOME
    clear()


def last_line(stdout):
    return json.loads(stdout.splitlines()[-1])


@pytest.mark.parametrize("options", ["", "--compat", "--containall"])
def test_it_runs(desk, options):
    out = desk / f"out{options}"
    bind = f"--bind data:/data:ro --bind {out.name}:/out"
    done = as_tester(
        f"mkdir ./{out.name}; PYTHONPATH=/nowhere apptainer run {options} --env-file mlip-pace.env {bind} mlip-pace.sif"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert last_line(done.stdout)["code"] == 0
    assert intact(out / "potential.json")


def test_it_stops_on_term_and_goes_on(desk):
    run = "apptainer run --containall --env-file mlip-pace.env --env MLIP_PACE_TRAINING_MAX_EPOCHS=1"
    run += " --bind data:/data:ro --bind stopped:/out mlip-pace.sif"
    started = "stopped/work/5-train.part/attempt-1/output.log"
    done = as_tester(f"mkdir stopped; {run} & until [ -e {started} ]; do sleep 0.1; done; kill $!; wait $!")
    assert done.returncode == 143, done.stdout + done.stderr
    assert last_line(done.stdout)["code"] == 143
    assert as_tester(run).returncode == 0


def test_the_slurm_script_goes_back_into_the_queue(desk):
    """The script with the real Apptainer. There is no SLURM: srun runs what it is given, scontrol notes it."""
    prepare = """
    mkdir bin && printf '#!/bin/sh\\nshift\\nexec "$@"\\n' >bin/srun && printf '#!/bin/sh\\necho "$@" >>queued\\n' >bin/scontrol
    chmod +x bin/srun bin/scontrol
    sed -i s/MAX_EPOCHS=0/MAX_EPOCHS=1/ mlip-pace.env
    """
    assert as_tester(prepare).returncode == 0
    slurm = "SLURM_JOB_ID=7 SLURM_ARRAY_TASK_ID=2 SLURM_CPUS_PER_TASK=1 SLURM_MEM_PER_NODE=3000"
    job = f"{slurm} PATH=$PWD/bin:$PATH OUT=array ./job.sh"
    done = as_tester(f"APPTAINERENV_MLIP_PACE_RUN_TIME_LIMIT=1 {job}")
    assert done.returncode == last_line(done.stdout)["code"] == 124, done.stderr
    assert (desk / "queued").read_text() == "requeue 7\n"
    done = as_tester(job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (desk / "queued").read_text() == "requeue 7\n"
    metadata = Potential.load(desk / "array" / "member-2" / "potential.json").metadata
    assert metadata["training"]["settings"]["seed"] == 44
    assert (metadata["hardware"]["cpus"], metadata["hardware"]["memory_mb"]) == (1, 3000)


# Two "nodes" on this machine: srun without --nodes=1 starts what it is given on both, and TERM to it ends all of it.
SRUN = """#!/bin/bash
nodes=2
while [ "${1#--}" != "$1" ]; do [ "$1" = --nodes=1 ] && nodes=1; shift; done
for ((n = 0; n < nodes; n++)); do "$@" & started+=($!); done
trap 'kill "${started[@]}"' TERM USR1
code=0
for one in "${started[@]}"; do
  while kill -0 $one 2>/dev/null; do wait $one; code=$?; done
done
exit $code
"""


def test_the_slurm_script_for_several_nodes(desk):
    """The script with the real Apptainer and openssl: scheduler, workers and job in containers of their own, all by TLS."""
    (desk / "two").mkdir(exist_ok=True)
    (desk / "two" / "srun").write_text(SRUN)
    (desk / "two" / "scontrol").write_text('#!/bin/sh\necho "$@" >>queued-two\n')
    (desk / "mlip-pace.env").write_text(SETTINGS.replace("MAX_EPOCHS=0", "MAX_EPOCHS=1"))
    shell("chmod", "+x", str(desk / "two" / "srun"), str(desk / "two" / "scontrol"))
    shell("chown", "-R", "--reference", str(HOME), str(desk / "two"), str(desk / "mlip-pace.env"))
    # Without FUSE each container of a .sif unpacks it anew, four at a time: here all of them have it unpacked.
    assert as_tester("apptainer build --sandbox unpacked mlip-pace.sif").returncode == 0
    slurm = "SLURM_JOB_ID=8 PATH=$PWD/two:$PATH"
    done = as_tester(f"{slurm} IMAGE=unpacked OUT=clustered APPTAINERENV_MLIP_PACE_RUN_THREADS=1 ./cluster.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    assert last_line(done.stdout)["code"] == 0
    assert intact(desk / "clustered" / "potential.json")
    assert done.stderr.count("Registered to:      tls://") == 2
    assert not list(desk.glob(".mlip-pace-tls-*"))
    assert not (desk / "queued-two").exists()
