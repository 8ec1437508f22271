"""ListRows: the rows of one RegionCode in key order, over all its shards, wherever they are, and never wider.

Each owner's IDC sends its part in key order, and the parts are merged here. A page ends at its number of rows or bytes.
An IDC that cannot be asked is named in `unreachable` and its rows are missing from the page; one that fails in the
middle ends the page before it, so that the next page asks it again and no row between is passed over. When a part
turns out to lie elsewhere by now, or to be on the move, the page is begun anew by a newer table (see `gateway.hold`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from heapq import merge
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.crossings import Asked, named_purpose
from gateway.hold import Held, Wait
from gateway.page_token import listing_digest, make_page_token, read_page_token
from gateway.peer_scan import PeerScanner
from gateway.requests import check_region, dataset_of, table_of
from gateway.scan import MAX_PAGE_BYTES, ScanJudge, ScanPage, ScanQuery, may_pass
from gateway.values import check_columns
from policy.errors import (
    AccessDenied,
    DeadlineExceeded,
    InvalidValue,
    NotOwnedHere,
    RegiongateError,
    ShardUnavailable,
    StaleEpoch,
    TableTooOld,
    Unavailable,
)
from policy.model import Operation
from policy.move import READABLE
from regiongate.v1 import row_service_pb2
from rowstore.filter import parse_filter
from rowstore.model import ShardEpoch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from gateway.crossings import Crossings
    from gateway.decisions import DecisionMessages
    from gateway.hold import FollowerLike
    from gateway.operations import CallContext
    from gateway.peers import Peers
    from gateway.scan import Scanner
    from policy.model import AccessDecision
    from policy.table import RoutingTable
    from regiongate.v1 import types_pb2

MAX_PAGE_SIZE: Final = 1000
DEFAULT_PAGE_SIZE: Final = 100
_PATIENCE: Final = 0.6
"""Share of a call's time that one IDC may take before it counts as unreachable, so that the others' rows get out."""


class Moved(Exception):
    """A shard is not where the table says, or on the move; a newer table will tell."""

    def __init__(self, *, needs_table: bool) -> None:
        super().__init__()
        self.needs_table = needs_table
        """Whether the table itself says so."""


class Part:
    """One owner's rows, read page by page."""

    def __init__(self, idc: str, shards: Sequence[ShardEpoch], query: ScanQuery) -> None:
        self.idc = idc
        self.shards = shards
        self.query = query
        self.rows: deque[types_pb2.Row] = deque()
        self.more = True
        self.after = query.after
        self.error: RegiongateError | None = None
        """Why it cannot be asked."""
        self.decision: AccessDecision | None = None

    def take(self, page: ScanPage) -> None:
        """Takes a page in."""
        self.rows.extend(page.rows)
        self.more = page.more
        self.decision = page.decision
        if page.rows:
            self.after = key_of(page.rows[-1])


class Listing(NamedTuple):
    """One page, merged."""

    rows: list[types_pb2.Row]
    has_more: bool
    unreachable: list[str]
    decision: AccessDecision | None
    """The newest that an owner has made."""


class Lister:
    """Answers ListRows on the client listener."""

    def __init__(
        self,
        idc: str,
        view: FollowerLike,
        *,
        scanner: Scanner,
        peers: Peers,
        decisions: DecisionMessages,
        hold_timeout: float,
        crossings: Crossings,
    ) -> None:
        self._idc = idc
        self._view = view
        self._scanner = scanner
        self._peer_scanner = PeerScanner(idc, peers)
        self._decisions = decisions
        self._hold_timeout = hold_timeout
        self._crossings = crossings
        self._now = asyncio.get_running_loop().time

    async def list_rows(
        self, request: row_service_pb2.ListRowsRequest, context: CallContext
    ) -> row_service_pb2.ListRowsResponse:
        """One page; raises what any read does, and `InvalidPageToken`."""
        query, digest = self._parse(request)
        judge = ScanJudge(self._idc, self._view, query, context)
        try:
            page = await self._list(judge, query, digest, context)
        except (AccessDenied, TableTooOld) as error:
            self._count(judge, query, error)
            raise
        self._count(judge, query, None)
        return page

    def _count(self, judge: ScanJudge, query: ScanQuery, error: RegiongateError | None) -> None:
        """Counts a page as one read, if it crosses a border."""
        if judge.decision is not None and judge.decision.crosses_border:
            purpose = named_purpose(table_of(self._view).policy, judge.asking.purpose)
            self._crossings.count(judge.decision, Asked(query.region_code, Operation.READ, purpose), error)

    async def _list(
        self, judge: ScanJudge, query: ScanQuery, digest: str, context: CallContext
    ) -> row_service_pb2.ListRowsResponse:
        wait = Wait(min(context.deadline, self._now() + self._hold_timeout))
        while True:
            table = table_of(self._view)
            try:
                return await self._page(table, judge, query, digest, context)
            except Moved as moved:
                held = Held([0], table.store_revision, moved.needs_table)
            if self._now() >= wait.until:
                raise ShardUnavailable(f"shards of {query.region_code} are changing hands")
            await wait.by(self._view, held)

    def _parse(self, request: row_service_pb2.ListRowsRequest) -> tuple[ScanQuery, str]:
        dataset = dataset_of(self._view, request.dataset)
        region_code = check_region(request.region_code)
        table_of(self._view).policy.residency(region_code)
        columns = check_columns(dataset, request.columns)
        limit = request.page_size or DEFAULT_PAGE_SIZE
        if not 1 <= limit <= MAX_PAGE_SIZE:
            raise InvalidValue(f"page_size is 1 to {MAX_PAGE_SIZE}", field_name="page_size")
        condition = parse_filter(request.filter, dataset) if request.filter.strip() else None
        digest = listing_digest(dataset.name, region_code, request.filter, request.columns)
        after = read_page_token(request.page_token, digest, dataset) if request.page_token else None
        return ScanQuery(dataset, region_code, condition, columns, limit, after, request.filter), digest

    async def _page(
        self, table: RoutingTable, judge: ScanJudge, query: ScanQuery, digest: str, context: CallContext
    ) -> row_service_pb2.ListRowsResponse:
        parts = _parts(table, query)
        owners = {part.idc for part in parts}
        decision = judge.judge(table, owners)
        if owners != {self._idc} and not may_pass(table, query.region_code, self._idc):
            raise self._redirect(parts[0].idc, query.region_code)
        found = await self._merge(parts, query, context)
        decision = judge.judge_again(decision, table, owners)
        _drop_withheld(found.rows, decision)
        if found.decision is not None and found.decision.policy_revision > decision.policy_revision:
            decision = found.decision
        return row_service_pb2.ListRowsResponse(
            rows=found.rows,
            next_page_token=make_page_token(digest, key_of(found.rows[-1])) if found.has_more else "",
            unreachable=found.unreachable,
            decision=self._decisions.message(decision, parts[0].idc if len(parts) == 1 else ""),
        )

    async def _merge(self, parts: Sequence[Part], query: ScanQuery, context: CallContext) -> Listing:
        patience = self._now() + (context.deadline - self._now()) * _PATIENCE
        await asyncio.gather(*(self._read_first(part, context, patience) for part in parts))
        reachable = [part for part in parts if part.error is None]
        if not reachable and parts[0].error is not None:
            raise parts[0].error
        unreachable = [part.idc for part in parts if part.error is not None]
        rows: list[types_pb2.Row] = []
        size = 0
        has_more = False
        async for row in self._in_order(reachable, context, patience):
            if len(rows) >= query.limit or size >= MAX_PAGE_BYTES:
                has_more = True
                break
            rows.append(row)
            size += row.ByteSize()
        # A part that failed in the middle has ended the merge: its rows come with the next page.
        has_more = has_more or any(part.error is not None for part in reachable)
        decisions = (part.decision for part in reachable if part.decision is not None)
        newest = max(decisions, key=lambda decision: decision.policy_revision, default=None)
        return Listing(rows, has_more and bool(rows), unreachable, newest)

    async def _in_order(
        self, parts: Sequence[Part], context: CallContext, patience: float
    ) -> AsyncIterator[types_pb2.Row]:
        """Merges what has been read, up to where a part must be read on."""
        while True:
            if any(part.error is not None for part in parts):
                return
            active = [part for part in parts if part.rows]
            if not active:
                return
            bound = min((key_of(part.rows[-1]) for part in active if part.more), default=None)
            for row in merge(*(_up_to(part.rows, bound) for part in active), key=key_of):
                yield row
            for part in parts:
                await self._read_first(part, context, patience)

    async def _read_first(self, part: Part, context: CallContext, patience: float) -> None:
        """Reads until there is a row to merge: a filter may leave pages empty."""
        while part.error is None and part.more and not part.rows:
            await self._read(part, context, patience)

    async def _read(self, part: Part, context: CallContext, patience: float) -> None:
        query = part.query
        asked = replace(query, after=part.after)
        try:
            async with asyncio.timeout_at(patience):
                if part.idc == self._idc:
                    page = await self._scanner.scan(asked, part.shards, context)
                else:
                    page = await self._peer_scanner.scan(part.idc, asked, part.shards, context, patience)
        except (StaleEpoch, NotOwnedHere):
            raise Moved(needs_table=False) from None
        except TimeoutError:
            part.error = DeadlineExceeded(f"{part.idc} did not answer in time")
        except (Unavailable, DeadlineExceeded) as error:
            part.error = error
        else:
            part.take(page)

    def _redirect(self, idc: str, region_code: str) -> NotOwnedHere:
        endpoints = tuple(record.address for record in self._view.gateways.get(idc, ()))
        return NotOwnedHere(
            f"rows of {region_code} do not pass through {self._idc}: ask {idc}", owner_idc=idc, endpoints=endpoints
        )


def _parts(table: RoutingTable, query: ScanQuery) -> list[Part]:
    """The shards of the RegionCode by owner; raises `Moved` when one has none yet, or none that may read it."""
    owners: dict[str, list[ShardEpoch]] = {}
    for route in table.routes_of(query.region_code):
        if route is None or route.phase not in READABLE:
            raise Moved(needs_table=True)
        owners.setdefault(route.idc, []).append(ShardEpoch(route.region_code, route.shard, route.epoch))
    return [Part(idc, shards, query) for idc, shards in sorted(owners.items())]


def key_of(row: types_pb2.Row) -> str | int:
    """The row's key; in one dataset all keys are of one type, and strings order as their UTF-8 bytes do."""
    key = row.key
    return key.int64_key if key.WhichOneof("kind") == "int64_key" else key.string_key


def _up_to(rows: deque[types_pb2.Row], bound: str | int | None) -> Iterator[types_pb2.Row]:
    while rows and (bound is None or key_of(rows[0]) <= bound):  # pyright: ignore[reportOperatorIssue] (one type)
        yield rows.popleft()


def _drop_withheld(rows: Sequence[types_pb2.Row], decision: AccessDecision) -> None:
    """What a newer policy withholds is dropped, even if it did travel by the older one."""
    for row in rows:
        for name in decision.withheld:
            row.columns.pop(name, None)
