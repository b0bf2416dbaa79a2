"""What `make demo` runs: the whole job on al-mg.extxyz, with small settings, into out/."""

import os
import sys
from pathlib import Path

from mlip_pace.cli import main

SETTINGS = {
    "MLIP_PACE_DATA_PATH": str(Path(__file__).parent / "al-mg.extxyz"),
    "MLIP_PACE_DATA_TEST_FRACTION": "0.1",
    "MLIP_PACE_BASIS_FUNCTIONS": "100",
    "MLIP_PACE_TRAINING_MAX_EPOCHS": "10",
    "MLIP_PACE_OUTPUT_PATH": "out",
    "MLIP_PACE_RUN_LOG_FORMAT": "text",
}

for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
sys.exit(main(["run"]))
