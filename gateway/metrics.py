"""What the engine counts. Labels are bounded: outcomes, reasons, kinds and names of IDCs, never anything of a row."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

DECISIONS: Final = Counter("regiongate_decisions", "Operations judged, by what was decided.", ["outcome"])
SERVED: Final = DECISIONS.labels("serve")
FORWARDED: Final = DECISIONS.labels("forward")
REDIRECTED: Final = DECISIONS.labels("redirect")
DENIED: Final = DECISIONS.labels("deny")
HELD: Final = DECISIONS.labels("hold")

HOLDS: Final = Counter("regiongate_holds", "Operations that waited for a newer routing table, by reason.", ["reason"])
HOLDING: Final = Gauge("regiongate_holding", "Operations that are waiting for a newer routing table.")
HOLD_SECONDS: Final = Histogram(
    "regiongate_hold_seconds",
    "How long operations waited for a newer routing table.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
STATEMENT_ROWS: Final = Histogram(
    "regiongate_statement_rows", "Rows that shared one statement.", ["kind"], buckets=_BATCH_BUCKETS
)
READ_ROWS: Final = STATEMENT_ROWS.labels("read")
WRITE_ROWS: Final = STATEMENT_ROWS.labels("write")

MESSAGE_OPERATIONS: Final = Histogram(
    "regiongate_peer_message_operations", "Operations that shared one message to a peer.", buckets=_BATCH_BUCKETS
)
PEER_STREAMS: Final = Gauge("regiongate_peer_streams", "Open streams to gateways of another IDC.", ["idc"])
PEER_BREAKS: Final = Counter(
    "regiongate_peer_breaks", "Streams to gateways of another IDC that broke or could not be opened.", ["idc"]
)
STEP_SECONDS: Final = Histogram(
    "regiongate_shard_step_seconds",
    "Time that a step of a shard's move took here, successful or not.",
    ["step"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
STEP_ROWS: Final = Counter("regiongate_shard_step_rows", "Rows that steps of moves have carried or deleted.", ["step"])
STEP_BYTES: Final = Counter("regiongate_shard_step_bytes", "Bytes of rows that steps of moves have carried.", ["step"])
STEP_FAILURES: Final = Counter(
    "regiongate_shard_step_failures", "Steps of moves that failed here, by reason.", ["step", "reason"]
)

DOORBELL_RINGS: Final = Counter("regiongate_doorbell_rings", "Times that job runners were told of new rows.")
DOORBELL_FAILURES: Final = Counter(
    "regiongate_doorbell_failures", "Times that job runners could not be told, and find new rows by looking."
)

SUPERSEDED: Final = Counter(
    "regiongate_superseded", "Verdicts that no longer stood when they were to take effect, and were judged again."
)
