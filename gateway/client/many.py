"""Batches of reads and of writes, put together from the caller's items and taken apart into outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.client import values
from gateway.client.batch import Batch
from gateway.client.model import Put
from regiongate.v1 import row_service_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gateway.client.calls import Calls
    from gateway.client.model import Delete, Receipt, Row
    from gateway.client.routes import Routes
    from policy.errors import RegiongateError

MAX_ROWS: Final = 1000
"""Rows in one call."""


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

        async def send(hop: str, part: list[types_pb2.RowKey], until: float) -> Sequence[row_service_pb2.GetResult]:
            request = row_service_pb2.BatchGetRowsRequest(dataset=dataset, keys=part, columns=columns)
            answer = await self._calls.call_once(
                lambda endpoint: endpoint.rows.BatchGetRows,
                request,
                hop=hop,
                purpose=purpose,
                until=until,
                traceparent=traceparent,
            )
            return answer.results

        outcomes: list[Row | RegiongateError] = []
        for some in _chunks(keys):
            items = [_row_key(region_code, key) for region_code, key in some]
            batch = Batch(self._routes, items, some, send, _read_row, repeats_shards=False)
            outcomes += await batch.run(deadline, self._calls.attempt_timeout(deadline))
        return outcomes

    async def write(
        self,
        dataset: str,
        writes: Sequence[Put | Delete],
        request_ids: Iterable[str],
        stated: Stated,
        traceparent: str,
    ) -> list[Receipt | RegiongateError]:
        """Receipts, in the order of the writes; each chunk takes one request id."""
        purpose, deadline = stated
        types = self._routes.types_of(dataset)
        outcomes: list[Receipt | RegiongateError] = []
        # All are encoded first: a value that does not fit is refused before anything is written.
        items = [_row_write(write, types) for write in writes]
        for start, request_id in zip(range(0, len(items), MAX_ROWS), request_ids, strict=False):

            async def send(
                hop: str, part: list[row_service_pb2.RowWrite], until: float, request_id: str = request_id
            ) -> Sequence[row_service_pb2.WriteResult]:
                request = row_service_pb2.BatchWriteRowsRequest(dataset=dataset, writes=part, request_id=request_id)
                answer = await self._calls.call_once(
                    lambda endpoint: endpoint.rows.BatchWriteRows,
                    request,
                    hop=hop,
                    purpose=purpose,
                    until=until,
                    traceparent=traceparent,
                )
                return answer.results

            some = slice(start, start + MAX_ROWS)
            places = [(write.region_code, write.key) for write in writes[some]]
            batch = Batch(self._routes, items[some], places, send, _read_receipt, repeats_shards=True)
            outcomes += await batch.run(deadline, self._calls.attempt_timeout(deadline))
        return outcomes


def _chunks(keys: Sequence[tuple[str, str | int]]) -> Iterable[Sequence[tuple[str, str | int]]]:
    return (keys[start : start + MAX_ROWS] for start in range(0, len(keys), MAX_ROWS))


def _row_key(region_code: str, key: str | int) -> types_pb2.RowKey:
    item = types_pb2.RowKey(region_code=region_code)
    values.set_key(item.key, key)
    return item


def _row_write(write: Put | Delete, types: Mapping[str, str]) -> row_service_pb2.RowWrite:
    item = row_service_pb2.RowWrite(region_code=write.region_code, if_version=write.if_version)
    values.set_key(item.key, write.key)
    if isinstance(write, Put):
        item.put.SetInParent()
        values.set_columns(item.put.columns, write.values, types)
    else:
        item.delete.SetInParent()
    return item


def _read_row(result: row_service_pb2.GetResult) -> Row:
    return values.decode_row(result.row, values.decode_decision(result.decision))


def _read_receipt(result: row_service_pb2.WriteResult) -> Receipt:
    return values.decode_receipt(result.receipt, values.decode_decision(result.decision))
