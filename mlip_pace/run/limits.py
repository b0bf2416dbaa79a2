"""What we may use: CPUs and memory (bytes), from CPU affinity, cgroup (v1 and v2, with its ancestors) and SLURM.

The host's totals say nothing about that: a container with half a CPU and 1 GB sees 128 CPUs and 1 TB in them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

PROC = Path("/proc")


def cpus(environ: Mapping[str, str] = os.environ, proc: Path = PROC) -> int:
    """CPUs to compute on, at least 1; a share of 1.5 CPUs counts as 2."""
    found = [float(len(os.sched_getaffinity(0)))]
    for folder in _cgroups("cpu", proc):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        quota = quota or _text(folder / "cpu.cfs_quota_us")  # v1
        period = period or _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period:
            found.append(int(quota) / int(period))
    if tasks := environ.get("SLURM_CPUS_PER_TASK"):
        found.append(float(tasks))
    return max(1, math.ceil(min(found)))


def memory(environ: Mapping[str, str] = os.environ, proc: Path = PROC) -> int:
    """Bytes of memory that this process and its children may use together."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in _cgroups("memory", proc):
        limit = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        if limit.isdecimal():  # not "max"; v1 says a number near 2^63 instead
            found.append(int(limit))
    per_node, per_cpu = (int(environ.get(f"SLURM_MEM_PER_{unit}") or 0) for unit in ("NODE", "CPU"))
    found += [megabytes * 2**20 for megabytes in (per_node, per_cpu * cpus(environ, proc)) if megabytes]
    return min(found)


def out_of_memory_kills(proc: Path = PROC) -> int:
    """How often the kernel has killed a process of our cgroup for want of memory; 0 where it does not say."""
    own = next(_cgroups("memory", proc), None)
    if own is None:
        return 0
    counters = (_text(own / "memory.events") or _text(own / "memory.oom_control")).splitlines()
    return sum(int(line.split()[1]) for line in counters if line.startswith("oom_kill "))


def _cgroups(controller: str, proc: Path) -> Iterator[Path]:
    """The folders of our cgroup for `controller` and of its ancestors, as far as they can be seen from here."""
    own: dict[str, str] = {}  # "" is v2
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    for line in _text(proc / "self" / "mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        root, point = mount.split()[3:5]
        system, _, options = kind.split(maxsplit=2)
        name = {"cgroup": controller, "cgroup2": ""}.get(system)
        if name not in own or (name and name not in options.split(",")):
            continue
        inside = os.path.relpath(own[name], root)  # a container sees its own cgroup as the root, whatever /proc says
        folder = Path(point) if inside.startswith("..") else Path(point, inside)
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(point))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
