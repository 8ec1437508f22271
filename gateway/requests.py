"""Requests become checked operations: what does not fit the policy's datasets is refused here, at the door.

Nothing is guessed and nothing is repaired (law L8): a missing RegionCode, a key of the wrong kind or a value without a
kind is an error that names the field, never what was in it (law L1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from gateway.limits import MAX_BATCH_ROWS
from gateway.operations import Action, RowOperation
from gateway.values import check_columns, check_request_id, decode_key, decode_values
from policy.compile import unknown_region
from policy.errors import InvalidInput, InvalidValue, LimitReached, NoPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policy.model import Dataset
    from policy.table import RoutingTable
    from regiongate.v1 import row_service_pb2, types_pb2


class HasTable(Protocol):
    """Where the newest routing table is."""

    @property
    def table(self) -> RoutingTable | None:
        """None before the first policy."""
        ...


def table_of(view: HasTable) -> RoutingTable:
    """The newest routing table; raises `NoPolicy`."""
    table = view.table
    if table is None:
        raise NoPolicy("no policy has been applied to this cluster yet")
    return table


def dataset_of(view: HasTable, name: str) -> Dataset:
    """The dataset of a request; raises `NoPolicy` or `UnknownDataset`."""
    return table_of(view).policy.dataset(name)


def check_region(region_code: str) -> str:
    """The RegionCode of a request; raises `UnknownRegion` when it is missing."""
    if not region_code:
        raise unknown_region(region_code)
    return region_code


def check_batch(rows: Sequence[object], field_name: str) -> None:
    """Raises `LimitReached` when a batch is too long."""
    if len(rows) > MAX_BATCH_ROWS:
        raise LimitReached(f"{field_name} has more than {MAX_BATCH_ROWS} entries", limit="batch_rows")


def get_operation(
    dataset: Dataset, region_code: str, key: types_pb2.Key, columns: frozenset[str] | None, traceparent: str
) -> RowOperation:
    """A checked read."""
    return RowOperation(
        Action.GET, dataset, check_region(region_code), decode_key(dataset, key), columns, traceparent=traceparent
    )


def put_operation(
    dataset: Dataset,
    target: row_service_pb2.PutRowRequest | row_service_pb2.RowWrite | row_service_pb2.Operation,
    columns: Mapping[str, types_pb2.Value],
    request_id: str,
    traceparent: str,
) -> RowOperation:
    """A checked write of a whole row."""
    if_version = target.if_version if target.HasField("if_version") else None
    if if_version is not None and if_version < 0:
        raise InvalidValue("if_version is a row's version, or 0 for a row that must not exist", field_name="if_version")
    return RowOperation(
        Action.PUT,
        dataset,
        check_region(target.region_code),
        decode_key(dataset, target.key),
        None,
        decode_values(dataset, columns),
        if_version,
        check_request_id(request_id),
        traceparent,
    )


def delete_operation(
    dataset: Dataset,
    target: row_service_pb2.DeleteRowRequest | row_service_pb2.RowWrite | row_service_pb2.Operation,
    request_id: str,
    traceparent: str,
) -> RowOperation:
    """A checked delete."""
    if_version = target.if_version if target.HasField("if_version") else None
    if if_version is not None and if_version <= 0:
        raise InvalidValue("the if_version of a delete is the row's version, above 0", field_name="if_version")
    return RowOperation(
        Action.DELETE,
        dataset,
        check_region(target.region_code),
        decode_key(dataset, target.key),
        None,
        None,
        if_version,
        check_request_id(request_id),
        traceparent,
    )


def write_operation(
    dataset: Dataset, write: row_service_pb2.RowWrite, request_id: str, traceparent: str
) -> RowOperation:
    """One checked write of a batch."""
    match write.WhichOneof("action"):
        case "put":
            return put_operation(dataset, write, write.put.columns, request_id, traceparent)
        case "delete":
            return delete_operation(dataset, write, request_id, traceparent)
        case _:
            raise InvalidInput("a write says put or delete", field_name="action")


def exchange_operation(view: HasTable, operation: row_service_pb2.Operation) -> RowOperation:
    """One checked operation of a message on a stream."""
    dataset = dataset_of(view, operation.dataset)
    traceparent = operation.traceparent
    match operation.WhichOneof("action"):
        case "get":
            if operation.HasField("if_version") or operation.request_id:
                raise InvalidInput("if_version and request_id are for writes", field_name="get")
            columns = check_columns(dataset, operation.get.columns)
            return get_operation(dataset, operation.region_code, operation.key, columns, traceparent)
        case "put":
            return put_operation(dataset, operation, operation.put.columns, operation.request_id, traceparent)
        case "delete":
            return delete_operation(dataset, operation, operation.request_id, traceparent)
        case _:
            raise InvalidInput("an operation says get, put or delete", field_name="action")


def check_no_key_twice(operations: Sequence[RowOperation]) -> None:
    """Raises `InvalidValue` when two writes of a batch name the same row: their order would be a guess."""
    if len({(operation.region_code, operation.key) for operation in operations}) < len(operations):
        raise InvalidValue("two writes of the batch name the same row", field_name="writes")
