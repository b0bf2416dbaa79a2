"""Settings from the environment, files and YAML."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import of_a_user

from mlip_pace import TrainingConfig, settings, sources
from mlip_pace.errors import SettingsError


def refused(**environ):
    with pytest.raises(SettingsError) as error:
        sources.load({f"MLIP_PACE_{name}": value for name, value in environ.items()})
    assert error.value.code == 64
    return error.value.message


def test_environment_then_file_then_yaml_then_default(tmp_path):
    (tmp_path / "c.yaml").write_text("basis: {functions: 10, cutoff: 6, body_order: 4}\n")
    (tmp_path / "cutoff").write_text("7\n")
    environ = {"CONFIG": tmp_path / "c.yaml", "BASIS_FUNCTIONS": 30, "BASIS_CUTOFF_FILE": tmp_path / "cutoff"}
    given = sources.load({f"MLIP_PACE_{name}": str(value) for name, value in environ.items()})
    assert (given.basis.functions, given.basis.cutoff, given.basis.body_order) == (30, 7.0, 4)
    assert given.basis.embedding == "finnis-sinclair"
    assert given.origins["BASIS_FUNCTIONS"] == "environment"
    assert given.origins["BASIS_CUTOFF"] == f"file {tmp_path / 'cutoff'}"
    assert given.origins["BASIS_BODY_ORDER"] == f"config {tmp_path / 'c.yaml'}"
    assert given.origins["BASIS_EMBEDDING"] == "default"


def test_arguments_come_before_all():
    given = sources.load({"MLIP_PACE_BASIS_FUNCTIONS": "10"}, basis={"functions": 20})
    assert given.basis.functions == 20


def test_value_and_file_together_are_refused(tmp_path):
    (tmp_path / "n").write_text("7")
    assert "both given" in refused(BASIS_FUNCTIONS="3", BASIS_FUNCTIONS_FILE=str(tmp_path / "n"))


def test_all_mistakes_are_reported_at_once():
    message = refused(TRANING_KAPPA="1", TRAINING_KAPPA="2", BASIS_ELEMENTS="Al,Qq", REFERENCE_KIND="zlb", DATA_PATH="'/data'")
    assert "unknown variable MLIP_PACE_TRANING_KAPPA (did you mean MLIP_PACE_TRAINING_KAPPA?)" in message
    assert "MLIP_PACE_TRAINING_KAPPA=2: allowed: 'auto' or less than or equal to 1" in message
    assert "MLIP_PACE_BASIS_ELEMENTS=Al,Qq: Qq: no chemical element" in message
    assert "MLIP_PACE_REFERENCE_KIND=zlb: allowed: 'zbl', 'lj' or 'none'" in message
    assert "the quotes are part of the value" in message
    assert len(message.splitlines()) == 5


@pytest.mark.parametrize("name", ["SERVICE_HOST", "WEB_SERVICE_PORT", "PORT", "PORT_80_TCP_ADDR", "WEB_SERVICE_PORT_HTTP"])
def test_what_kubernetes_injects_is_ignored(name):
    sources.load({f"MLIP_PACE_{name}": "tcp://10.0.0.1:80"})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TRAINING_LADDER_STEP", "1.5", "a whole number, a fraction below 1"),
        ("TRAINING_KAPPA", "nan", "finite"),
        ("REFERENCE_OUTER", "-1", "greater than 0"),
        ("DATA_E0", "Al", "auto, none"),
        ("REFERENCE_SIGMA", "Al:2", "a pair of elements"),
        ("BASIS_FUNCTIONS", "ten", "valid integer"),
        ("CONFIG", "/nowhere.yaml", "cannot be read"),
        ("RUN_SCHEDULER", "http://host:8786", "tcp://host:8786"),
        ("RUN_SCHEDULER", "tcp://host", "tls://host:8786"),
    ],
)
def test_a_bad_value_names_the_variable_and_what_is_allowed(name, value, words):
    message = refused(**{name: value})
    assert f"MLIP_PACE_{name}={value}" in message
    assert words in message


@pytest.mark.parametrize("text", ["bassis: {functions: 3}", "basis: {function: 3}", "- a", "basis: 3", "a: ["])
def test_a_bad_yaml_file_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    assert "c.yaml" in refused(CONFIG=str(tmp_path / "c.yaml"))


def test_values_are_read_as_users_write_them():
    environ = {"BASIS_ELEMENTS": "Mg, Al", "DATA_E0": "Al:-0.1, Mg:2", "TRAINING_LADDER_STEP": "10,0.02"}
    environ |= {"REFERENCE_SIGMA": "Mg-Al:2.5", "OUTPUT_OVERWRITE": "1", "DATA_TEST_PATH": ""}
    given = sources.load({f"MLIP_PACE_{name}": value for name, value in environ.items()})
    assert given.basis.elements == ["Al", "Mg"]
    assert given.data.e0 == {"Al": -0.1, "Mg": 2.0}
    assert given.data.test_path is None
    assert given.training.ladder_step == [10.0, 0.02]
    assert given.reference.sigma == {"Al-Mg": 2.5}
    assert given.output.overwrite is True


def test_zero_epochs_need_a_linear_start():
    assert sources.load({"MLIP_PACE_TRAINING_MAX_EPOCHS": "0"}).training.max_epochs == 0
    assert "TRAINING_MAX_EPOCHS=0" in refused(TRAINING_MAX_EPOCHS="0", TRAINING_START="zero")


def test_the_listing_is_quick_and_loads_nothing_heavy():
    code = "import sys; from mlip_pace.cli import main; main(['settings', '--json']); heavy = {'tensorflow', 'pandas', 'ase'}"
    code += "; assert not heavy & set(sys.modules)"
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - begin < 3  # generous; about 0.3 s
    schema = json.loads(done.stdout)
    assert schema["properties"]["training"]["properties"]["kappa"]["default"] == 0.01


@pytest.mark.parametrize(
    ("member", "environ", "number"),
    [("auto", {"JOB_COMPLETION_INDEX": "3"}, 3), ("auto", {"SLURM_ARRAY_TASK_ID": "0"}, 0), ("7", {}, 7)],
)
def test_a_member_of_an_ensemble_has_its_seed_and_folder(member, environ, number):
    given = sources.load({"MLIP_PACE_RUN_MEMBER": member, "MLIP_PACE_OUTPUT_PATH": "/o"}).of_member(environ)
    assert given.training.seed == 42 + number
    assert given.output.path == Path(f"/o/member-{number}")


def test_without_a_member_nothing_changes():
    assert sources.load({}).of_member({"JOB_COMPLETION_INDEX": "3"}) == sources.load({})


@pytest.mark.parametrize("place", ["environment", "file", "yaml"])
def test_the_format_of_the_log_may_be_set_anywhere(tmp_path, place):
    """Also of complaints about settings."""
    (tmp_path / "value").write_text("text\n")
    (tmp_path / "config.yaml").write_text("run: {log_format: text}\n")
    given = {
        "environment": {"MLIP_PACE_RUN_LOG_FORMAT": "text"},
        "file": {"MLIP_PACE_RUN_LOG_FORMAT_FILE": str(tmp_path / "value")},
        "yaml": {"MLIP_PACE_CONFIG": str(tmp_path / "config.yaml")},
    }[place]
    command = [sys.executable, "-m", "mlip_pace.cli", "check"]
    done = subprocess.run(
        command, env={**of_a_user(None), **given, "MLIP_PACE_TRAINING_KAPPA": "2"}, capture_output=True, text=True, timeout=60
    )
    *lines, last = done.stdout.splitlines()
    assert done.returncode == json.loads(last)["code"] == 64
    assert re.match(r"\d\d:\d\d:\d\d  start .* error: MLIP_PACE_TRAINING_KAPPA=2", lines[0])


def test_an_automatic_member_outside_an_array_is_refused():
    with pytest.raises(SettingsError, match="JOB_COMPLETION_INDEX and SLURM_ARRAY_TASK_ID give no number"):
        sources.load({"MLIP_PACE_RUN_MEMBER": "auto"}).of_member({})


@pytest.mark.parametrize("data", [{"DATA_TEST_FRACTION": "0"}, {"DATA_TEST_PATH": "t.xyz"}])
def test_members_that_would_be_the_same_are_refused(data):
    """With few data the seed makes no other difference; with many a small one."""
    given = sources.load({f"MLIP_PACE_{name}": value for name, value in {"RUN_MEMBER": "1", **data}.items()})
    with pytest.raises(SettingsError, match="members differ by the test set"):
        given.of_member({})


def test_the_environment_is_read_by_nobody_else(monkeypatch):
    """Neither `load` with another environment nor a model made in Python looks at the real one."""
    monkeypatch.setenv("MLIP_PACE_BASIS_FUNCTIONS", "7")
    monkeypatch.setenv("MLIP_PACE_TRAINING_MAX_EPOCHS", "3")
    given = sources.load({})
    assert given.basis.functions == 500
    assert given.origins["BASIS_FUNCTIONS"] == "default"
    assert TrainingConfig().max_epochs == 10
    assert sources.load().basis.functions == 7


@pytest.mark.parametrize("name", [name for name in sources.variables() if not name.endswith(("_FILE", "_CONFIG"))])
def test_an_empty_variable_is_not_given(name):
    """As a template leaves it: every setting, in the environment of a real process."""
    field = name.removeprefix("MLIP_PACE_").lower()
    group, _, field = field.partition("_")
    given = sources.load({name: ""})
    assert getattr(getattr(given, group), field) == settings.GROUPS[group].model_fields[field].default
    assert given.origins[name.removeprefix("MLIP_PACE_")] == "default"


def test_empty_variables_in_a_real_process():
    names = [name for name in sources.variables() if not name.endswith("_FILE")]
    environ = {**os.environ, **dict.fromkeys(names, "")}
    code = "from mlip_pace.sources import load; s = load(); print(s.data.test_path, s.training.override, s.basis.cutoff)"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "None", "auto"]
