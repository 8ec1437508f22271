"""Batches of reads and of writes, put together from the caller's items and taken apart into outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.client import values
from gateway.client.batch import Batch
from gateway.client.failures import Failed, failed_operation
from gateway.client.model import Put, Receipt
from policy.errors import LimitReached, RegiongateError
from regiongate.v1 import row_service_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gateway.client.calls import Calls
    from gateway.client.model import Delete, Row
    from gateway.client.routes import Routes

MAX_ROWS: Final = 1000
"""Rows in one call."""

MAX_OPERATION_BYTES: Final = 2 << 20
"""A row of the largest size, 1 MiB, with all that is around it: what is above this no gateway takes."""

_MAX_CALL_BYTES: Final = 3 << 20
"""Writes in one call, unless it is a single one; gateways take 4 MiB at least."""


class Stated(NamedTuple):
    """What all calls of a batch share."""

    purpose: str
    deadline: float


class ManyRows:
    """Reads and writes of many rows for one client."""

    def __init__(self, routes: Routes, calls: Calls) -> None:
        self._routes = routes
        self._calls = calls

    async def get(
        self,
        dataset: str,
        keys: Sequence[tuple[str, str | int]],
        columns: tuple[str, ...],
        stated: Stated,
        traceparent: str,
    ) -> list[Row | RegiongateError]:
        """The rows, in the order of their keys."""
        purpose, deadline = stated

        async def send(hop: str, part: list[types_pb2.RowKey], until: float) -> list[Row | Failed]:
            request = row_service_pb2.BatchGetRowsRequest(dataset=dataset, keys=part, columns=columns)
            answer = await self._calls.call_once(
                lambda endpoint: endpoint.rows.BatchGetRows,
                request,
                hop=hop,
                purpose=purpose,
                until=until,
                traceparent=traceparent,
            )
            return _read_rows(answer)

        outcomes: list[Row | RegiongateError] = []
        for start in range(0, len(keys), MAX_ROWS):
            some = keys[start : start + MAX_ROWS]
            items = [_row_key(region_code, key) for region_code, key in some]
            batch = Batch(self._routes, items, some, send, repeats_shards=False)
            outcomes += await batch.run(deadline, self._calls.attempt_timeout(deadline))
        return outcomes

    async def write(
        self,
        dataset: str,
        writes: Sequence[Put | Delete],
        request_ids: Iterator[str],
        stated: Stated,
        traceparent: str,
        *,
        is_one: bool,
    ) -> list[Receipt | RegiongateError]:
        """Receipts, in the order of the writes; each call takes the next request id. `is_one`: one call or none."""
        purpose, deadline = stated
        types = self._routes.types_of(dataset)
        # All are encoded first: a value that does not fit is refused before anything is written.
        whole = row_service_pb2.BatchWriteRowsRequest(dataset=dataset)
        items = [_fill_write(whole.writes.add(), write, types) for write in writes]
        chunks = list(_chunks(items))
        if is_one and len(chunks) > 1:
            raise LimitReached(f"a request_id covers {MAX_ROWS} writes and 3 MiB at most", limit="batch_rows")
        outcomes: list[Receipt | RegiongateError] = []
        for some, request_id in zip(chunks, request_ids, strict=False):

            async def send(
                hop: str, part: list[row_service_pb2.RowWrite], until: float, request_id: str = request_id
            ) -> list[Receipt | Failed]:
                request = whole
                if len(part) < len(items):
                    request = row_service_pb2.BatchWriteRowsRequest(dataset=dataset, writes=part)
                request.request_id = request_id
                answer = await self._calls.call_once(
                    lambda endpoint: endpoint.rows.BatchWriteRows,
                    request,
                    hop=hop,
                    purpose=purpose,
                    until=until,
                    traceparent=traceparent,
                )
                return _read_receipts(answer)

            places = [(write.region_code, write.key) for write in writes[some]]
            batch = Batch(self._routes, items[some], places, send, repeats_shards=True)
            outcomes += await batch.run(deadline, self._calls.attempt_timeout(deadline))
        return outcomes


def _chunks(items: Sequence[row_service_pb2.RowWrite]) -> Iterator[slice]:
    """Cuts the items into calls, by number and by size; raises `LimitReached` for one that is too large."""
    start, room = 0, _MAX_CALL_BYTES
    for index, item in enumerate(items):
        size = item.ByteSize()
        check_size(size)
        if index > start and (index - start >= MAX_ROWS or size > room):
            yield slice(start, index)
            start, room = index, _MAX_CALL_BYTES
        room -= size
    if items:
        yield slice(start, len(items))


def _row_key(region_code: str, key: str | int) -> types_pb2.RowKey:
    item = types_pb2.RowKey(region_code=region_code)
    values.set_key(item.key, key)
    return item


def _fill_write(
    item: row_service_pb2.RowWrite, write: Put | Delete, types: Mapping[str, str]
) -> row_service_pb2.RowWrite:
    item.region_code = write.region_code
    if write.if_version is not None:
        item.if_version = write.if_version
    values.set_key(item.key, write.key)
    if isinstance(write, Put):
        item.put.SetInParent()
        values.set_columns(item.put.columns, write.values, types)
    else:
        item.delete.SetInParent()
    return item


def check_size(size: int) -> None:
    """Raises `LimitReached` for a row that would break its stream, and with it the calls of others."""
    if size > MAX_OPERATION_BYTES:
        raise LimitReached("the row is larger than a gateway takes", limit="row_bytes")


def _read_rows(answer: row_service_pb2.BatchGetRowsResponse) -> list[Row | Failed]:
    decisions = [values.decode_decision(decision) for decision in answer.decisions]
    found: list[Row | Failed] = []
    for result in answer.results:
        if result.HasField("row") and result.decision < len(decisions):
            found.append(values.decode_row(result.row, decisions[result.decision]))
        else:
            found.append(_failure(result))
    return found


def _read_receipts(answer: row_service_pb2.BatchWriteRowsResponse) -> list[Receipt | Failed]:
    groups = [(values.read_time(group.update_time), values.decode_decision(group.decision)) for group in answer.groups]
    found: list[Receipt | Failed] = []
    for result in answer.results:
        # A version is above 0, and so never what an unset field reads as.
        version, group = result.version, result.group
        if version and group < len(groups):
            found.append(Receipt(version, *groups[group]))
        else:
            found.append(_failure(result))
    return found


def _failure(result: row_service_pb2.GetResult | row_service_pb2.WriteResult) -> Failed:
    if result.HasField("error"):
        return failed_operation(result.error)
    return Failed(RegiongateError("the gateway's answer lacks a result"))
