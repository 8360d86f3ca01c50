"""The cluster's files as data, and KubeRay's schemas, which lie beside the checkout where they are at hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
SCHEMAS = ROOT.parent / "shared/schemas"
PART_OF = {"app.kubernetes.io/part-of": "jala-ray"}
POOL = "jala.io/pool"
GIB = 2**30

Tree = dict[str, Any]


def read(name: str) -> Tree:
    return yaml.safe_load((INFRA / name).read_text())


def read_all(name: str) -> list[Tree]:
    return list(yaml.safe_load_all((INFRA / name).read_text()))


def cluster_spec() -> Tree:
    return read("kuberay/raycluster.yaml")["spec"]


def pods(spec: Tree) -> dict[str, Tree]:
    """Group -> pod's template, of the head too."""
    groups = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"]["template"], **groups}


def container(template: Tree) -> Tree:
    [one] = template["spec"]["containers"]
    return one


def quantity(text: str) -> float:
    """Of Kubernetes: "500m" CPUs, "16Gi" bytes, "8"."""
    for suffix, factor in (("Ki", 2**10), ("Mi", 2**20), ("Gi", GIB), ("Ti", 2**40), ("m", 1e-3)):
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def schema(kind: str) -> Tree:
    """KubeRay's, for a JSON Schema validator: fields that it does not name are errors. The test is skipped where it is absent."""
    file = SCHEMAS / f"kuberay-{kind}-v1.schema.json.gz"
    if not file.is_file():
        pytest.skip(f"KubeRay's schemas are absent: no {file}")
    return closed(json.loads(gzip.decompress(file.read_bytes())))


def closed(node: Any) -> Any:
    """The schema, refusing properties that it does not name where it names some; `metadata` of the whole is Kubernetes' own."""
    if isinstance(node, list):
        return [closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {key: closed(value) for key, value in node.items()}
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        keeps = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
        if not keeps:
            made["additionalProperties"] = False
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return made
