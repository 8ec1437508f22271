"""Every table of an IDC's database, as SQLAlchemy metadata: the only description there is.

The system tables are made by Alembic, the table of a dataset by `rowstore.schema` from its policy. A row's version is
its `seq`: the position of the change that wrote it in its shard's one order of changes. Keys and RegionCodes compare
by bytes (collation "C"), so that key order is the same in every IDC, whatever its locale.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, TIMESTAMP

from policy.model import ColumnType, Dataset, KeyType
from rowstore.model import FenceMode

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

REGION_CODE_TYPE: Final = Text(collation="C")
TIME_TYPE: Final = TIMESTAMP(timezone=True)

system_metadata: Final = MetaData(
    naming_convention={"pk": "%(table_name)s_pkey", "ck": "%(table_name)s_%(constraint_name)s_check"}
)

shard_fences: Final = Table(
    "shard_fences",
    system_metadata,
    Column("region_code", REGION_CODE_TYPE, primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("mode", Text, nullable=False),
    Column("last_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("last_time", TIME_TYPE, nullable=False, server_default=text("'-infinity'")),
    # The highest attempt to move the shard that was heard of here; steps of a lower one change nothing.
    Column("attempt", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint(f"mode IN ({', '.join(repr(mode.value) for mode in FenceMode)})", name="mode"),
    # Each write updates its fence. Room in the page keeps the new version beside the old one, out of the index.
    postgresql_with={"fillfactor": 20, "autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 1000},
)
"""Whether this IDC may serve a shard, at which epoch, and how far its one order of changes has come (law L2)."""

write_requests: Final = Table(
    "write_requests",
    system_metadata,
    Column("region_code", REGION_CODE_TYPE, primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("request_id", Text(collation="C"), primary_key=True),
    Column("dataset", Text(collation="C"), primary_key=True),
    # 0, unless a retry has brought rows that the first attempt had not.
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("update_time", TIME_TYPE, nullable=False),
    Column("keys", ARRAY(Text), nullable=False),
    Column("seqs", ARRAY(BigInteger), nullable=False),
    # Forgetting goes by time, and the table grows in the order of time: a block range index costs a write nothing.
    Index("write_requests_update_time", "update_time", postgresql_using="brin"),
    # A move copies what has come since its last round. Partial, so that no other statement can be planned to go by it.
    Index(
        "write_requests_shard_time",
        "region_code",
        "shard",
        "update_time",
        postgresql_where=text("update_time > '-infinity'"),
    ),
)
"""What a retry must not do again, whoever has written since: the keys that a request wrote in a shard, and as what."""

row_departures: Final = Table(
    "row_departures",
    system_metadata,
    Column("region_code", REGION_CODE_TYPE, primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("dataset", Text(collation="C"), primary_key=True),
    Column("key", Text(collation="C"), primary_key=True),
    Column("move_id", Text(collation="C"), nullable=False),
    Column("to_region_code", REGION_CODE_TYPE, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("request_id", Text(collation="C"), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("asking_idcs", ARRAY(Text), nullable=False),
    Column("start_time", TIME_TYPE, nullable=False),
    CheckConstraint("state IN ('prepared', 'departed', 'void')", name="state"),
)
"""Rows that are leaving for another RegionCode, at their old home; see `rowstore.row_moves`."""

row_arrivals: Final = Table(
    "row_arrivals",
    system_metadata,
    Column("region_code", REGION_CODE_TYPE, primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("dataset", Text(collation="C"), primary_key=True),
    Column("key", Text(collation="C"), primary_key=True),
    Column("move_id", Text(collation="C"), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("from_region_code", REGION_CODE_TYPE, nullable=False),
    Column("request_id", Text(collation="C"), nullable=False),
    # Each value as PostgreSQL writes it: that loses nothing, and needs no second notion of the types.
    Column("columns", ARRAY(Text), nullable=False),
    Column("values", ARRAY(Text), nullable=False),
    Column("start_time", TIME_TYPE, nullable=False),
)
"""Rows that are expected from another RegionCode, at their new home, with their values; see `rowstore.row_moves`."""

shard_imports: Final = Table(
    "shard_imports",
    system_metadata,
    Column("region_code", REGION_CODE_TYPE, primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    # What the source had when the attempt began: up to there no key comes twice. Null until it is known.
    Column("first_pass_seq", BigInteger),
    Column("source_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("copied_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("copied_time", TIME_TYPE),
    Column("rows_copied", BigInteger, nullable=False, server_default=text("0")),
    Column("bytes_copied", BigInteger, nullable=False, server_default=text("0")),
    # Of the rows with a sequence that are here.
    Column("rows", BigInteger, nullable=False, server_default=text("0")),
    Column("digest", Text, nullable=False),
    # Set when everything of a closed source is here.
    Column("is_final", Boolean, nullable=False, server_default=text("false")),
    Column("last_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("last_time", TIME_TYPE),
)
"""How far the import of a shard has come; made once nothing of an earlier attempt is left here."""

shard_purges: Final = Table(
    "shard_purges",
    system_metadata,
    Column("region_code", REGION_CODE_TYPE, primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
)
"""The new owner was found to have the very rows that lay here, so a purge that was cut short may go on."""


SYSTEM_COLUMNS: Final = ("region_code", "key", "shard", "seq", "update_time", "deleted")
"""Columns of every dataset's table; no column of a policy may have such a name."""

_COLUMN_TYPES: Final[dict[ColumnType, TypeEngine[Any]]] = {
    ColumnType.STRING: Text(),
    ColumnType.INT64: BigInteger(),
    ColumnType.DOUBLE: DOUBLE_PRECISION(),
    ColumnType.BOOL: Boolean(),
    ColumnType.BYTES: LargeBinary(),
    ColumnType.TIMESTAMP: TIME_TYPE,
    ColumnType.DECIMAL: Numeric(),
    # json, not jsonb: the text comes back as it was written.
    ColumnType.JSON: JSON(),
}
_KEY_TYPES: Final[dict[KeyType, TypeEngine[Any]]] = {
    KeyType.STRING: Text(collation="C"),
    KeyType.INT64: BigInteger(),
}


def key_sql_type(key_type: KeyType) -> TypeEngine[Any]:
    """SQL type of a dataset's keys."""
    return _KEY_TYPES[key_type]


def column_sql_type(column_type: ColumnType) -> TypeEngine[Any]:
    """SQL type of a column; never NOT NULL, since columns come later than rows."""
    return _COLUMN_TYPES[column_type]


def table_name(dataset_name: str) -> str:
    """Name of a dataset's table; the prefix keeps datasets and system tables apart."""
    return f"rows_{dataset_name}"


def dataset_table(dataset: Dataset) -> Table:
    """The table of a dataset, the same object for the same columns."""
    return _dataset_table(
        dataset.name, dataset.key_type, tuple((column.name, column.type) for column in dataset.columns.values())
    )


@lru_cache(maxsize=1024)
def _dataset_table(name: str, key_type: KeyType, columns: tuple[tuple[str, ColumnType], ...]) -> Table:
    table = table_name(name)
    return Table(
        table,
        MetaData(naming_convention={"pk": "%(table_name)s_pkey"}),
        Column("region_code", REGION_CODE_TYPE, primary_key=True),
        Column("key", key_sql_type(key_type), primary_key=True, autoincrement=False),
        Column("shard", Integer, nullable=False),
        Column("seq", BigInteger, nullable=False),
        Column("update_time", TIME_TYPE, nullable=False),
        Column("deleted", Boolean, nullable=False),
        *(Column(column, column_sql_type(column_type)) for column, column_type in columns),
        # The order of a shard's changes: what is copied, scanned and counted goes by it. A statement must say `seq > 0`
        # to have it, which is always so: one that looks up keys does not, and so cannot be planned to go by it, as it
        # would be on an empty table, where all ways seem equally short.
        Index(f"{table}_shard_seq", "region_code", "shard", "seq", unique=True, postgresql_where=text("seq > 0")),
    )
