"""KubeRay's files pass its schemas, and say what jobs, drains and policies rely on."""

from __future__ import annotations

import copy
import re
import shlex

import pytest
import yaml
from jsonschema import Draft202012Validator

from jala_ray.config import ClusterConfig
from jala_ray.presets import PRESETS
from tests.documents import read as read_command
from tests.infra.cluster_files import (
    GIB,
    INFRA,
    PART_OF,
    POOL,
    Tree,
    cluster_spec,
    container,
    pods,
    quantity,
    read,
    read_all,
    schema,
)

GROUPS = ("gpu", "gpu-8", "decode")
KINDS = {"rayclusters": "kuberay/raycluster.yaml", "rayjobs": "kuberay/rayjob.yaml"}
CHECKPOINT = 25e9
"""Bytes at 2B (docs/guides/hardware.md)."""


@pytest.fixture(scope="module")
def spec() -> Tree:
    return cluster_spec()


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_files_pass_kuberay_s_schema(kind: str, name: str) -> None:
    validator = Draft202012Validator(schema(kind))
    errors = [f"{'/'.join(map(str, e.absolute_path))}: {e.message}"[:300] for e in validator.iter_errors(read(name))]
    assert not errors


def test_the_schema_refuses_what_it_does_not_know() -> None:
    validator, wrong = Draft202012Validator(schema("rayclusters")), read("kuberay/raycluster.yaml")
    for path, value in (
        (("authOptions", "mode"), "secret"),
        (("autoscalerOptions", "idleSeconds"), 3),
        (("maxReplica",), 3),
    ):
        changed = copy.deepcopy(wrong)
        place = changed["spec"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert list(validator.iter_errors(changed)), path
    changed = copy.deepcopy(wrong)
    changed["spec"]["workerGroupSpecs"][0]["template"]["spec"]["terminationGrace"] = 120
    assert list(validator.iter_errors(changed))


def test_the_job_s_cluster_is_the_cluster(spec: Tree) -> None:
    assert read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"] == spec


def test_head_takes_no_tasks_and_stays(spec: Tree) -> None:
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["template"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"] == "on-demand"


def test_autoscaler_is_the_second_one(spec: Tree) -> None:
    assert spec["enableInTreeAutoscaling"] is True and spec["autoscalerOptions"]["version"] == "v2"
    assert all(template["spec"]["restartPolicy"] == "Never" for template in pods(spec).values())


def test_requests_need_a_token_that_no_file_has(spec: Tree) -> None:
    assert spec["authOptions"] == {"mode": "token"}
    redis = spec["gcsFaultToleranceOptions"]
    assert redis["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": "jala-ray-redis", "key": "password"}
    services = {doc["metadata"]["name"]: doc for doc in read_all("kuberay/redis.yaml") if doc["kind"] == "Service"}
    host, port = redis["redisAddress"].split(":")
    assert [int(port)] == [p["port"] for p in services[host]["spec"]["ports"]]


def test_decoding_starts_no_gpu_node(spec: Tree) -> None:
    """Its tasks ask for nodes that are not of the pool `gpu`: every group with GPUs bears it, by the field that Ray's autoscaler reads."""
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert tuple(groups) == GROUPS
    for name, group in groups.items():
        limits = container(group["template"])["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == (group["labels"][POOL] == "gpu") == (name != "decode")
        assert "labels" not in group["rayStartParams"] and group["replicas"] == group["minReplicas"] == 0
    assert pods(spec)["decode"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"] == "spot"


def test_a_node_holds_what_a_worker_asks_for(spec: Tree) -> None:
    asked = [preset.cluster for preset in PRESETS.values() if preset.cluster.gpus_per_worker]
    assert len(asked) > 5
    for name, template in pods(spec).items():
        limits = container(template)["resources"]["limits"]
        assert container(template)["resources"]["requests"] == limits
        gpus, cpus = int(limits.get("nvidia.com/gpu", 0)), quantity(limits["cpu"])
        for cluster in asked:
            if gpus:
                on_node = gpus / cluster.gpus_per_worker
                assert on_node >= 1 and cpus >= on_node * cluster.cpus_per_worker, name
    most = {group["groupName"]: group["maxReplicas"] for group in spec["workerGroupSpecs"]}
    assert most["gpu"] >= max(cluster.workers * cluster.gpus_per_worker for cluster in asked)
    assert most["decode"] * quantity(container(pods(spec)["decode"])["resources"]["limits"]["cpu"]) >= 1


def test_images_fit_what_a_node_is(spec: Tree) -> None:
    for name, template in pods(spec).items():
        assert container(template)["image"].endswith("-gpu" if name.startswith("gpu") else "-cpu")


def test_a_pod_has_time_to_save_before_it_is_killed(spec: Tree) -> None:
    """Ray's notice, then `ray stop`, then what Kubernetes gives: each longer than the one before."""
    for name, template in pods(spec).items():
        assert template["spec"]["terminationGracePeriodSeconds"] == 120
        if name == "head":
            continue
        [*_, command] = container(template)["lifecycle"]["preStop"]["exec"]["command"]
        drain, stop = command.split(";")
        assert shlex.split(drain)[:2] == ["python", "/opt/jala/drain.py"]
        seconds = int(re.findall(r"--seconds (\d+)", drain)[0])
        assert seconds + int(re.findall(r"--grace-period (\d+)", stop)[0]) + 10 <= 120


def test_scratch_holds_checkpoints(spec: Tree) -> None:
    for name, template in pods(spec).items():
        one = container(template)
        assert {"name": "TMPDIR", "value": "/scratch"} in one["env"]
        assert {"name": "scratch", "mountPath": "/scratch"} in one["volumeMounts"]
        [volume] = [v["emptyDir"] for v in template["spec"]["volumes"] if v["name"] == "scratch"]
        size, kept = quantity(volume["sizeLimit"]), quantity(one["resources"]["requests"]["ephemeral-storage"])
        assert kept >= size + 4 * GIB, "logs of Ray and the job's code lie on the same disk"
        if name.startswith("gpu"):
            assert size >= 2 * CHECKPOINT * 1.2


def test_pods_have_no_rights_that_they_don_t_need(spec: Tree) -> None:
    for name, template in pods(spec).items():
        assert template["spec"]["securityContext"]["runAsNonRoot"] and template["metadata"]["labels"] == PART_OF
        context = container(template)["securityContext"]
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert name == "head" or template["spec"]["automountServiceAccountToken"] is False


def test_policies_let_in_the_cluster_the_operator_and_prometheus(spec: Tree) -> None:
    cluster, redis = read_all("kuberay/networkpolicy.yaml")
    assert cluster["spec"]["podSelector"]["matchLabels"] == PART_OF and cluster["spec"]["policyTypes"] == ["Ingress"]
    members, operator, prometheus = cluster["spec"]["ingress"]
    assert members == {"from": [{"podSelector": {"matchLabels": PART_OF}}]}
    ports = {port["name"]: port["containerPort"] for port in container(pods(spec)["head"])["ports"]}
    assert [p["port"] for p in operator["ports"]] == [ports["dashboard"]]
    assert [p["port"] for p in prometheus["ports"]] == [ports["metrics"]]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["rayStartParams"]["metrics-export-port"] == str(ports["metrics"])
    [stateful] = [doc for doc in read_all("kuberay/redis.yaml") if doc["kind"] == "StatefulSet"]
    assert redis["spec"]["podSelector"]["matchLabels"] == stateful["spec"]["template"]["metadata"]["labels"]


def test_the_job_is_one_that_runs(spec: Tree) -> None:
    """Its command is read by the command's own parser, its environment is runtime_env.yaml's, and a pod that submits may do so."""
    job = read("kuberay/rayjob.yaml")["spec"]
    words = shlex.split(job["entrypoint"])
    read_command(words)
    assert words[words.index("--cluster.autoscaling") + 1] == "True", "nothing is there at the start"
    env = yaml.safe_load(job["runtimeEnvYAML"])
    assert env["env_vars"] == read("runtime_env.yaml")["env_vars"] and env["working_dir"].startswith("s3://")
    assert job["backoffLimit"] > 0 and job["shutdownAfterJobFinishes"] is True
    assert job["submitterPodTemplate"]["metadata"]["labels"] == PART_OF


def test_groups_hold_a_whole_run_of_the_preset(spec: Tree) -> None:
    cluster: ClusterConfig = PRESETS["jala"].cluster
    for group in spec["workerGroupSpecs"][:2]:
        limits = container(group["template"])["resources"]["limits"]
        assert group["maxReplicas"] * int(limits["nvidia.com/gpu"]) >= cluster.workers * cluster.gpus_per_worker


def test_no_host_and_no_secret_is_in_a_file() -> None:
    for path in INFRA.rglob("*"):
        if path.suffix not in (".yaml", ".yml", ".json") and path.name != "Dockerfile":
            continue
        text = path.read_text()
        assert not re.search(r"image: \S+\.\S+/|https?://|AKIA[0-9A-Z]{12}|-----BEGIN", text), path
        assert not re.search(r"(?i)(password|token|secret[a-z_]*key)\s*[:=]\s*[\"']?[A-Za-z0-9+/]{16,}", text), path
