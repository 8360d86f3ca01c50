"""What a server counts, in Prometheus' text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """Counts of one server, apart from those of others in the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of = self.registry
        self.requests = Counter("jala_serving_requests", "Observations that were answered with actions.", registry=of)
        self.errors = Counter(
            "jala_serving_errors", "Requests that were answered with an error.", ["kind"], registry=of
        )
        self.connections = Gauge("jala_serving_connections", "Clients that are connected.", registry=of)
        self.queue = Gauge("jala_serving_queue", "Observations in work or waiting.", registry=of)
        self.seconds = Histogram("jala_serving_inference_seconds", "Of the policy alone.", buckets=SECONDS, registry=of)
        for kind in ("refused", "failed"):
            self.errors.labels(kind)

    def text(self) -> bytes:
        return generate_latest(self.registry)
