"""What a user reads when a job ends: the culprit by name, and what to do about it."""

import pytest
from conftest import EXAMPLES, mlip_pace

CASES = {
    "unknown optimizer": (64, {"TRAINING_OPTIMIZER": "nonsense"}, "MLIP_PACE_TRAINING_OPTIMIZER", "mlip-pace settings"),
    "override is no YAML": (64, {"TRAINING_OVERRIDE": "{bad}"}, "bad.yaml", "MLIP_PACE_TRAINING_OVERRIDE"),
    "override without sections": (64, {"TRAINING_OVERRIDE": "{flat}"}, "flat.yaml", "mlip-pace check"),
    "no data": (66, {"DATA_PATH": "{nowhere}"}, "nowhere", "MLIP_PACE_DATA_PATH"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_last_line_names_the_culprit_and_what_to_do(tmp_path, case):
    (tmp_path / "bad.yaml").write_text("fit: [1")
    (tmp_path / "flat.yaml").write_text("loss: 1")
    paths = {"bad": tmp_path / "bad.yaml", "flat": tmp_path / "flat.yaml", "nowhere": tmp_path / "nowhere"}
    expected, settings, culprit, action = CASES[case]
    ours = {name: value.format(**paths) for name, value in settings.items()}
    code, _, last = mlip_pace(tmp_path / "out", ours.pop("DATA_PATH", EXAMPLES), **ours)
    assert code == expected
    assert culprit in last["message"]
    assert action in last["hint"]
