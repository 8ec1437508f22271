"""The statements of reads: rows under their fences, and what became of a write.

Fence and row are seen in one snapshot, so what is read was so at a moment when this IDC might serve it (law L4). No
plan hangs on statistics: tables are met in LATERAL subqueries with a LIMIT, which cannot be flattened into joins.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Integer,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    select,
    true,
)

from rowstore.compiling import SERVING, Statement, compile_statement, literal, rows_of, value_names
from rowstore.model import FenceMode
from rowstore.tables import row_arrivals, shard_fences, table_name, write_requests

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, FromClause, Table


def is_readable(mode: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether reads pass in this mode."""
    return mode.in_((SERVING, literal(FenceMode.DRAINING)))


def _refusal(fence: FromClause, epoch: ColumnElement[int]) -> ColumnElement[str | None]:
    """Null when the fence lets the read pass; otherwise `mode:epoch`, or empty without a fence."""
    return case(
        (fence.c.epoch.is_(None), literal("")),
        (and_(fence.c.epoch == epoch, is_readable(fence.c.mode)), literal_column("NULL::text")),
        else_=fence.c.mode.concat(literal(":")).concat(cast(fence.c.epoch, Text)),
    ).label("refusal")


def _arrival(table: Table, region_code: ColumnElement[str], shard: ColumnElement[int], key: ColumnElement[Any]) -> Any:  # noqa: ANN401 (a scalar subquery)
    """Since when a row of the key is on its way here; null when none is."""
    dataset_name = table.name.removeprefix(table_name(""))
    return (
        select(row_arrivals.c.start_time)
        .where(
            row_arrivals.c.region_code == region_code,
            row_arrivals.c.shard == shard,
            row_arrivals.c.dataset == literal(dataset_name),
            row_arrivals.c.key == cast(key, Text),
        )
        .scalar_subquery()
    )


@lru_cache(maxsize=1024)
def read_one(table: Table) -> Statement:
    """Arguments: region_code, shard, epoch, key. The row (`seq` null without one); nothing when the fence refuses.

    A time without a `seq`: no row, but one is on its way here. That is looked up for a missing row only.

    Fence and row are seen in one snapshot, so the row is as it was at a moment when this IDC might serve it.
    """
    region_code = bindparam("region_code", type_=Text)
    shard = bindparam("shard", type_=Integer)
    key = bindparam("key", type_=table.c.key.type)
    is_row = and_(table.c.region_code == region_code, table.c.key == key, ~table.c.deleted)
    time = func.coalesce(table.c.update_time, _arrival(table, region_code, shard, key))
    statement = (
        select(table.c.seq, time, *(table.c[name] for name in value_names(table)))
        .select_from(shard_fences.outerjoin(table, is_row))
        .where(
            shard_fences.c.region_code == region_code,
            shard_fences.c.shard == shard,
            shard_fences.c.epoch == bindparam("epoch", type_=BigInteger),
            is_readable(shard_fences.c.mode),
        )
    )
    return compile_statement(statement, ("region_code", "shard", "epoch", "key"))


@lru_cache(maxsize=1024)
def read_many(table: Table) -> Statement:
    """Arguments: arrays of region_codes, shards, epochs, keys.

    A record for each key: `ordinal`, `refusal` (as `_refusal` says), and the row as in `read_one`.
    """
    wanted = rows_of(
        "wanted",
        (
            ("region_code", "region_codes", Text()),
            ("shard", "shards", Integer()),
            ("epoch", "epochs", BigInteger()),
            ("key", "keys", table.c.key.type),
        ),
    )
    fence = (
        select(shard_fences.c.epoch, shard_fences.c.mode)
        .where(shard_fences.c.region_code == wanted.c.region_code, shard_fences.c.shard == wanted.c.shard)
        .limit(literal_column("1"))
        .lateral("fence")
    )
    row = (
        select(table.c.seq, table.c.update_time, *(table.c[name] for name in value_names(table)))
        .where(
            table.c.region_code == wanted.c.region_code,
            table.c.key == wanted.c.key,
            ~table.c.deleted,
            fence.c.epoch == wanted.c.epoch,
            is_readable(fence.c.mode),
        )
        .limit(literal_column("1"))
        .lateral("found")
    )
    arrival = _arrival(table, wanted.c.region_code, wanted.c.shard, wanted.c.key)
    seq, time, *values = row.c
    statement = select(
        wanted.c.ordinal, _refusal(fence, wanted.c.epoch), seq, func.coalesce(time, arrival), *values
    ).select_from(wanted.outerjoin(fence, true()).outerjoin(row, true()))
    return compile_statement(statement, ("region_codes", "shards", "epochs", "keys"))


@lru_cache(maxsize=1024)
def diagnose(table: Table, dataset_name: str) -> Statement:
    """Arguments: arrays of region_codes, shards, keys, request_ids. A record for each row, as it is now.

    `mode` and `epoch` of the fence; `done_seq` and `done_time` of the remembered write; `last_part` of its request, if
    anything of it is remembered; the live row's `version`; and since when one is `arriving`.
    """
    asked = rows_of(
        "asked",
        (
            ("region_code", "region_codes", Text()),
            ("shard", "shards", Integer()),
            ("key", "keys", table.c.key.type),
            ("request_id", "request_ids", Text()),
        ),
    )
    one = literal_column("1")
    fence = (
        select(shard_fences.c.mode, shard_fences.c.epoch)
        .where(shard_fences.c.region_code == asked.c.region_code, shard_fences.c.shard == asked.c.shard)
        .limit(one)
        .lateral("fence")
    )
    place = func.array_position(write_requests.c["keys"], cast(asked.c.key, Text))
    done = (
        select(
            func.max(write_requests.c.seqs[place]).label("seq"),
            func.max(write_requests.c.update_time).filter(place.is_not(None)).label("time"),
            func.max(write_requests.c.part).label("part"),
        )
        .where(
            write_requests.c.region_code == asked.c.region_code,
            write_requests.c.shard == asked.c.shard,
            write_requests.c.request_id == asked.c.request_id,
            write_requests.c.dataset == literal(dataset_name),
        )
        .lateral("done")
    )
    row = (
        select(table.c.seq)
        .where(table.c.region_code == asked.c.region_code, table.c.key == asked.c.key, ~table.c.deleted)
        .limit(one)
        .lateral("found")
    )
    statement = select(
        asked.c.ordinal,
        fence.c.mode,
        fence.c.epoch,
        done.c.seq.label("done_seq"),
        done.c.time.label("done_time"),
        done.c.part.label("last_part"),
        row.c.seq.label("version"),
        _arrival(table, asked.c.region_code, asked.c.shard, asked.c.key).label("arriving"),
    ).select_from(asked.outerjoin(fence, true()).outerjoin(done, true()).outerjoin(row, true()))
    return compile_statement(statement, ("region_codes", "shards", "keys", "request_ids"))
