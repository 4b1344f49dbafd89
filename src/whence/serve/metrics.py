"""What the service counts, in the format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one service, in a registry of their own, so that several services may live in one process."""

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("whence_requests", "Requests by path and status.", ("path", "status"), registry=self.registry)
        self.seconds = Histogram(
            "whence_request_seconds",
            "Seconds from request to answer, by path.",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "whence_batch_questions", "Questions that shared a scan.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.connections = Gauge("whence_open_connections", "Connections that are open.", registry=self.registry)
        self.waiting = Gauge("whence_waiting_questions", "Questions in the line.", registry=self.registry)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
