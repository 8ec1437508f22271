"""The statements of writes.

The anatomy of a write, which laws L2, L3 and L4 rest on. It runs at READ COMMITTED, and its snapshot is older than a
lock that it had to wait for; so nothing that decides may rest on what it merely selects:
- `locked` takes the fences of its shards in order (no deadlock between gateways), and judges each as it is after the
  wait: a lock does that at this isolation level. `fence` moves `last_seq` on. Writers of one shard queue here until
  commit, so sequence order is commit order, and `greatest` keeps time from running backwards.
- `remembered` finds a replay by the unique index, which sees what has been committed since the snapshot.
- `written` upserts: ON CONFLICT meets the newest row, whatever the snapshot shows.
No plan hangs on statistics: tables are met by ON CONFLICT, or in LATERAL subqueries with a LIMIT or a lock, which
cannot be flattened into joins; and `rowstore.database` forbids what is not a lookup by index.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Integer,
    Text,
    and_,
    cast,
    func,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert

from rowstore.compiling import SERVING, Statement, compile_statement, literal, rows_of, value_names
from rowstore.tables import SYSTEM_COLUMNS, shard_fences, write_requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import CTE, ColumnElement, FromClause, Table


_SHARD_ARGUMENTS: Final = ("regions", "shards", "epochs", "counts", "ends")
_LOT_ARGUMENTS: Final = ("places", "request_ids", "parts", "deleted")
_ROW_ARGUMENTS: Final = ("lots", "keys", "if_versions")


def write_arguments(table: Table) -> tuple[str, ...]:
    """Names of a write's arguments: of its shards, of its lots, of its rows, and of the columns.

    A lot is rows of one shard and one request, all of them put or all deleted: each array for every row costs more than
    all that is said of a lot. `ends` is how many rows there are up to a shard's last one; `places` and `lots` count
    shards and lots from 1. Shards, lots and rows come in the order of the shards.
    """
    columns = (f"v{index}" for index in range(len(value_names(table))))
    return (*_SHARD_ARGUMENTS, *_LOT_ARGUMENTS, *_ROW_ARGUMENTS, *columns)


def _wanted(name: str) -> FromClause:
    """The shards of a write."""
    return rows_of(
        name,
        (
            ("region_code", "regions", Text()),
            ("shard", "shards", Integer()),
            ("epoch", "epochs", BigInteger()),
            ("count", "counts", BigInteger()),
            ("end", "ends", BigInteger()),
        ),
    )


def _fence_part() -> CTE:
    """`locked` and `fence`: region_code, shard, epoch, last_seq (of the last row) and last_time."""
    wanted = _wanted("wanted")
    held = (
        select(shard_fences.c.region_code, shard_fences.c.shard, shard_fences.c.epoch, shard_fences.c.mode)
        .where(
            shard_fences.c.region_code == wanted.c.region_code,
            shard_fences.c.shard == wanted.c.shard,
            shard_fences.c.epoch == wanted.c.epoch,
            shard_fences.c.mode == SERVING,
        )
        # FOR NO KEY UPDATE: writers exclude each other, readers pass.
        .with_for_update(key_share=True)
        .lateral("held")
    )
    # A nested loop over the array: the locks are taken in its order, and the caller has sorted it.
    locked = select(*held.c, wanted.c.count).select_from(wanted.join(held, true())).cte("locked")
    # An update by way of ON CONFLICT: the row is there, since it is locked, and no join with the table needs a plan.
    moved = insert(shard_fences).from_select(
        ["region_code", "shard", "epoch", "mode", "last_seq", "last_time"],
        select(
            *(locked.c[name] for name in ("region_code", "shard", "epoch", "mode", "count")), func.clock_timestamp()
        ),
    )
    return (
        moved.on_conflict_do_update(
            index_elements=[shard_fences.c.region_code, shard_fences.c.shard],
            set_={
                "last_seq": shard_fences.c.last_seq + moved.excluded.last_seq,
                "last_time": func.greatest(shard_fences.c.last_time, func.clock_timestamp()),
            },
        )
        .returning(*(shard_fences.c[name] for name in ("region_code", "shard", "epoch", "last_seq", "last_time")))
        .cte("fence")
    )


def _numbered_part(table: Table, fence: CTE, *, has_versions: bool = False) -> CTE:
    """The rows of the shards that may be written, each with its sequence."""
    names = value_names(table)
    place = _wanted("place")
    lot = rows_of(
        "lot",
        (
            ("place", "places", Integer()),
            ("request_id", "request_ids", Text()),
            ("part", "parts", Integer()),
            ("deleted", "deleted", Boolean()),
        ),
    )
    brought = rows_of(
        "brought",
        (
            ("lot", "lots", Integer()),
            ("key", "keys", table.c.key.type),
            *((("if_version", "if_versions", BigInteger()),) if has_versions else ()),
            *((f"v{index}", f"v{index}", table.c[name].type) for index, name in enumerate(names)),
        ),
    )
    same_shard = and_(*(fence.c[name] == place.c[name] for name in ("region_code", "shard", "epoch")))
    return (
        select(
            fence.c.region_code,
            brought.c.key,
            fence.c.shard,
            (fence.c.last_seq + (brought.c.ordinal - place.c.end)).label("seq"),
            fence.c.last_time.label("update_time"),
            lot.c.deleted,
            *(brought.c[f"v{index}"].label(f"v{index}") for index in range(len(names))),
            lot.c.request_id,
            lot.c.part,
            *((brought.c.if_version,) if has_versions else ()),
        )
        .select_from(
            brought.join(lot, lot.c.ordinal == brought.c.lot)
            .join(place, place.c.ordinal == lot.c.place)
            .join(fence, same_shard)
        )
        .cte("numbered")
    )


_ROW_NAME: Final = ("region_code", "shard", "seq")
_REQUEST_NAME: Final = ("region_code", "shard", "request_id")


def _is_among(rows: FromClause, chosen: FromClause, names: Sequence[str]) -> ColumnElement[bool]:
    """Whether what the names say of a row is among the chosen ones.

    IS TRUE keeps it what it is: a lookup in a hash table, which costs the same whatever the planner believes.
    """
    wanted = select(*(chosen.c[name] for name in names))
    return tuple_(*(rows.c[name] for name in names)).in_(wanted).is_(true())


def _upsert(table: Table, source: CTE, condition: ColumnElement[bool] | None, *, only_tombstones: bool = False) -> Any:  # noqa: ANN401 (Insert is generic)
    """Puts the rows of `source`, whose first columns are the table's, into the table."""
    names = [*SYSTEM_COLUMNS, *value_names(table)]
    rows = select(*list(source.c)[: len(names)])
    statement = insert(table).from_select(names, rows if condition is None else rows.where(condition))
    return statement.on_conflict_do_update(
        index_elements=[table.c.region_code, table.c.key],
        set_={name: statement.excluded[name] for name in names if name not in ("region_code", "key")},
        # A tombstone without a finite time keeps the place of a row that is on its way here (`rowstore.row_moves`).
        where=and_(table.c.deleted, func.isfinite(table.c.update_time)) if only_tombstones else None,
    )


def _remember(numbered: CTE, dataset_name: str, *conditions: ColumnElement[bool]) -> Any:  # noqa: ANN401 (Insert is generic)
    """Remembers rows by their request_id, those that have one: one record for each request and shard."""
    names = ("region_code", "shard", "request_id", "part", "update_time")
    request = [numbered.c[name] for name in names]
    rows = (
        select(
            *request,
            literal(dataset_name),
            # Both see the rows in the same order, whichever it is.
            func.array_agg(cast(numbered.c.key, Text)),
            func.array_agg(numbered.c.seq),
        )
        .where(numbered.c.request_id != literal(""), *conditions)
        .group_by(*request)
    )
    return insert(write_requests).from_select([*names, "dataset", "keys", "seqs"], rows)


def _result(table: Table, fence: CTE, detail: CTE | None, name: str, done: Sequence[CTE]) -> Statement:
    """A record for each shard that let the write pass: its fence, and the `name`s in `detail` of what was done.

    Without `detail` that is everything. `done` is what the statement does besides.
    """
    columns = [fence.c[column] for column in ("region_code", "shard", "epoch", "last_seq", "last_time")]
    if detail is None:
        statement = select(*columns)
    else:
        gathered = (
            select(detail.c.region_code, detail.c.shard, func.array_agg(detail.c[name]).label("gathered"))
            .group_by(detail.c.region_code, detail.c.shard)
            .subquery("gathered")
        )
        same_shard = and_(gathered.c.region_code == fence.c.region_code, gathered.c.shard == fence.c.shard)
        statement = select(*columns, gathered.c.gathered).select_from(fence.outerjoin(gathered, same_shard))
    return compile_statement(statement.add_cte(*done), write_arguments(table))


@lru_cache(maxsize=1024)
def upsert_forgetful(table: Table) -> Statement:
    """Unconditional writes of which none has a request_id: what the fence lets pass is written."""
    fence = _fence_part()
    written = _upsert(table, _numbered_part(table, fence), None).cte("written")
    return _result(table, fence, None, "", (written,))


@lru_cache(maxsize=1024)
def upsert(table: Table, dataset_name: str) -> Statement:
    """Unconditional writes: a replay meets its own trace in the unique index, and is not written again.

    The records tell which requests are new; the rows of the others are not written.
    """
    fence = _fence_part()
    numbered = _numbered_part(table, fence)
    remembered = (
        _remember(numbered, dataset_name)
        .on_conflict_do_nothing()
        .returning(*(write_requests.c[name] for name in _REQUEST_NAME))
        .cte("remembered")
    )
    is_new = or_(numbered.c.request_id == literal(""), _is_among(numbered, remembered, _REQUEST_NAME))
    written = _upsert(table, numbered, is_new).cte("written")
    return _result(table, fence, remembered, "request_id", (written,))


def _conditional(table: Table, dataset_name: str, fence: CTE, numbered: CTE, upserted: Any) -> Statement:  # noqa: ANN401 (Insert is generic)
    """Remembers what a conditional upsert has written; the records tell the sequences of these rows.

    Deliberately without ON CONFLICT: should a row be written again for a request that is remembered already (inserted,
    deleted by somebody, and now retried), the unique index undoes the whole statement, and the store takes the replay
    out.
    """
    written = upserted.returning(*(table.c[name] for name in _ROW_NAME)).cte("written")
    remembered = _remember(numbered, dataset_name, _is_among(numbered, written, _ROW_NAME)).cte("remembered")
    return _result(table, fence, written, "seq", (remembered,))


@lru_cache(maxsize=1024)
def insert_absent(table: Table, dataset_name: str) -> Statement:
    """Writes of rows that must not exist: the newest row, if there is one, must be a tombstone."""
    fence = _fence_part()
    numbered = _numbered_part(table, fence)
    return _conditional(table, dataset_name, fence, numbered, _upsert(table, numbered, None, only_tombstones=True))


@lru_cache(maxsize=1024)
def update_present(table: Table, dataset_name: str) -> Statement:
    """Writes of rows that must have a version.

    `matching` locks the rows that have it; one that has changed since the snapshot is judged again as it is now. A row
    that the snapshot does not show at the version fails, at a moment inside the call. What is locked stays as it is
    until the upsert, which therefore needs no condition.
    """
    fence = _fence_part()
    numbered = _numbered_part(table, fence, has_versions=True)
    row = (
        select(table.c.key)
        .where(
            table.c.region_code == numbered.c.region_code,
            table.c.key == numbered.c.key,
            table.c.seq == numbered.c.if_version,
            ~table.c.deleted,
        )
        .with_for_update(key_share=True)
        .lateral("row")
    )
    matching = select(*numbered.c).select_from(numbered.join(row, true())).cte("matching")
    return _conditional(table, dataset_name, fence, numbered, _upsert(table, matching, None))
