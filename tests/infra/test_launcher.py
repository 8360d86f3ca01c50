"""Files of Ray's cluster launcher pass its own validator, without a cloud, and say what jobs rely on."""

from __future__ import annotations

import re

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from jala_ray.presets import PRESETS
from tests.infra.cluster_files import POOL, Tree, read

FILES = ("aws.yaml", "gcp.yaml")


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest) -> Tree:
    return read(request.param)


@pytest.fixture
def prepared(config: Tree) -> Tree:
    """With Ray's defaults, as `ray up` fills them in before it asks the cloud."""
    return prepare_config(config)


def test_ray_accepts_the_file(prepared: Tree) -> None:
    validate_config(prepared)


@pytest.mark.parametrize(
    "change",
    [
        {"max_worker": 3},
        {"head_node_type": "none"},
        {"available_node_types": {"head": {"resources": {}, "node_config": {}, "label": {}}}},
    ],
)
def test_ray_refuses_a_wrong_one(config: Tree, change: Tree) -> None:
    with pytest.raises(Exception, match=r"Additional properties|head_node_type"):
        validate_config(prepare_config(config | change))


def test_nothing_is_installed_on_the_machines_but_the_image(prepared: Tree) -> None:
    """Ray's own defaults install a wheel of Ray from the internet, unless they are overwritten."""
    for name in ("initialization_commands", "setup_commands", "worker_setup_commands"):
        assert prepared[name] == []
    for command in prepared["head_setup_commands"]:
        assert command.startswith("pip install --user google-api-python-client==")


def test_pools_are_those_that_jobs_ask_for(config: Tree) -> None:
    types = config["available_node_types"]
    assert set(types) == {"head", "gpu", "gpu-8", "decode"} and config["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0} and "labels" not in types["head"]
    for name, kind in types.items():
        assert ("GPU" in kind["resources"]) == (kind.get("labels", {}).get(POOL) == "gpu") == name.startswith("gpu")
        image = kind.get("docker", {}).get("worker_image", config["docker"]["image"])
        assert image.endswith("-gpu" if name.startswith("gpu") else "-cpu")
    most = sum(kind.get("max_workers", 0) for name, kind in types.items() if name != "gpu-8")
    assert config["max_workers"] == most, "machines of one GPU or of eight, and those that decode"


def test_machines_hold_what_workers_ask_for(config: Tree) -> None:
    cluster = PRESETS["jala"].cluster
    for name in ("gpu", "gpu-8"):
        kind = config["available_node_types"][name]
        on_node = kind["resources"]["GPU"] / cluster.gpus_per_worker
        assert kind["resources"]["CPU"] >= on_node * cluster.cpus_per_worker
        assert kind["max_workers"] * on_node >= cluster.workers


def test_decoding_is_on_spot_and_the_head_is_not(config: Tree) -> None:
    types = config["available_node_types"]
    spot = {name for name, kind in types.items() if re.search(r"'spot'|'preemptible': True", str(kind["node_config"]))}
    assert spot == {"decode"}


def test_all_start_with_the_token_and_hear_of_a_notice(config: Tree) -> None:
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if line != "ray stop")
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    watch = re.findall(r"drain\.py --watch (\w+)", config["worker_start_ray_commands"][-1])
    assert watch == [config["provider"]["type"]]


def test_workers_reach_the_bucket_and_may_do_nothing_else() -> None:
    """The role that Ray makes is the head's alone (`_configure_iam_role`); without one of their own, workers have no keys."""
    kinds = read("aws.yaml")["available_node_types"]
    profiles = {name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in kinds.items()}
    head = profiles.pop("head")
    assert set(profiles.values()) == {"WORKER_PROFILE"} and head == "HEAD_PROFILE"
    assert "~/.aws/credentials" in read("gcp.yaml")["file_mounts"]


def test_temporary_copies_lie_on_the_volume_whose_size_is_said(config: Tree) -> None:
    options = " ".join(config["docker"]["run_options"])
    assert "-v /var/tmp:/scratch" in options and "-e TMPDIR=/scratch" in options
    for name, kind in config["available_node_types"].items():
        [size] = map(int, re.findall(r"'(?:VolumeSize|diskSizeGb)': (\d+)", str(kind["node_config"])))
        assert size >= (200 if name.startswith("gpu") else 100)
