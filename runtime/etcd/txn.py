"""Transactions that can be sent twice.

A write in flight when the leader dies gets no answer, and nobody can say whether it was applied. Sending it again is
safe when it guards itself: one of its compares is made false by its own success branch. Then it applies at most once
however often it is sent, and however late a copy arrives. What remains is to tell, when the second copy finds the
guard broken, by whom: so the repeat also reads the guarded key, and what it finds there is judged by `judge_repeat`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.etcd.errors import EtcdTooLarge, EtcdUnavailable
from runtime.etcd.pb import rpc_pb2 as pb
from runtime.etcd.types import MAX_OPERATIONS, Compare, KeyValue, Op, TxnResult, item_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def find_guard(compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]) -> tuple[Compare, Op] | None:
    """The compare, and the operation that makes it false, by which the transaction applies at most once."""
    if any(op.kind != "get" for op in failure):
        return None
    changes = {op.key: op for op in success if op.kind != "get"}
    for compare in compares:
        op = changes.get(compare.key)
        if op is None:
            continue
        is_absence = compare.revision == 0
        if op.kind == "put" and (is_absence or compare.kind == "mod"):
            return compare, op
        if op.kind == "delete" and not is_absence:
            return compare, op
    return None


def is_read_only(success: Sequence[Op], failure: Sequence[Op]) -> bool:
    """Whether neither branch changes anything."""
    return all(op.kind == "get" for op in (*success, *failure))


def to_request(compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]) -> pb.TxnRequest:
    """Builds the message; raises EtcdTooLarge before anything is sent when etcd would refuse it for its size."""
    largest = max(len(compares), len(success), len(failure))
    if largest > MAX_OPERATIONS:
        raise EtcdTooLarge(f"a transaction may have {MAX_OPERATIONS} operations, this one has {largest}")
    return pb.TxnRequest(
        compare=[_compare(compare) for compare in compares],
        success=[_operation(op) for op in success],
        failure=[_operation(op) for op in failure],
    )


def to_result(response: pb.TxnResponse) -> TxnResult:
    """Reads the answer."""
    return TxnResult(response.succeeded, response.header.revision, tuple(_result(item) for item in response.responses))


def judge_repeat(guard: tuple[Compare, Op], success: Sequence[Op], result: TxnResult) -> TxnResult:
    """Says what became of a transaction whose repeat, which reads the guarded key last, found its compares false.

    Raises EtcdUnavailable when that cannot be known.
    """
    compare, op = guard
    found = result.results[-1]
    if _still_holds(compare, found):
        # Another compare is false; our own mark is not there, so no copy was applied, and none will be.
        return TxnResult(False, result.revision, result.results[:-1])
    is_ours = found is not None and op.kind == "put" and found.value == op.value and found.lease == op.lease
    is_first = compare.revision > 0 or (found is not None and found.version == 1)
    if found is not None and is_ours and is_first and all(item.kind != "get" for item in success):
        return TxnResult(True, found.mod_revision, (None,) * len(success))
    raise EtcdUnavailable(f"cannot know whether a transaction on {compare.key} was applied: its answer was lost")


def _still_holds(compare: Compare, found: KeyValue | None) -> bool:
    if found is None:
        return compare.revision == 0
    return compare.revision == (found.mod_revision if compare.kind == "mod" else found.create_revision)


def _compare(compare: Compare) -> pb.Compare:
    key = compare.key.encode()
    if compare.kind == "mod":
        return pb.Compare(key=key, target=pb.Compare.MOD, mod_revision=compare.revision)
    return pb.Compare(key=key, target=pb.Compare.CREATE, create_revision=compare.revision)


def _operation(op: Op) -> pb.RequestOp:
    key = op.key.encode()
    if op.kind == "put":
        return pb.RequestOp(request_put=pb.PutRequest(key=key, value=op.value, lease=op.lease))
    if op.kind == "delete":
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))


def _result(item: pb.ResponseOp) -> KeyValue | None:
    return item_of(item.response_range.kvs[0]) if item.response_range.kvs else None
