"""What the listeners count: calls by method and status, their time, and what is in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

if TYPE_CHECKING:
    import grpc

CALLS = Counter("regiongate_gateway_calls", "Calls that have ended, by method and gRPC status.", ("method", "status"))
CALL_SECONDS = Histogram(
    "regiongate_gateway_call_seconds",
    "Time from a unary call's arrival to its answer.",
    ("method",),
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
OPERATIONS_IN_FLIGHT = Gauge("regiongate_gateway_operations_in_flight", "Operations that have no answer yet.")
STREAMS_OPEN = Gauge("regiongate_gateway_streams_open", "Streams that are open, by method.", ("method",))
REFUSED = Counter("regiongate_gateway_operations_refused", "Operations refused because too many were in flight.")
SCHEMA_REVISION = Gauge(
    "regiongate_gateway_schema_revision", "Newest policy revision whose datasets the IDC's database has."
)
SCHEMA_FAILURES = Counter("regiongate_gateway_schema_failures", "Attempts to bring the schema up to date that failed.")
ETCD_CONNECTED = Gauge("regiongate_gateway_etcd_connected", "Whether etcd has answered the last thing it was asked.")


class MethodMetrics:
    """The metrics of one method, looked up once."""

    __slots__ = ("_statuses", "_time", "method")

    def __init__(self, method: str) -> None:
        self.method = method
        self._statuses: dict[str, Counter] = {}
        self._time = CALL_SECONDS.labels(method)

    def ended(self, status: grpc.StatusCode | None, seconds: float) -> None:
        """Counts an ended call; None for OK."""
        name = "OK" if status is None else status.name
        counter = self._statuses.get(name)
        if counter is None:
            counter = self._statuses[name] = CALLS.labels(self.method, name)
        counter.inc()
        self._time.observe(seconds)
