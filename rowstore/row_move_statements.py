"""The statements that take one row from its old RegionCode to its new one, each a transaction of its own.

They follow `rowstore.write_statements`: the fence is locked first and judged as it is after the wait, then whatever
decides is locked and judged as it is, by its primary key; nothing decides by what is merely selected. Each statement is
a chain of which every link hangs on the one before, so it does all that it says or nothing.

A reservation is a tombstone whose time is infinite. Nobody reads it; a write that must not meet a row tells it by that
from a tombstone that a deletion has left (`write_statements.insert_absent`).

Every statement begins with the arguments region_code, shard, epoch, key, dataset.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect

from rowstore.compiling import value_names

if TYPE_CHECKING:
    from sqlalchemy import Table

_DIALECT: Final = asyncpg_dialect()

_HELD: Final = """held AS (
    SELECT f.last_time FROM shard_fences AS f
    WHERE f.region_code = $1::text AND f.shard = $2::int AND f.epoch = $3::bigint AND f.mode = 'serving'
    FOR NO KEY UPDATE
)"""
"""The fence, if it lets a write pass."""

DEPARTURE: Final = "move_id, to_region_code, version, state, request_id, purpose, asking_idcs"
"""What a departure says besides whose it is."""


def _fence(source: str) -> str:
    """Takes a sequence when `source` has a row."""
    return f"""fence AS (
    UPDATE shard_fences AS f
    SET last_seq = f.last_seq + 1, last_time = greatest(f.last_time, clock_timestamp())
    FROM {source} WHERE f.region_code = $1::text AND f.shard = $2::int
    RETURNING f.last_seq, f.last_time
)"""  # noqa: S608 (names of this module)


class _Names:
    """A dataset's table as the statements spell it."""

    def __init__(self, table: Table) -> None:
        quote = _DIALECT.identifier_preparer.quote
        self.table = quote(table.name)
        key_type = _type(table, "key")
        self.key = f"$4::{key_type}"
        self.columns = [(quote(name), _type(table, name)) for name in value_names(table)]
        self.names = value_names(table)

    @property
    def moving(self) -> str:
        """Says which departure or arrival is the row's."""
        return f"region_code = $1::text AND shard = $2::int AND dataset = $5::text AND key = ({self.key})::text"

    def listed(self, prefix: str = "") -> str:
        """The columns, each after a comma."""
        return "".join(f", {prefix}{column}" for column, _ in self.columns)

    def emptied(self) -> str:
        """Assignments that leave nothing in the columns."""
        return "".join(f", {column} = NULL" for column, _ in self.columns)


def _type(table: Table, name: str) -> str:
    return table.columns[name].type.compile(_DIALECT).partition(" COLLATE ")[0].lower()


# ---- the old home ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def prepare(table: Table) -> str:
    """More arguments: if_version (or null), move_id, to_region_code, request_id, purpose, asking_idcs.

    No record: the fence refuses. `seq` null: no live row, or not at that version. `move_id` null: it departs already.
    """
    names = _Names(table)
    return f"""WITH {_HELD}, found AS (
    SELECT r.* FROM held CROSS JOIN LATERAL (
        SELECT seq, update_time{names.listed()} FROM {names.table}
        WHERE region_code = $1::text AND key = {names.key} AND NOT deleted
            AND ($6::bigint IS NULL OR seq = $6::bigint)
        FOR NO KEY UPDATE
    ) AS r
), prepared AS (
    INSERT INTO row_departures (region_code, shard, dataset, key, {DEPARTURE}, start_time)
    SELECT $1::text, $2::int, $5::text, ({names.key})::text, $7::text, $8::text, seq, 'prepared', $9::text,
        $10::text, $11::text[], clock_timestamp()
    FROM found ON CONFLICT (region_code, shard, dataset, key) DO NOTHING RETURNING move_id
)
SELECT prepared.move_id, found.seq, found.update_time{names.listed("found.")}
FROM held LEFT JOIN found ON true LEFT JOIN prepared ON true"""  # noqa: S608 (quoted names)


@lru_cache(maxsize=1024)
def depart(table: Table) -> str:
    """One more argument: move_id. `departed` is null unless this very statement has let the row go.

    No record: the fence refuses. The instant at which this commits is the one at which the row moves.
    """
    names = _Names(table)
    return f"""WITH {_HELD}, departing AS (
    SELECT d.version FROM held CROSS JOIN LATERAL (
        SELECT version FROM row_departures WHERE {names.moving} AND move_id = $6::text AND state = 'prepared' FOR UPDATE
    ) AS d
), leaving AS (
    SELECT r.key FROM departing CROSS JOIN LATERAL (
        SELECT key FROM {names.table}
        WHERE region_code = $1::text AND key = {names.key} AND seq = departing.version AND NOT deleted
        FOR NO KEY UPDATE
    ) AS r
), {_fence("leaving")}, written AS (
    UPDATE {names.table} AS r
    SET seq = fence.last_seq, update_time = fence.last_time, deleted = true{names.emptied()}
    FROM fence WHERE r.region_code = $1::text AND r.key = {names.key} RETURNING r.seq
), departed AS (
    UPDATE row_departures AS d SET state = 'departed' FROM written
    WHERE {_qualified(names.moving)} RETURNING true AS departed
)
SELECT departed.departed FROM held LEFT JOIN departed ON true"""  # noqa: S608 (quoted names)


def _qualified(condition: str) -> str:
    return condition.replace("region_code =", "d.region_code =").replace(" key =", " d.key =")


@lru_cache(maxsize=1024)
def void(table: Table) -> str:
    """One more argument: move_id. A prepared departure will not happen; `state` is what it says now, null without one.

    No record: the fence refuses.
    """
    names = _Names(table)
    return f"""WITH {_HELD}, found AS (
    SELECT d.state FROM held CROSS JOIN LATERAL (
        SELECT state FROM row_departures WHERE {names.moving} AND move_id = $6::text FOR UPDATE
    ) AS d
), voided AS (
    UPDATE row_departures AS d SET state = 'void' FROM found
    WHERE {_qualified(names.moving)} AND d.move_id = $6::text AND found.state = 'prepared' RETURNING d.state
)
SELECT coalesce(voided.state, found.state) AS state
FROM held LEFT JOIN found ON true LEFT JOIN voided ON true"""  # noqa: S608 (quoted names)


@lru_cache(maxsize=1024)
def forget(table: Table) -> str:
    """One more argument: move_id. Deletes a departure that is over; a prepared one stays."""
    names = _Names(table)
    return f"""WITH {_HELD}
DELETE FROM row_departures AS d USING held
WHERE {_qualified(names.moving)} AND d.move_id = $6::text AND d.state <> 'prepared'
RETURNING d.state"""  # noqa: S608 (quoted names)


@lru_cache(maxsize=1024)
def look(table: Table) -> str:
    """No more arguments, and the epoch counts for nothing. `mode`, `epoch`, the live row's `seq`, and the departure.

    No record: there is no fence.
    """
    names = _Names(table)
    departure = ", ".join(f"d.{name}" for name in DEPARTURE.split(", "))
    return f"""SELECT f.mode, f.epoch, r.seq, {departure}
FROM shard_fences AS f
LEFT JOIN LATERAL (
    SELECT seq FROM {names.table} WHERE region_code = $1::text AND key = {names.key} AND NOT deleted LIMIT 1
) AS r ON true
LEFT JOIN LATERAL (SELECT {DEPARTURE} FROM row_departures WHERE {names.moving} LIMIT 1) AS d ON true
WHERE f.region_code = $1::text AND f.shard = $2::int AND $3::bigint IS NOT NULL"""  # noqa: S608 (quoted names)


OVERDUE_DEPARTURES: Final = f"""
SELECT d.region_code, d.shard, f.epoch, d.dataset, d.key, {DEPARTURE}
FROM row_departures AS d JOIN shard_fences AS f ON f.region_code = d.region_code AND f.shard = d.shard
WHERE f.mode = 'serving' AND d.start_time < clock_timestamp() - $1::interval
ORDER BY d.start_time LIMIT $2
"""  # noqa: S608 (constants)
"""Departures that nobody seems to attend to, oldest first."""

# ---- the new home ---------------------------------------------------------------------------------------------------


def _done(names: _Names, request_id: str) -> str:
    """The first result of the request, as a lateral table of at most one row."""
    return f"""(
        SELECT max(w.seqs[array_position(w.keys, ({names.key})::text)]) AS seq,
            max(w.update_time) FILTER (WHERE array_position(w.keys, ({names.key})::text) IS NOT NULL) AS time
        FROM write_requests AS w
        WHERE w.region_code = $1::text AND w.shard = $2::int AND w.request_id = {request_id} AND w.dataset = $5::text
    )"""  # noqa: S608 (quoted names)


@lru_cache(maxsize=1024)
def arrive(table: Table) -> str:
    """More arguments: move_id, from_region_code, request_id, then the columns.

    A record when a reservation was written. The primary key of the arrivals undoes all of it, should another arrival
    be there.
    """
    names = _Names(table)
    numbered = [f"(${place}::{kind})::text" for place, (_, kind) in enumerate(names.columns, 9)]
    quoted = [f"'{name}'" for name in names.names]
    return f"""WITH {_HELD}, vacant AS (
    SELECT true FROM held CROSS JOIN LATERAL {_done(names, "$8::text")} AS done WHERE done.seq IS NULL
), {_fence("vacant")}, reserved AS (
    INSERT INTO {names.table} AS r (region_code, key, shard, seq, update_time, deleted{names.listed()})
    SELECT $1::text, {names.key}, $2::int, last_seq, 'infinity', true{", NULL" * len(names.columns)} FROM fence
    ON CONFLICT (region_code, key) DO UPDATE
    SET shard = excluded.shard, seq = excluded.seq, update_time = excluded.update_time, deleted = true{names.emptied()}
    WHERE r.deleted AND isfinite(r.update_time)
    RETURNING r.seq
), arrived AS (
    INSERT INTO row_arrivals (
        region_code, shard, dataset, key, move_id, seq, from_region_code, request_id, columns, "values", start_time
    )
    SELECT $1::text, $2::int, $5::text, ({names.key})::text, $6::text, seq, $7::text, $8::text,
        ARRAY[{", ".join(quoted)}]::text[], ARRAY[{", ".join(numbered)}]::text[], clock_timestamp()
    FROM reserved RETURNING seq
)
SELECT seq FROM arrived"""  # noqa: S608 (quoted names)


def _arriving(names: _Names) -> str:
    return f"""arriving AS (
    SELECT a.* FROM held CROSS JOIN LATERAL (
        SELECT seq, request_id, columns, "values" FROM row_arrivals WHERE {names.moving} AND move_id = $6::text
        FOR UPDATE
    ) AS a
), reserved AS (
    SELECT a.* FROM arriving AS a CROSS JOIN LATERAL (
        SELECT key FROM {names.table}
        WHERE region_code = $1::text AND key = {names.key} AND seq = a.seq AND deleted
        FOR NO KEY UPDATE
    ) AS r
)"""  # noqa: S608 (quoted names)


def _left(names: _Names) -> str:
    return f"""forgotten AS (
    DELETE FROM row_arrivals AS d USING arriving WHERE {_qualified(names.moving)} AND d.move_id = $6::text
    RETURNING true AS forgotten
)"""  # noqa: S608 (quoted names)


@lru_cache(maxsize=1024)
def settle(table: Table) -> str:
    """One more argument: move_id. The row is live, unless somebody has written there since its reservation.

    No record: the fence refuses. `last_seq` null: there is no such arrival.
    """
    names = _Names(table)
    values = "".join(
        f", {column} = (reserved.\"values\"[array_position(reserved.columns, '{name}')])::{kind}"
        for name, (column, kind) in zip(names.names, names.columns, strict=True)
    )
    return f"""WITH {_HELD}, {_arriving(names)}, {_fence("arriving")}, written AS (
    UPDATE {names.table} AS r
    SET seq = fence.last_seq, update_time = fence.last_time, deleted = false{values}
    FROM fence, reserved WHERE r.region_code = $1::text AND r.key = {names.key} RETURNING r.seq
), remembered AS (
    INSERT INTO write_requests (region_code, shard, request_id, dataset, part, update_time, keys, seqs)
    SELECT $1::text, $2::int, a.request_id, $5::text, coalesce((
        SELECT max(w.part) + 1 FROM write_requests AS w
        WHERE w.region_code = $1::text AND w.shard = $2::int AND w.request_id = a.request_id AND w.dataset = $5::text
    ), 0), fence.last_time, ARRAY[({names.key})::text], ARRAY[fence.last_seq]
    FROM arriving AS a, fence WHERE a.request_id <> ''
    ON CONFLICT DO NOTHING
), {_left(names)}
SELECT fence.last_seq, fence.last_time
FROM held LEFT JOIN fence ON true LEFT JOIN forgotten ON true"""  # noqa: S608 (quoted names)


@lru_cache(maxsize=1024)
def cancel(table: Table) -> str:
    """One more argument: move_id. The reservation becomes an ordinary tombstone, the arrival is forgotten.

    No record: the fence refuses. A new sequence, since what copies the shard must see the change.
    """
    names = _Names(table)
    return f"""WITH {_HELD}, {_arriving(names)}, {_fence("reserved")}, written AS (
    UPDATE {names.table} AS r SET seq = fence.last_seq, update_time = fence.last_time
    FROM fence WHERE r.region_code = $1::text AND r.key = {names.key} RETURNING r.seq
), {_left(names)}
SELECT forgotten.forgotten FROM held LEFT JOIN forgotten ON true"""  # noqa: S608 (quoted names)


@lru_cache(maxsize=1024)
def find(table: Table) -> str:
    """One more argument: request_id. What is here of a row: the fence, a live row, an arrival, a first result.

    `mode`, `epoch`, `live_seq`, `move_id` and `arriving_request` of the arrival, `done_seq`, `done_time`.
    """
    names = _Names(table)
    return f"""SELECT f.mode, f.epoch, r.seq AS live_seq, a.move_id, a.request_id AS arriving_request,
    done.seq AS done_seq, done.time AS done_time
FROM shard_fences AS f
LEFT JOIN LATERAL (
    SELECT seq FROM {names.table} WHERE region_code = $1::text AND key = {names.key} AND NOT deleted LIMIT 1
) AS r ON true
LEFT JOIN LATERAL (SELECT move_id, request_id FROM row_arrivals WHERE {names.moving} LIMIT 1) AS a ON true
LEFT JOIN LATERAL {_done(names, "$6::text")} AS done ON true
WHERE f.region_code = $1::text AND f.shard = $2::int AND $3::bigint IS NOT NULL"""  # noqa: S608 (quoted names)


OVERDUE_ARRIVALS: Final = """
SELECT a.region_code, a.shard, f.epoch, a.dataset, a.key, a.move_id, a.from_region_code, a.request_id
FROM row_arrivals AS a JOIN shard_fences AS f ON f.region_code = a.region_code AND f.shard = a.shard
WHERE f.mode = 'serving' AND a.start_time < clock_timestamp() - $1::interval
ORDER BY a.start_time LIMIT $2
"""
"""Arrivals that have not been settled or cancelled for long, oldest first."""
