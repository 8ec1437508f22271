"""Pages as Arrow tables, without a Python object for each value.

PostgreSQL itself puts the values of a page's column one after the other, in the format of its wire protocol (big-endian
numbers, times in microseconds since 2000), and answers with one record of long byte strings, of which Arrow's buffers
are made by NumPy:

    int64, double, timestamp, bool    the values that are not null, and the sequences of the rows where it is null
    string, decimal, json             UTF-8, with a zero byte between two; 0xFF alone is null. Neither occurs in a text
    bytes                             the values, and their lengths; -1 is null

This is the only module that needs NumPy and pyarrow, the extra `arrow`; `regionjobs.scan` imports it when it must.
"""

# pyarrow tells no types.
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from sqlalchemy import LargeBinary, Text, cast, func, literal_column

from policy.model import ColumnType, KeyType
from regionjobs.rows import FIRST_TIME, LAST_TIME, Page, RowShape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from numpy.typing import NDArray
    from sqlalchemy import ColumnElement, FromClause

    from policy.model import Dataset

_TIME: Final = pa.timestamp("us", tz="UTC")
_EPOCH_2000: Final = 946_684_800_000_000
"""Microseconds from Arrow's epoch to PostgreSQL's."""

_NOTHING: Final = literal_column("''::bytea", LargeBinary)
_ZERO: Final = literal_column(r"'\x00'::bytea", LargeBinary)
_NULL: Final = literal_column(r"'\xff'::bytea", LargeBinary)


def _joined(value: ColumnElement[Any], between: ColumnElement[Any] = _NOTHING) -> Any:  # noqa: ANN401 (an aggregate)
    return func.string_agg(value, between)


def _null_seqs(rows: FromClause, name: str) -> ColumnElement[Any]:
    return _joined(func.int8send(rows.c.seq)).filter(rows.c[name].is_(None))


# ---- from one column's byte strings to an array ---------------------------------------------------------------------


def fixed_array(
    values: bytes | None, null_seqs: bytes | None, seqs: NDArray[np.int64], wire: str, kind: pa.DataType
) -> pa.Array:
    """Values of a fixed width.

    Args:
        values: Those that are not null; None when there are none.
        null_seqs: Sequences of the rows whose value is null; None when there are none.
        seqs: Sequences of all rows.
        wire: NumPy's word for a value as PostgreSQL sends it.
        kind: Arrow's type: of as many bytes, bool, or a timestamp.
    """
    array = np.frombuffer(values or b"", dtype=wire)
    array = array.astype(array.dtype.newbyteorder("="))
    if kind == _TIME:
        array = _since_1970(array)
    validity = None
    if null_seqs:
        is_valid = np.ones(len(seqs), dtype=bool)
        is_valid[np.searchsorted(seqs, np.frombuffer(null_seqs, dtype=">i8"))] = False
        spread = np.zeros(len(seqs), dtype=array.dtype)
        spread[is_valid] = array
        array, validity = spread, _bitmap(is_valid)
    data = _bitmap(array) if pa.types.is_boolean(kind) else pa.py_buffer(array)
    return pa.Array.from_buffers(kind, len(seqs), [validity, data])


def _since_1970(times: NDArray[Any]) -> NDArray[np.int64]:
    # Infinite times would overflow.
    return np.clip(times, FIRST_TIME, LAST_TIME) + _EPOCH_2000


def _bitmap(flags: NDArray[Any]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def text_array(joined: bytes | None, count: int) -> pa.Array:
    """Texts, joined by a zero byte; 0xFF alone is null."""
    if not count:
        return pa.array([], pa.string())
    data = (joined or b"") + b"\0"
    characters = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(characters == 0)
    offsets = np.zeros(count + 1, dtype=np.int64)
    # Where a text ends when the zero bytes before it are gone.
    offsets[1:] = ends - np.arange(count)
    validity = None
    data = data.replace(b"\0", b"")
    if b"\xff" in data:
        is_null = characters[offsets[:-1] + np.arange(count)] == 0xFF
        offsets[1:] -= np.cumsum(is_null)
        validity = _bitmap(~is_null)
        data = data.replace(b"\xff", b"")
    buffers = [validity, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), count, buffers)


def bytes_array(joined: bytes | None, lengths: bytes | None) -> pa.Array:
    """Byte strings, one after the other, and their lengths; -1 is null."""
    sizes = np.frombuffer(lengths or b"", dtype=">i4").astype(np.int32)
    offsets = np.zeros(len(sizes) + 1, dtype=np.int32)
    np.cumsum(np.maximum(sizes, 0), out=offsets[1:])
    validity = _bitmap(sizes >= 0) if (sizes < 0).any() else None
    return pa.Array.from_buffers(
        pa.binary(), len(sizes), [validity, pa.py_buffer(offsets), pa.py_buffer(joined or b"")]
    )


# ---- how each type of column is sent and read -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Codec:
    """How a column of one type comes from the database."""

    kind: pa.DataType
    send: Callable[[FromClause, str], Sequence[ColumnElement[Any]]]
    """The aggregates that make its byte strings."""
    read: Callable[[Iterator[bytes | None], NDArray[np.int64]], pa.Array]
    """Takes as many byte strings, and the sequences of the rows."""


def _fixed(kind: pa.DataType, wire: str, function: str) -> _Codec:
    send_function = getattr(func, function)
    return _Codec(
        kind,
        lambda rows, name: (_joined(send_function(rows.c[name])), _null_seqs(rows, name)),
        lambda parts, seqs: fixed_array(next(parts), next(parts), seqs, wire, kind),
    )


def _text(as_bytes: Callable[[ColumnElement[Any]], ColumnElement[Any]]) -> _Codec:
    return _Codec(
        pa.string(),
        lambda rows, name: (_joined(func.coalesce(as_bytes(rows.c[name]), _NULL), _ZERO),),
        lambda parts, seqs: text_array(next(parts), len(seqs)),
    )


def _send_bytes(rows: FromClause, name: str) -> Sequence[ColumnElement[Any]]:
    length = func.coalesce(func.octet_length(rows.c[name]), literal_column("-1"))
    return _joined(rows.c[name]), _joined(func.int4send(length))


_CODECS: Final[dict[ColumnType, _Codec]] = {
    ColumnType.STRING: _text(func.textsend),
    ColumnType.INT64: _fixed(pa.int64(), ">i8", "int8send"),
    ColumnType.DOUBLE: _fixed(pa.float64(), ">f8", "float8send"),
    ColumnType.BOOL: _fixed(pa.bool_(), "?", "boolsend"),
    ColumnType.BYTES: _Codec(pa.binary(), _send_bytes, lambda parts, _: bytes_array(next(parts), next(parts))),
    ColumnType.TIMESTAMP: _fixed(_TIME, ">i8", "timestamptz_send"),
    ColumnType.DECIMAL: _text(lambda value: func.textsend(cast(value, Text))),
    ColumnType.JSON: _text(func.json_send),
}
_KEYS: Final = {KeyType.STRING: ColumnType.STRING, KeyType.INT64: ColumnType.INT64}


class ArrowLayout:
    """How the pages of one dataset are asked for, and read."""

    def __init__(self, dataset: Dataset) -> None:
        key = _CODECS[_KEYS[dataset.key_type]]
        self._codecs = {"key": key, "update_time": _CODECS[ColumnType.TIMESTAMP]}
        self._codecs |= {column.name: _CODECS[column.type] for column in dataset.columns.values()}
        values = [pa.field(column.name, _CODECS[column.type].kind) for column in dataset.columns.values()]
        self.schema = pa.schema(
            [
                pa.field("region_code", pa.string(), nullable=False),
                pa.field("key", key.kind, nullable=False),
                pa.field("shard", pa.int32(), nullable=False),
                pa.field("seq", pa.int64(), nullable=False),
                pa.field("update_time", _TIME, nullable=False),
                pa.field("deleted", pa.bool_(), nullable=False),
                *values,
            ]
        )

    def aggregates(self, rows: FromClause) -> list[ColumnElement[Any]]:
        """What makes one record of ordered rows; `read` takes its values."""
        seq = func.int8send(rows.c.seq)
        parts = [_joined(seq), _joined(seq).filter(rows.c.deleted)]
        for name, codec in self._codecs.items():
            parts.extend(codec.send(rows, name))
        return [part.label(f"part{number}") for number, part in enumerate(parts)]

    def read(self, shape: RowShape, parts: Sequence[bytes | None]) -> pa.Table:
        """The table of a record's values."""
        following = iter(parts)
        seqs = np.frombuffer(next(following) or b"", dtype=">i8").astype(np.int64)
        count = len(seqs)
        is_deleted = np.zeros(count, dtype=bool)
        if deleted := next(following):
            is_deleted[np.searchsorted(seqs, np.frombuffer(deleted, dtype=">i8"))] = True
        key, update_time, *values = (codec.read(following, seqs) for codec in self._codecs.values())
        columns = [
            pa.repeat(pa.scalar(shape.region_code, pa.string()), count),
            key,
            pa.repeat(pa.scalar(shape.shard, pa.int32()), count),
            pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(seqs)]),
            update_time,
            pa.Array.from_buffers(pa.bool_(), count, [None, _bitmap(is_deleted)]),
            *values,
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def page(
        self,
        shape: RowShape,
        parts: Sequence[bytes | None],
        *,
        fence_seq: int,
        limit: int,
        with_deleted: bool,
    ) -> TablePage:
        """The page of a record's values."""
        table = self.read(shape, parts)
        looked_at = table.num_rows
        last_seq = table.column("seq")[looked_at - 1].as_py() if looked_at else 0
        if not with_deleted and parts[1]:
            table = table.filter(pa.array(~table.column("deleted").to_numpy()))
        is_full = looked_at >= limit
        return TablePage(shape, table, last_seq=last_seq, fence_seq=fence_seq, is_full=is_full)


class TablePage(Page):
    """A page of rows that came as columns.

    The table has `region_code`, `key`, `shard`, `seq`, `update_time`, `deleted`, and the columns of the dataset;
    decimal and json as strings.
    """

    def __init__(self, shape: RowShape, table: pa.Table, *, last_seq: int, fence_seq: int, is_full: bool) -> None:
        super().__init__(shape, count=table.num_rows, last_seq=last_seq, fence_seq=fence_seq, is_full=is_full)
        self._table = table

    @property
    def table(self) -> pa.Table:
        """The rows."""
        return self._table

    def seq_at(self, index: int) -> int:
        """Sequence of a row."""
        return self._table.column("seq")[index].as_py()

    def key_at(self, index: int) -> str | int:
        """Key of a row."""
        return self._table.column("key")[index].as_py()

    def time_at(self, index: int) -> datetime:
        """When a row was changed."""
        return self._table.column("update_time")[index].as_py().astimezone(UTC)

    def _cut(self, start: int, stop: int, last_seq: int, *, is_full: bool) -> TablePage:
        table = self._table.slice(start, stop - start)
        return TablePage(self._shape, table, last_seq=last_seq, fence_seq=self.fence_seq, is_full=is_full)
