"""Whether TensorFlow can use a GPU here, and which. Asked in a child: TensorFlow never lives in our own process."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mlip_pace.errors import DeviceError
from mlip_pace.run.child import as_child

NVIDIA = Path("/dev/nvidiactl")  # made by the driver, and by docker --gpus and apptainer --nv

_NAME_GPU = """
import tensorflow as tf
for gpu in tf.config.list_physical_devices("GPU"):
    print("GPU:", tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name))
"""


def name(env: Mapping[str, str]) -> tuple[str | None, str]:
    """The name of the GPU that TensorFlow uses, if it can use one; and what it says about it."""
    command = [sys.executable, "-c", _NAME_GPU]
    done = subprocess.run(
        command, env={**env, "TF_CPP_MIN_LOG_LEVEL": "0"}, capture_output=True, text=True, preexec_fn=as_child
    )
    names = [line.removeprefix("GPU: ") for line in done.stdout.splitlines() if line.startswith("GPU: ")]
    said = [line for line in done.stderr.splitlines() if re.search("cuda|cudnn|gpu|error", line, re.IGNORECASE)]
    return (names[0] if names else None), (
        said[-1].rpartition("] ")[2].strip() if said else f"it sees none (exit code {done.returncode})"
    )


def refuse_missing(device: str) -> None:
    """Raise `DeviceError` where a GPU is asked for and there is none."""
    if device == "gpu" and not NVIDIA.exists():
        raise DeviceError(
            f"MLIP_PACE_RUN_DEVICE=gpu, but there is no NVIDIA GPU here ({NVIDIA} is missing)",
            "docker run needs --gpus all, apptainer needs --nv; MLIP_PACE_RUN_DEVICE=cpu computes without",
        )


def usable(device: str, env: Mapping[str, str]) -> tuple[str | None, str]:
    """The name of the GPU to compute on, if one is wanted and can be used; else why one that is there cannot be.

    Raises `DeviceError` if it was asked for.
    """
    if device == "cpu" or not NVIDIA.exists():
        return None, ""
    found, reason = name(env)
    if found is None and device == "gpu":
        raise DeviceError(
            f"MLIP_PACE_RUN_DEVICE=gpu, but TensorFlow cannot use the GPU here: {reason}",
            "the driver must be new enough for CUDA 12.5, and the image the one with VARIANT=cuda",
        )
    return found, reason if found is None else ""
