"""A page of the rows of some shards of one RegionCode, from this IDC's own database.

The same judgement as for any read, for whoever asks: this gateway's own listing or a peer's. What is withheld is
dropped here, at the owner, and does not travel. A page ends at its number of rows or of bytes, whichever comes first.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.hold import FIRST_PAUSE, LONGEST_PAUSE
from gateway.judge import Asking, Deny, access_denied, asking_side, still_stands
from gateway.operations import Action, RowOperation
from gateway.requests import table_of
from gateway.values import encode_row
from policy.errors import AccessDenied, NotOwnedHere, RowMoving, StaleEpoch
from policy.model import Operation
from rowstore.model import StoredRow

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from gateway.hold import FollowerLike
    from gateway.operations import CallContext
    from policy.model import AccessDecision, Dataset
    from policy.table import RoutingTable
    from regiongate.v1 import types_pb2
    from rowstore.filter import Filter
    from rowstore.model import ShardEpoch
    from rowstore.store import RowStore

MAX_PAGE_BYTES: Final = 1 << 20
"""A page ends after the row that reaches this, so it holds less than two rows of the largest size."""

_AWAIT_SHARE: Final = 0.5
"""Of the caller's time, for a row that is on its way into the shards; its owner's answer must still get through."""

_FIRST_CHUNK: Final = 128
"""Rows read before anything is known of their size."""


@dataclass(frozen=True, slots=True)
class ScanQuery:
    """Which rows of one RegionCode, after which key, and what of them."""

    dataset: Dataset
    region_code: str
    condition: Filter | None
    columns: frozenset[str] | None
    """None for all."""
    limit: int
    after: str | int | None = None
    filter_text: str = ""
    """The condition as the caller wrote it."""


@dataclass(slots=True)
class ScanPage:
    """Rows in key order, as the asker may see them."""

    rows: Sequence[types_pb2.Row]
    more: bool
    """Whether rows above the last one may follow."""
    decision: AccessDecision


class ScanJudge:
    """Whether rows of a RegionCode may be listed: once before they are read, once before they leave (law L6)."""

    def __init__(self, idc: str, view: FollowerLike, query: ScanQuery, context: CallContext) -> None:
        self._view = view
        self._query = query
        self.asking: Asking = asking_side(idc, context)
        self.decision: AccessDecision | None = None
        """The newest."""
        # What is judged is a read of the RegionCode; no key takes part in it.
        self._operation = RowOperation(Action.GET, query.dataset, query.region_code, "")

    def judge(self, table: RoutingTable, owners: Collection[str]) -> AccessDecision:
        """The decision by one table on rows that these IDCs own.

        Raises:
            AccessDenied: the policy says no, or the filter names a withheld column.
            TableTooOld: this gateway cannot know.
        """
        query, policy = self._query, table.policy
        decision = policy.decide(
            query.dataset.name, query.region_code, self.asking.askers, Operation.READ, self.asking.purpose
        )
        self.decision = decision
        if not self.asking.is_home(policy, *owners):
            decision = self._guarded(decision, table)
        if not decision.allowed:
            raise access_denied(decision)
        self._check_filter(decision)
        return decision

    def judge_again(self, decision: AccessDecision, table: RoutingTable, owners: Collection[str]) -> AccessDecision:
        """The decision that holds right before the rows leave; raises as `judge` does."""
        if self.asking.is_home(table.policy, *owners):
            return decision
        decision = self._guarded(decision, table)
        self._check_filter(decision)
        return decision

    def _guarded(self, decision: AccessDecision, table: RoutingTable) -> AccessDecision:
        view = self._view
        verdict = still_stands(decision, table.policy, view.table, self._operation, self.asking, is_fresh=view.is_fresh)
        if isinstance(verdict, Deny):
            self.decision = verdict.decision
            raise verdict.error
        self.decision = verdict
        return verdict

    def _check_filter(self, decision: AccessDecision) -> None:
        """A filter on a withheld column would tell its values by what it lets through."""
        condition = self._query.condition
        hidden = condition.columns & decision.withheld if condition is not None else None
        if hidden:
            raise AccessDenied(
                f"rule {decision.rule} withholds {', '.join(sorted(hidden))}, which the filter names",
                rule=decision.rule,
                policy_revision=decision.policy_revision,
            )


def may_pass(table: RoutingTable, region_code: str, idc: str) -> bool:
    """Whether rows of the RegionCode may pass through a gateway of the IDC."""
    residency = table.policy.residency(region_code)
    return residency.allows_transit or table.policy.idcs.get(idc) in residency.jurisdictions


class Scanner:
    """Reads pages for whoever asks."""

    def __init__(self, idc: str, view: FollowerLike, store: RowStore) -> None:
        self._idc = idc
        self._view = view
        self._store = store

    async def scan(self, query: ScanQuery, shards: Sequence[ShardEpoch], context: CallContext) -> ScanPage:
        """Reads one page of the shards, all of the query's RegionCode.

        Raises:
            AccessDenied, TableTooOld: as in `ScanJudge.judge`.
            NotOwnedHere: the rows may not pass through the IDC that asks.
            StaleEpoch: this IDC's database does not serve one of the shards at its epoch.
            RowMoving: a row was on its way into the shards for too long.
            DatabaseUnavailable: it does not answer.
        """
        judge = ScanJudge(self._idc, self._view, query, context)
        table = table_of(self._view)
        own = (self._idc,)
        decision = judge.judge(table, own)
        if context.ingress_idc and not may_pass(table, query.region_code, context.ingress_idc):
            raise NotOwnedHere(
                f"rows of {query.region_code} do not pass through {context.ingress_idc}", owner_idc=self._idc
            )
        rows, more = await self._read(query, shards, context.deadline)
        decision = judge.judge_again(decision, table, own)
        return ScanPage([_visible(row, query, decision) for row in rows], more, decision)

    async def _read(
        self, query: ScanQuery, shards: Sequence[ShardEpoch], deadline: float
    ) -> tuple[list[StoredRow], bool]:
        rows: list[StoredRow] = []
        after, size, chunk = query.after, 0, _FIRST_CHUNK
        pause = FIRST_PAUSE
        now = asyncio.get_running_loop().time
        until = now() + (deadline - now()) * _AWAIT_SHARE
        while True:
            limit = min(chunk, query.limit - len(rows))
            page = await self._store.list_page(
                query.dataset, shards, after=after, condition=query.condition, limit=limit
            )
            if page.missed:
                raise StaleEpoch(f"{self._idc} does not serve shards of {query.region_code} at the epochs asked for")
            if page.is_awaiting:
                if now() + pause >= until:
                    raise RowMoving(f"a row is on its way to {query.region_code} from another RegionCode")
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            for row in page.rows:
                rows.append(row)
                size += _size(row)
                if size >= MAX_PAGE_BYTES:
                    return rows, page.more or row is not page.rows[-1]
            if not page.more or len(rows) >= query.limit:
                return rows, page.more
            after = rows[-1].key
            chunk = max(1, (MAX_PAGE_BYTES - size) * len(rows) // max(size, 1))


def _size(row: StoredRow) -> int:
    """About how many bytes the row takes: what has no length takes few."""
    return sum(len(value) if isinstance(value, str | bytes) else 8 for value in row.values.values()) + 64


def _visible(row: StoredRow, query: ScanQuery, decision: AccessDecision) -> types_pb2.Row:
    columns, withheld = query.columns, decision.withheld
    if columns is not None or withheld:
        values = {
            name: value
            for name, value in row.values.items()
            if name not in withheld and (columns is None or name in columns)
        }
        row = StoredRow(row.region_code, row.key, row.version, row.update_time, values)
    return encode_row(row, query.dataset)
