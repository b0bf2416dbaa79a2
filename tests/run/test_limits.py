"""CPUs and memory of cgroups of either version, of their ancestors and of SLURM; checkpoints that are not whole."""

import os
import signal

import numpy as np
import pytest
from pyace.basis import BBasisConfiguration

from mlip_pace.ace import basis
from mlip_pace.ace.files import write_linear
from mlip_pace.run import limits
from mlip_pace.settings import BasisSettings
from mlip_pace.train import checkpoint

HERE = len(os.sched_getaffinity(0))
V1 = ("cgroup cgroup rw,{name}", "3:{name}:{path}")
V2 = ("cgroup2 cgroup2 rw", "0::{path}")
GIB = 2**30


def machine(folder, version, files, path="/job/step", root="/"):
    """A /proc and a cgroup file system with these files ({path in it: content})."""
    kind, line = V1 if version == 1 else V2
    names = ("cpu", "memory") if version == 1 else ("",)
    (folder / "proc" / "self").mkdir(parents=True)
    mounts, own = [], []
    for name in names:
        point = folder / "cgroup" / name
        mounts.append(f"30 20 0:26 {root} {point} ro,nosuid - {kind.format(name=name)}")
        own.append(line.format(name=name, path=path))
    (folder / "proc" / "self" / "mountinfo").write_text("20 1 0:1 / / rw - ext4 /dev/vda rw\n" + "\n".join(mounts) + "\n")
    (folder / "proc" / "self" / "cgroup").write_text("\n".join(own) + "\n")
    for name, content in files.items():
        file = folder / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return folder / "proc"


def test_without_cgroups_there_are_affinity_and_the_machine(tmp_path):
    assert limits.cpus({}, tmp_path) == HERE
    assert limits.memory({}, tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert limits.out_of_memory_kills(tmp_path) == 0


@pytest.mark.parametrize("place", ["job/step/", "job/", ""])
def test_version_2_counts_with_its_ancestors(tmp_path, place):
    files = {"job/step/memory.max": "max", "job/step/cpu.max": "max 100000"}
    proc = machine(tmp_path, 2, files | {f"{place}memory.max": GIB, f"{place}cpu.max": "50000 100000"})
    assert limits.cpus({}, proc) == 1
    assert limits.memory({}, proc) == GIB


@pytest.mark.parametrize("place", ["job/step/", "job/", ""])
def test_version_1_counts_with_its_ancestors(tmp_path, place):
    files = {"memory/job/step/memory.limit_in_bytes": 9223372036854771712, "cpu/job/step/cpu.cfs_quota_us": -1}
    files |= {f"memory/{place}memory.limit_in_bytes": GIB, f"cpu/{place}cpu.cfs_quota_us": 50000}
    proc = machine(tmp_path, 1, files | {f"cpu/{place}cpu.cfs_period_us": 100000})
    assert limits.cpus({}, proc) == 1
    assert limits.memory({}, proc) == GIB


@pytest.mark.parametrize("root", ["/docker/1", "/../other"])
def test_a_container_sees_its_cgroup_as_the_root(tmp_path, root):
    proc = machine(tmp_path, 2, {"memory.max": GIB}, path="/docker/1", root=root)
    assert limits.memory({}, proc) == GIB


def test_the_name_of_a_cgroup_may_have_colons(tmp_path):
    proc = machine(tmp_path, 2, {"system.slice:docker:1/memory.max": GIB}, path="/system.slice:docker:1")
    assert limits.memory({}, proc) == GIB


def test_a_share_of_a_cpu_is_rounded_up(tmp_path):
    assert limits.cpus({}, machine(tmp_path, 2, {"job/step/cpu.max": "110000 100000"})) == min(2, HERE)


def test_slurm_counts(tmp_path):
    assert limits.cpus({"SLURM_CPUS_PER_TASK": "1"}, tmp_path) == 1
    assert limits.memory({"SLURM_MEM_PER_NODE": "512"}, tmp_path) == GIB // 2
    assert limits.memory({"SLURM_MEM_PER_CPU": "256", "SLURM_CPUS_PER_TASK": "1"}, tmp_path) == GIB // 4


def test_kills_are_counted(tmp_path):
    assert limits.out_of_memory_kills(machine(tmp_path / "2", 2, {"job/step/memory.events": "oom 7\noom_kill 3"})) == 3
    file = {"memory/job/step/memory.oom_control": "under_oom 0\noom_kill 2"}
    assert limits.out_of_memory_kills(machine(tmp_path / "1", 1, file)) == 2


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """A folder after two iterations, in which the coefficients were 1 and then 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "_iterations", 0)
    handler = signal.getsignal(signal.SIGTERM)
    section = basis.section(BasisSettings.model_construct(functions=3, body_order=2), ["Al"], {"Al-Al": 2.5})
    for value in (1.0, 2.0):
        write_linear(tmp_path / "p.yaml", section, np.full(3, value))
        checkpoint.after_iteration(BBasisConfiguration(str(tmp_path / "p.yaml")))
    signal.signal(signal.SIGTERM, handler)
    return tmp_path


def coefficients(found):
    return BBasisConfiguration(str(found.path)).funcspecs_blocks[0].get_func_coeffs()


def test_the_last_checkpoint_counts(attempt):
    found = checkpoint.latest(attempt)
    assert found.iterations == 2
    assert max(coefficients(found)) == 2


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b.replace(b"2", b"3", 1), lambda b: b"", lambda b: b + b"x"])
def test_the_one_before_counts_if_the_last_is_damaged(attempt, damage):
    file = attempt / checkpoint.CHECKPOINT
    file.write_bytes(damage(file.read_bytes()))
    found = checkpoint.latest(attempt)
    assert found.iterations == max(coefficients(found)) == 1


def test_a_kill_between_the_two_renames_loses_nothing(attempt):
    (attempt / checkpoint.CHECKPOINT).unlink()
    assert checkpoint.latest(attempt).iterations == 1
    (attempt / checkpoint.PREVIOUS).unlink()
    assert checkpoint.latest(attempt) is None
