"""The client that applications hold: `regiongate.connect(...)`.

It learns the routes from its home gateway, goes straight to the owner, packs concurrent calls into one stream to each
gateway, and repeats what failed for a while under the same request_id until the call's time is over. Each answer
carries the decision that let it through, each refusal the rule that forbade it (law L7).
"""

from __future__ import annotations

import secrets
from functools import partial
from itertools import count, repeat
from typing import TYPE_CHECKING, Any

from gateway.client import values
from gateway.client.calls import Calls, Work
from gateway.client.connections import Connections
from gateway.client.following import Follower
from gateway.client.many import ManyRows, Stated, check_size
from gateway.client.model import ClientSettings, Page, seconds_of
from gateway.client.moves import RowMoves
from gateway.client.routes import HOME, Routes
from policy.errors import PeerUnreachable, RegiongateError
from regiongate.v1 import row_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
    from datetime import timedelta

    from gateway.client.model import (
        DatasetColumns,
        Delete,
        MoveReceipt,
        Put,
        Receipt,
        RouteChange,
        Row,
        ShardOwner,
    )
    from runtime.telemetry.tracing import Tracing


class Client:
    """Reads and writes rows; safe to share among all tasks of one event loop.

    Every method takes `purpose` (stated to access rules; the client's own when None) and `timeout` (for the call with
    all its retries; the client's own when None), and raises the classes of `regiongate.errors`. A write that ends in
    `Unavailable` or `DeadlineExceeded` may have been done: repeat it with the same `request_id` to learn its result.
    """

    def __init__(self, targets: tuple[str, ...], settings: ClientSettings, tracing: Tracing | None) -> None:
        self._settings = settings
        self._routes = Routes(direct=settings.direct)
        self._connections = Connections(targets, self._routes, settings)
        self._calls = Calls(self._routes, self._connections, settings, tracing)
        self._many = ManyRows(self._routes, self._calls)
        self._moves = RowMoves(self._routes, self._calls)
        self._follower = Follower(self._routes, self._connections)
        self._purpose = settings.purpose
        self._request_prefix = secrets.token_hex(8) + "-"
        self._request_numbers = count(1)

    # ---- one row ----------------------------------------------------------------------------------------------------

    async def get(
        self,
        dataset: str,
        region_code: str,
        key: str | int,
        *,
        columns: Iterable[str] = (),
        purpose: str | None = None,
        timeout: timedelta | float | None = None,
        traceparent: str = "",
    ) -> Row:
        """The row.

        Args:
            dataset: The policy's name of this kind of rows.
            region_code: Whose law the row is under.
            key: Text or int64, as the dataset has it.
            columns: Those wanted; all that the caller may see when empty.
            purpose: See the class.
            timeout: See the class.
            traceparent: W3C Trace Context of the caller, where OpenTelemetry's current span is not it.

        Raises:
            RowNotFound: There is none.
            AccessDenied: A rule forbids it; `rule` and `policy_revision` say which.
        """
        operation = row_service_pb2.Operation(dataset=dataset, region_code=region_code)
        values.set_key(operation.key, key)
        if columns:
            operation.get.columns.extend(columns)
        else:
            operation.get.SetInParent()
        stated = self._purpose if purpose is None else purpose
        work = Work(operation, key, stated, self._calls.deadline(timeout))
        result = await self._calls.perform("client.get", work, traceparent)
        if not result.HasField("row"):
            raise _malformed()
        return values.decode_row(result.row, values.decode_decision(result.decision))

    async def put(
        self,
        dataset: str,
        region_code: str,
        key: str | int,
        columns: Mapping[str, Any],
        *,
        if_version: int | None = None,
        request_id: str = "",
        purpose: str | None = None,
        timeout: timedelta | float | None = None,
        traceparent: str = "",
    ) -> Receipt:
        """Writes the whole row, creating it if need be: columns that are not given become null.

        Args:
            dataset: See `get`.
            region_code: See `get`.
            key: See `get`.
            columns: Column -> value. A json column takes any JSON-able object, None is null.
            if_version: The version that the row must have; 0: it must not exist.
            request_id: Makes repeating the call return the first result; chosen anew for each call when empty.
            purpose: See the class.
            timeout: See the class.
            traceparent: See `get`.

        Raises:
            VersionConflict: The row has another version; `current` says which.
            InvalidValue: A value does not fit its column.
        """
        operation = row_service_pb2.Operation(
            dataset=dataset,
            region_code=region_code,
            request_id=request_id or self._request_id(next(self._request_numbers)),
        )
        values.set_key(operation.key, key)
        operation.put.SetInParent()
        values.set_columns(operation.put.columns, columns, self._routes.types_of(dataset))
        stated = self._purpose if purpose is None else purpose
        size = operation.ByteSize()
        check_size(size)
        work = Work(operation, key, stated, self._calls.deadline(timeout), size)
        return await self._write("client.put", work, if_version, traceparent)

    async def delete(
        self,
        dataset: str,
        region_code: str,
        key: str | int,
        *,
        if_version: int | None = None,
        request_id: str = "",
        purpose: str | None = None,
        timeout: timedelta | float | None = None,
        traceparent: str = "",
    ) -> Receipt:
        """Deletes the row; without `if_version`, deleting what is not there succeeds. Arguments as for `put`."""
        operation = row_service_pb2.Operation(
            dataset=dataset,
            region_code=region_code,
            request_id=request_id or self._request_id(next(self._request_numbers)),
        )
        values.set_key(operation.key, key)
        operation.delete.SetInParent()
        stated = self._purpose if purpose is None else purpose
        work = Work(operation, key, stated, self._calls.deadline(timeout))
        return await self._write("client.delete", work, if_version, traceparent)

    async def move(
        self,
        dataset: str,
        region_code: str,
        key: str | int,
        to_region_code: str,
        *,
        if_version: int | None = None,
        request_id: str = "",
        purpose: str | None = None,
        timeout: timedelta | float | None = None,
        traceparent: str = "",
    ) -> MoveReceipt:
        """Gives the row another RegionCode: gone under the old one, live under the new one, as of one instant.

        Arguments as for `put`. Raises `RowNotFound`, `VersionConflict`, `AccessDenied` by a rule of either RegionCode,
        and `RowExists` when a row of this key lives under the new one.
        """
        request = row_service_pb2.MoveRowRequest(
            dataset=dataset,
            region_code=region_code,
            to_region_code=to_region_code,
            if_version=if_version,
            request_id=request_id or self._request_id(next(self._request_numbers)),
        )
        values.set_key(request.key, key)
        stated = Stated(self._purpose if purpose is None else purpose, self._calls.deadline(timeout))
        perform = partial(self._moves.move, request, key, stated)
        return await self._calls.cover("client.move", dataset, region_code, traceparent, perform)

    async def _write(self, name: str, work: Work, if_version: int | None, traceparent: str) -> Receipt:
        if if_version is not None:
            work.operation.if_version = if_version
        result = await self._calls.perform(name, work, traceparent)
        if not result.HasField("receipt"):
            raise _malformed()
        return values.decode_receipt(result.receipt, values.decode_decision(result.decision))

    # ---- many rows --------------------------------------------------------------------------------------------------

    async def batch_get(
        self,
        dataset: str,
        keys: Sequence[tuple[str, str | int]],
        *,
        columns: Iterable[str] = (),
        purpose: str | None = None,
        timeout: timedelta | float | None = None,
        traceparent: str = "",
    ) -> list[Row | RegiongateError]:
        """The rows of many (RegionCode, key), in their order; an error in the place of each that failed."""
        stated = Stated(self._purpose if purpose is None else purpose, self._calls.deadline(timeout))
        perform = partial(self._many.get, dataset, keys, tuple(columns), stated)
        return await self._calls.cover("client.batch_get", dataset, "", traceparent, perform)

    async def batch_write(
        self,
        dataset: str,
        writes: Sequence[Put | Delete],
        *,
        request_id: str = "",
        purpose: str | None = None,
        timeout: timedelta | float | None = None,
        traceparent: str = "",
    ) -> list[Receipt | RegiongateError]:
        """Puts and deletes many rows; a receipt or an error for each, in order. Rows of one shard commit together.

        Args:
            dataset: See `get`.
            writes: No key twice in 1,000 neighbours; more than 1,000, or than 3 MiB, go as several batches.
            request_id: As for `put`, for the whole batch: a repetition brings the same writes in the same order. Only
                for what goes as one batch.
            purpose: See the class.
            timeout: See the class.
            traceparent: See `get`.
        """
        stated = Stated(self._purpose if purpose is None else purpose, self._calls.deadline(timeout))
        ids = repeat(request_id) if request_id else map(self._request_id, self._request_numbers)
        perform = partial(self._many.write, dataset, writes, ids, stated, is_one=bool(request_id))
        return await self._calls.cover("client.batch_write", dataset, "", traceparent, perform)

    async def list_page(
        self,
        dataset: str,
        region_code: str,
        *,
        filter: str = "",  # noqa: A002 (the word of AIP-160)
        columns: Iterable[str] = (),
        page_size: int = 100,
        page_token: str = "",
        purpose: str | None = None,
        timeout: timedelta | float | None = None,
        traceparent: str = "",
    ) -> Page:
        """One page of a RegionCode's rows in key order, over all its shards, wherever they are.

        Args:
            dataset: See `get`.
            region_code: See `get`.
            filter: Comparisons of columns with literals, AND, OR, NOT, parentheses: `spend > 10 AND name != ""`.
            columns: See `get`.
            page_size: 1 to 1,000.
            page_token: `next_page_token` of the page before; every other argument must be as it was then.
            purpose: See the class.
            timeout: See the class.
            traceparent: See `get`.
        """
        request = row_service_pb2.ListRowsRequest(
            dataset=dataset,
            region_code=region_code,
            filter=filter,
            columns=columns,
            page_size=page_size,
            page_token=page_token,
        )
        deadline = self._calls.deadline(timeout)
        stated = self._purpose if purpose is None else purpose

        async def perform(trace: str) -> row_service_pb2.ListRowsResponse:
            return await self._calls.call(
                lambda endpoint: endpoint.rows.ListRows,
                request,
                hop=HOME,
                purpose=stated,
                deadline=deadline,
                traceparent=trace,
            )

        answer = await self._calls.cover("client.list", dataset, region_code, traceparent, perform)
        decision = values.decode_decision(answer.decision)
        rows = tuple(values.decode_row(row, decision) for row in answer.rows)
        return Page(rows, answer.next_page_token, tuple(answer.unreachable), decision)

    async def list(
        self,
        dataset: str,
        region_code: str,
        *,
        filter: str = "",  # noqa: A002 (the word of AIP-160)
        columns: Iterable[str] = (),
        page_size: int = 100,
        allow_partial: bool = False,
        purpose: str | None = None,
        timeout: timedelta | float | None = None,
        traceparent: str = "",
    ) -> AsyncGenerator[Row]:
        """All rows of a RegionCode in key order; `timeout` is for each page. Arguments as for `list_page`.

        Raises:
            PeerUnreachable: An IDC could not be asked, so that rows are missing; not with `allow_partial`.
        """
        token, wanted = "", tuple(columns)
        while True:
            page = await self.list_page(
                dataset,
                region_code,
                filter=filter,
                columns=wanted,
                page_size=page_size,
                page_token=token,
                purpose=purpose,
                timeout=timeout,
                traceparent=traceparent,
            )
            if page.unreachable and not allow_partial:
                raise PeerUnreachable(f"rows are missing: {', '.join(page.unreachable)} cannot be reached")
            for row in page.rows:
                yield row
            token = page.next_page_token
            if not token:
                return

    # ---- what the client knows --------------------------------------------------------------------------------------

    @property
    def home_idc(self) -> str:
        """The IDC whose gateway the client enters by: the side that asks."""
        return self._routes.home_idc

    @property
    def datasets(self) -> Mapping[str, DatasetColumns]:
        """The policy's datasets, as the client knows them now."""
        return self._routes.datasets()

    def owner_of(self, region_code: str, key: str | int) -> ShardOwner:
        """Who owns the row, answered at once from the routes that the client follows; nothing is asked.

        The routes may have changed a moment ago: it is for choosing what to do where, and the owner's database still
        decides who may write.

        Raises:
            UnknownRegion: No residency rule covers the RegionCode.
            ShardUnavailable: The row's shard has no owner yet.
        """
        return self._routes.owner_of(region_code, key)

    def owns(self, region_code: str, key: str | int) -> bool:
        """Whether the home IDC owns the row; see `owner_of`."""
        return self.owner_of(region_code, key).idc == self._routes.home_idc

    def watch_routes(self) -> AsyncIterator[RouteChange]:
        """All routes, then every change as it happens; a slow reader gets a new snapshot in place of many changes."""
        return self._follower.changes()

    def _request_id(self, number: int) -> str:
        return f"{self._request_prefix}{number:x}"

    # ---- lifecycle --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Waits until a gateway has answered.

        Raises:
            RegiongateError: Why none does.
        """
        await self._follower.wait_first(seconds_of(self._settings.connect_timeout))

    async def close(self) -> None:
        """Closes all streams; calls that still wait fail as unreachable."""
        await self._follower.close()
        await self._connections.close()


def _malformed() -> RegiongateError:
    return RegiongateError("the gateway's answer has neither an error nor what was asked for")
