"""What to compute with, and whom to tell how it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlip_pace.run import limits
from mlip_pace.run.pool import Cluster, Workers


@contextmanager
def cluster_of(
    scheduler: str | None, output: Path, files: Sequence[Path], say: Callable[[str], None], deadline: float
) -> Iterator[Cluster | None]:
    """The cluster of a scheduler (`cluster.connected`), if one is named: whoever needs none needs no Dask."""
    if scheduler is None:
        yield None
        return
    from mlip_pace.run.cluster import connected

    with connected(scheduler, output, files, say, deadline) as cluster:
        yield cluster


def end_of_share(share: float, begun: float, last: float, least: float) -> float:
    """When something has to end (of time.monotonic) that may take a share of all the time since `begun`, its own included, but
    `least` seconds in any case; never after the last, and of the time up to that no more than the share.
    """
    now = time.monotonic()
    enough = max(least, (now - begun) * share / (1 - share)) if share < 1 else math.inf
    return min(last, now + min(enough, share * (last - begun)))


def _nobody(_: object) -> None:
    return


@dataclass(frozen=True)
class Compute:
    """The CPUs, the device, the time, and where progress and warnings go."""

    threads: int = field(default_factory=limits.cpus)  # of pacemaker; worker processes of our own computations
    cluster: Cluster | None = None  # in place of these processes
    device: str = "cpu"  # or the name of the GPU that TensorFlow uses
    gpu_memory: str = "grow"  # or all
    deadline: float = math.inf  # of time.monotonic: what is not finished by then is stopped
    progress: Callable[[dict[str, float]], None] = _nobody  # gets rows of metrics
    warn: Callable[[str], None] = _nobody

    @property
    def workers(self) -> Workers:
        """Of our own computations."""
        return self.threads if self.cluster is None else self.cluster
