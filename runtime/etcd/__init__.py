"""A small etcd client on grpc.aio: what the packages for Python lack is a watch that resumes.

Reads and guarded transactions survive the death of a member; a watch goes on where it was, on another stream at
another member; a follower lists again when history is gone; a lease is judged by the holder's own clock; an election
hands out a fencing token. Nothing here knows what the keys mean.
"""

from runtime.etcd.client import EtcdClient
from runtime.etcd.election import Election, Leadership
from runtime.etcd.errors import (
    EtcdCompacted,
    EtcdDeadline,
    EtcdDenied,
    EtcdError,
    EtcdLeaseLost,
    EtcdRejected,
    EtcdTooLarge,
    EtcdUnavailable,
    EtcdWatchCancelled,
)
from runtime.etcd.lease import Lease
from runtime.etcd.types import (
    Compare,
    EtcdSettings,
    Event,
    FollowBatch,
    KeyValue,
    Listing,
    MemberStatus,
    Op,
    TxnResult,
    WatchBatch,
    compare_create_revision,
    compare_mod_revision,
    delete_op,
    get_op,
    put_op,
)

__all__ = [
    "Compare",
    "Election",
    "EtcdClient",
    "EtcdCompacted",
    "EtcdDeadline",
    "EtcdDenied",
    "EtcdError",
    "EtcdLeaseLost",
    "EtcdRejected",
    "EtcdSettings",
    "EtcdTooLarge",
    "EtcdUnavailable",
    "EtcdWatchCancelled",
    "Event",
    "FollowBatch",
    "KeyValue",
    "Leadership",
    "Lease",
    "Listing",
    "MemberStatus",
    "Op",
    "TxnResult",
    "WatchBatch",
    "compare_create_revision",
    "compare_mod_revision",
    "delete_op",
    "get_op",
    "put_op",
]
