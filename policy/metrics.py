"""Metrics of following the policy, of the promise to know it, and of the controller."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

TABLE_POLICY_REVISION = Gauge("regiongate_policy_revision", "Policy revision that this process decides by.")
STORE_REVISION = Gauge("regiongate_policy_store_revision", "Revision of etcd that this process has seen.")
POLICY_AGE = Gauge("regiongate_policy_age_seconds", "Time since this process last heard of the policy store.")
IS_FRESH = Gauge("regiongate_policy_fresh", "Whether this process may judge border crossings (1) or not (0).")
FOLLOWER_RESTARTS = Counter("regiongate_policy_follower_restarts", "Times the policy store was followed anew.")
REGISTRATIONS = Counter("regiongate_policy_registrations", "Times this gateway was registered under a new lease.")
ACKNOWLEDGED_REVISION = Gauge("regiongate_policy_acknowledged_revision", "Policy revision that etcd says we decide by.")

IS_LEADER = Gauge("regiongate_controller_leader", "Whether this controller is the elected one (1) or not (0).")
CONTROLLER_TURNS = Counter("regiongate_controller_turns", "Turns of the controller's loop, by outcome.", ["outcome"])
CONTROLLER_TURN_SECONDS = Histogram(
    "regiongate_controller_turn_seconds",
    "Duration of a turn of the controller's loop.",
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10),
)
MOVE_ENDS = Counter("regiongate_controller_moves", "Moves of shards that have come to an end, by how.", ["outcome"])
MOVES_UNDER_WAY = Gauge("regiongate_controller_moves_under_way", "Shards that are being moved or purged now.")
MOVES_IN_TROUBLE = Gauge("regiongate_controller_moves_in_trouble", "Moves of shards that do not get on now.")
MOVE_STALL_SECONDS = Histogram(
    "regiongate_controller_move_stall_seconds",
    "How long the writes of a moving shard were held.",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
