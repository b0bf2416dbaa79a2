"""What to compute with, and whom to tell how it goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from mlip_pace.run import limits


def _nobody(_: object) -> None:
    return


@dataclass(frozen=True)
class Compute:
    """The CPUs, the device, the time, and where progress and warnings go."""

    threads: int = field(default_factory=limits.cpus)  # of pacemaker; worker processes of our own computations
    device: str = "cpu"  # or the name of the GPU that TensorFlow uses
    gpu_memory: str = "grow"  # or all
    deadline: float = math.inf  # of time.monotonic: what is not finished by then is stopped
    progress: Callable[[dict[str, float]], None] = _nobody  # gets rows of metrics
    warn: Callable[[str], None] = _nobody
