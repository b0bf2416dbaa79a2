"""deploy/kubernetes: valid for several versions of Kubernetes, and by the rules that schemas do not cover."""

import inspect
import shutil
import signal
import subprocess

import kubernetes_validate
import pytest
from conftest import REQUIRE_DOCKER, ROOT
from ruamel.yaml import YAML

from mlip_pace import errors, sources
from mlip_pace.run import stopping

FOLDER = ROOT / "deploy" / "kubernetes"
VERSIONS = ["1.29", "1.31", "1.33", "1.35", "1.37"]
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind is not errors.SignalError]
CODES = {kind.code for kind in KINDS}
AGAIN = {kind.code for kind in KINDS if kind.resumable}
STOPPED = {128 + number for number in stopping.SIGNALS}


def documents(text):
    return [dict(document) for document in YAML(typ="safe", pure=True).load_all(text)]


def from_file(name):
    (found,) = documents((FOLDER / name).read_text())
    return found


def built(overlay):
    """What an overlay makes, by kustomize itself."""
    if shutil.which("kustomize") is None:
        reason = "there is no kustomize (tests/container/engine.sh brings it)"
        (pytest.fail if REQUIRE_DOCKER else pytest.skip)(reason)
    done = subprocess.run(["kustomize", "build", ROOT / "deploy" / overlay], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


@pytest.fixture(scope="module")
def gpu():
    (found,) = built("kubernetes-gpu")
    return found


@pytest.fixture(scope="module")
def clustered():
    """The job of the overlay with a Dask cluster."""
    (found,) = [one for one in built("kubernetes-cluster") if one["kind"] == "Job"]
    return found


@pytest.fixture(params=["job.yaml", "ensemble.yaml", "gpu", "clustered"])
def job(request):
    return from_file(request.param) if request.param.endswith(".yaml") else request.getfixturevalue(request.param)


CLUSTER = [
    one
    for name in ("scheduler", "workers", "network")
    for one in documents((FOLDER.with_name("kubernetes-cluster") / f"{name}.yaml").read_text())
]
PODS = {one["metadata"]["name"]: one["spec"]["template"] for one in CLUSTER if one["kind"] == "Deployment"}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_of_kubernetes_take_it(job, version):
    kubernetes_validate.validate(job, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_of_kubernetes_take_the_storage(version):
    for claim in documents((FOLDER / "storage.yaml").read_text()):
        kubernetes_validate.validate(claim, version, strict=True)


def test_every_exit_code_has_one_rule(job):
    rules = job["spec"]["podFailurePolicy"]["rules"]
    action = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])}
    values = [code for rule in rules for code in rule.get("onExitCodes", {}).get("values", [])]
    assert len(values) == len(set(values))
    assert set(values) == CODES | STOPPED | {128 + signal.SIGKILL}
    final = {code for code, what in action.items() if what in ("FailJob", "FailIndex")}
    assert final == CODES - AGAIN | {errors.OutOfMemoryError.code}  # which only more memory could help
    assert {code for code, what in action.items() if what == "Ignore"} == STOPPED | {errors.TimeLimitError.code}


def test_the_rules_that_the_api_server_has(job):
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert spec["podReplacementPolicy"] == "Failed"
    assert len(spec["podFailurePolicy"]["rules"]) <= 20
    for rule in spec["podFailurePolicy"]["rules"]:
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        assert rule["action"] != "FailIndex" or "backoffLimitPerIndex" in spec
        if codes := rule.get("onExitCodes"):
            assert codes["values"] == sorted(set(codes["values"]))
            assert 0 not in codes["values"]
            assert codes["containerName"] in [container["name"] for container in pod["containers"]]


def test_the_pod_of_a_job_is_restricted(job):
    pod = job["spec"]["template"]["spec"]
    restricted(pod)
    assert pod["terminationGracePeriodSeconds"] > stopping.SECONDS_TO_STOP


def restricted(pod):
    """Pod Security Standards, level restricted; and what they leave open."""
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert {"cpu", "memory"} <= set(container["resources"]["requests"]) & set(container["resources"]["limits"])
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_its_settings_are_settings(job):
    (container,) = job["spec"]["template"]["spec"]["containers"]
    sources.load({item["name"]: item["value"] for item in container["env"]})


def test_a_member_has_its_number():
    ensemble = from_file("ensemble.yaml")
    (container,) = ensemble["spec"]["template"]["spec"]["containers"]
    assert {"name": "MLIP_PACE_RUN_MEMBER", "value": "auto"} in container["env"]
    assert ensemble["spec"]["completionMode"] == "Indexed"


def test_the_overlay_asks_for_a_gpu(gpu):
    (container,) = gpu["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"name": "MLIP_PACE_RUN_DEVICE", "value": "gpu"} in container["env"]
    assert container["image"] == "mlip-pace:cuda"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_of_kubernetes_take_the_cluster(version):
    for one in CLUSTER:
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_the_pods_of_the_cluster_are_restricted(name):
    restricted(PODS[name]["spec"])


def test_the_cluster_fits_the_job():
    """Name and port of the scheduler, the volumes, who may reach whom."""
    service, scheduler, workers, network = CLUSTER
    address = f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    overlay = (FOLDER.with_name("kubernetes-cluster") / "kustomization.yaml").read_text()
    assert f'{{name: MLIP_PACE_RUN_SCHEDULER, value: "{address}"}}' in overlay
    (container,) = workers["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "MLIP_PACE_RUN_SCHEDULER", "value": address}]
    of_job = from_file("job.yaml")["spec"]["template"]["spec"]
    assert workers["spec"]["template"]["spec"]["volumes"] == of_job["volumes"]
    assert container["volumeMounts"] == of_job["containers"][0]["volumeMounts"]
    for deployment in (scheduler, workers):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert network["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"] == scheduler["spec"]["template"]["metadata"]["labels"]
    (allowed,) = network["spec"]["ingress"][0]["from"]
    assert (
        allowed["podSelector"]["matchLabels"].items() <= from_file("job.yaml")["spec"]["template"]["metadata"]["labels"].items()
    )
    (command,) = [one["command"] for one in scheduler["spec"]["template"]["spec"]["containers"]]
    assert command[:4] == ["dask", "scheduler", "--port", str(service["spec"]["ports"][0]["port"])]


def test_the_overlay_names_the_scheduler(clustered):
    (container,) = clustered["spec"]["template"]["spec"]["containers"]
    assert {"name": "MLIP_PACE_RUN_SCHEDULER", "value": "tcp://mlip-pace-scheduler:8786"} in container["env"]
