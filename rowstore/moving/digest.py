"""Digests: what rows are, whatever their order, and whatever the order of their table's columns.

A row's text is its table's name and, in the order of the columns' names, `,name=value` for each value that is not
null; texts are quoted, so no two rows have the same. A column that was added meanwhile, and is null, changes nothing.
Sessions pin the settings that shape values (`rowstore.moving.connections`). The first 128 bits of the SHA-256 of each
row's text are joined by XOR, which is its own inverse: a digest is kept up to date by what comes and what goes.

SHA-256 is there in every PostgreSQL, also where the law of the place forbids MD5 (FIPS); it is documented, as
`hashtextextended` is not. A digest tells an accident, not an attack: whoever can write rows could make two sets of them
with the same XOR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rowstore.moving.connections import fetch_one
from rowstore.moving.layout import literal, quote
from rowstore.moving.model import ShardDigest

if TYPE_CHECKING:
    from datetime import datetime

    from asyncpg import BitString

    from rowstore.database import Connection
    from rowstore.moving.layout import Layouts
    from rowstore.moving.model import TableLayout

NOTHING: Final = ShardDigest(0, "0" * 32)
"""The digest of no rows."""

MAX_ROWS: Final = 100_000
"""Rows that one statement digests."""

BY_SEQ: Final = "seq > 0"
"""Always so; the index of a dataset's table demands that a statement says it."""
BY_TIME: Final = "update_time > '-infinity'"
"""The same for a table that travels by time."""

_PLAIN_TYPES: Final = frozenset(
    {"bigint", "integer", "boolean", "double precision", "numeric", "timestamp with time zone", "bytea"}
)
"""Types whose text has neither quotes nor commas in it."""


def digest_sql(layout: TableLayout) -> str:
    """Select list that gives the digest of a table's rows: their number, and 128 bits (null of no rows)."""
    types = sorted(zip(layout.columns, layout.types, strict=True))
    values = (
        f"{literal(f',{name}=')} || " + (f"{quote(name)}::text" if kind in _PLAIN_TYPES else _quoted(name))
        for name, kind in types
    )
    # Unlike ||, concat passes over what is null.
    row = f"concat({literal(layout.table)}, {', '.join(values)})"
    bits = f"('x' || encode(substr(sha256(convert_to({row}, 'UTF8')), 1, 16), 'hex'))::bit(128)"
    return f"count(*), bit_xor({bits})"


def _quoted(name: str) -> str:
    return f"quote_literal({quote(name)}::text)"


def make_digest(rows: int, bits: BitString | None) -> ShardDigest:
    """From what `digest_sql` gives."""
    return ShardDigest(rows, bits.bytes.hex() if bits is not None else NOTHING.digest)


def add(one: ShardDigest, other: ShardDigest) -> ShardDigest:
    """The digest of the rows of both."""
    return ShardDigest(one.rows + other.rows, _xor(one.digest, other.digest))


def subtract(one: ShardDigest, other: ShardDigest) -> ShardDigest:
    """The digest of the rows of `one` without those of `other`."""
    return ShardDigest(one.rows - other.rows, _xor(one.digest, other.digest))


def _xor(one: str, other: str) -> str:
    return f"{int(one, 16) ^ int(other, 16):032x}"


def in_shard(region_code: str, shard: int) -> str:
    """Condition for the rows of a shard."""
    return f"region_code = {literal(region_code)} AND shard = {int(shard)}"


def in_sequence(after: int, through: int) -> str:
    """Condition for a range of sequences."""
    return f"seq > {int(after)} AND seq <= {int(through)} AND {BY_SEQ}"


def in_time(after: datetime | None, through: datetime) -> str:
    """Condition for a range of times, both ends included."""
    lower = f"update_time >= {literal(after.isoformat())} AND " if after is not None else ""
    return f"{lower}update_time <= {literal(through.isoformat())} AND {BY_TIME}"


async def digest_where(connection: Connection, layout: TableLayout, condition: str) -> ShardDigest:
    """The digest of the rows of a table for which a condition holds: not many."""
    statement = f"SELECT {digest_sql(layout)} FROM {quote(layout.table)} WHERE {condition}"  # noqa: S608 (quoted)
    return make_digest(*await fetch_one(connection, statement))


async def digest_all(connection: Connection, layouts: Layouts, region_code: str, shard: int) -> ShardDigest:
    """The digest of a shard, read in bounded pieces; what travels by time is forgotten by time, and not in it."""
    total = NOTHING
    for layout in layouts.by_seq:
        total = add(total, await _digest_table(connection, layout, in_shard(region_code, shard)))
    return add(total, await digest_whole(connection, layouts, region_code, shard))


async def digest_whole(connection: Connection, layouts: Layouts, region_code: str, shard: int) -> ShardDigest:
    """The digest of a shard's rows in the tables that travel whole."""
    total = NOTHING
    for layout in layouts.whole:
        total = add(total, await digest_where(connection, layout, in_shard(region_code, shard)))
    return total


async def _digest_table(connection: Connection, layout: TableLayout, condition: str) -> ShardDigest:
    statement = f"""
        SELECT {digest_sql(layout)}, max(seq) FROM (
            SELECT * FROM {quote(layout.table)} WHERE {condition} AND seq > $1 AND {BY_SEQ}
            ORDER BY seq LIMIT {MAX_ROWS}
        ) AS piece
        """  # noqa: S608 (quoted)
    total, last_seq = NOTHING, 0
    while last_seq is not None:
        rows, bits, last_seq = await fetch_one(connection, statement, last_seq)
        total = add(total, make_digest(rows, bits))
    return total
