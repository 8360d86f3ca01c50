"""Ray's pretended cloud, whose nodes are raylets of this machine, for a head at any address. Loaded in Ray's autoscaler."""

from __future__ import annotations

import sys
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class Provider(FakeMultiNodeProvider):
    """Nodes join the head that the autoscaler itself belongs to; Ray's own joins port 6379."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        address = next(word.partition("=")[2] for word in sys.argv if word.startswith("--gcs-address="))
        super().__init__(provider_config | {"gcs_address": address}, cluster_name)
