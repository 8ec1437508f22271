"""Proto values to Python and back, by the column types of the dataset's policy.

Nothing is guessed (law L8): a value whose kind is unset, or another kind than the column's type, is refused; null is
said, never implied. An error names the column and the rule that was broken, never the value (law L1). Each dataset gets
one table of setters and parsers, made when it is first seen, since this runs for every row of every call.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from gateway.limits import MAX_DECIMAL_DIGITS, MAX_JSON_DEPTH, MAX_KEY_BYTES, MAX_REQUEST_ID_LENGTH, MAX_ROW_BYTES
from policy.errors import InvalidValue, LimitReached, UnknownColumn
from policy.model import ColumnType, KeyType
from regiongate.v1 import types_pb2
from rowstore.model import StoredRow

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, MutableMapping

    from google.protobuf.timestamp_pb2 import Timestamp

    from policy.model import Dataset

    Setter = Callable[[types_pb2.Value, object], None]
    Parser = Callable[[types_pb2.Value, str], object]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_SECONDS: Final = int((datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - EPOCH).total_seconds())
_MIN_SECONDS: Final = int((datetime(1, 1, 1, tzinfo=UTC) - EPOCH).total_seconds())
_DECIMAL: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?", re.ASCII)
_ESCAPED_NUL_OR_SURROGATE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u(?:0000|[dD][89a-fA-F])")
_KEY_FIELDS: Final = {KeyType.STRING: "string_key", KeyType.INT64: "int64_key"}


# ---- rows -----------------------------------------------------------------------------------------------------------


def encode_row(row: StoredRow | types_pb2.Row, dataset: Dataset) -> types_pb2.Row:
    """The row as a message. A row that a peer has sent is a message already, and is passed on as it is."""
    if type(row) is not StoredRow:
        return row  # pyright: ignore[reportReturnType]: the other half of the union
    message = types_pb2.Row(region_code=row.region_code, version=row.version)
    if dataset.key_type is KeyType.STRING:
        message.key.string_key = row.key  # pyright: ignore[reportAttributeAccessIssue]: the key's type is the dataset's
    else:
        message.key.int64_key = row.key  # pyright: ignore[reportAttributeAccessIssue]: the key's type is the dataset's
    set_time(message.update_time, row.update_time)
    fill_cells(message.columns, row.values, dataset)
    return message


def set_time(message: Timestamp, time: datetime) -> None:
    """Puts a time into its message."""
    try:
        since = time - EPOCH
    except TypeError:  # the first instant and the last one: the driver gives its infinities for them, without a zone
        since = time.replace(tzinfo=UTC) - EPOCH
    message.seconds = since.days * 86400 + since.seconds
    message.nanos = since.microseconds * 1000


def read_time(time: Timestamp) -> datetime:
    """A commit time of a message."""
    return EPOCH + timedelta(seconds=time.seconds, microseconds=time.nanos // 1000)


def fill_cells(cells: MutableMapping[str, types_pb2.Value], values: Mapping[str, object], dataset: Dataset) -> None:
    """Puts a row's Python values into the `columns` of its message."""
    setters = _codec(dataset).setters
    for name, value in values.items():
        setters[name](cells[name], value)


def decode_row(message: types_pb2.Row, dataset: Dataset) -> StoredRow:
    """The row of a message as Python values; raises `InvalidValue` or `UnknownColumn` as for any input."""
    return StoredRow(
        region_code=message.region_code,
        key=decode_key(dataset, message.key),
        version=message.version,
        update_time=read_time(message.update_time),
        values=decode_values(dataset, message.columns),
    )


def decode_values(dataset: Dataset, cells: Mapping[str, types_pb2.Value]) -> dict[str, object]:
    """The columns of a put as Python values. Columns that are not named are not in the result.

    Raises `UnknownColumn`, `InvalidValue` (naming the column and the rule) or `LimitReached` (above 1 MiB).
    """
    parsers = _codec(dataset).parsers
    values: dict[str, object] = {}
    length = 0
    for name in cells:
        parse = parsers.get(name)
        if parse is None:
            raise unknown_column(dataset, name)
        value = values[name] = parse(cells[name], name)
        if value.__class__ is str or value.__class__ is bytes:
            length += len(value)  # pyright: ignore[reportArgumentType]: str or bytes
    # A character has at most four bytes: only a row that may be too large is measured exactly.
    if length > MAX_ROW_BYTES // 4 and _exact_size(values) > MAX_ROW_BYTES:
        raise LimitReached(f"the row is larger than {MAX_ROW_BYTES} bytes", limit="row_bytes")
    return values


def unknown_column(dataset: Dataset, name: str) -> UnknownColumn:
    """The error for a column that the dataset does not have; the name is cut short, for a caller chose it."""
    return UnknownColumn(f"dataset {dataset.name} has no column {name[:64]!r}", field_name="columns")


def check_columns(dataset: Dataset, names: Collection[str]) -> frozenset[str] | None:
    """The columns asked for; None (all) when none is named. Raises `UnknownColumn`."""
    if not names:
        return None
    for name in names:
        if name not in dataset.columns:
            raise unknown_column(dataset, name)
    return frozenset(names)


def _exact_size(values: Mapping[str, object]) -> int:
    texts = sum(len(value.encode()) for value in values.values() if isinstance(value, str))
    return texts + sum(len(value) for value in values.values() if isinstance(value, bytes))


# ---- keys and request ids -------------------------------------------------------------------------------------------


def decode_key(dataset: Dataset, key: types_pb2.Key) -> str | int:
    """The key of a request; raises `InvalidValue`."""
    if dataset.key_type is KeyType.INT64:
        if not key.HasField("int64_key"):
            raise _wrong_key(dataset, key)
        return key.int64_key
    if not key.HasField("string_key"):
        raise _wrong_key(dataset, key)
    text = key.string_key
    if not text:
        raise InvalidValue("the key is empty", field_name="key")
    if "\0" in text:
        raise InvalidValue("the key contains U+0000", field_name="key")
    # A character has at most four bytes in UTF-8: short keys need no encoding to be sure.
    if len(text) > MAX_KEY_BYTES // 4 and len(text.encode()) > MAX_KEY_BYTES:
        raise InvalidValue(f"the key is longer than {MAX_KEY_BYTES} bytes", field_name="key")
    return text


def _wrong_key(dataset: Dataset, key: types_pb2.Key) -> InvalidValue:
    kind = key.WhichOneof("kind")
    found = f"is {kind}" if kind else "is not set"
    wanted = _KEY_FIELDS[dataset.key_type]
    return InvalidValue(f"keys of dataset {dataset.name} are {wanted}, and this one {found}", field_name="key")


def set_key(message: types_pb2.Key, key: str | int) -> None:
    """Puts a key into its message."""
    if isinstance(key, str):
        message.string_key = key
    else:
        message.int64_key = key


def check_request_id(request_id: str) -> str:
    """The request id, which may be empty; raises `InvalidValue`."""
    if len(request_id) > MAX_REQUEST_ID_LENGTH or not (request_id.isascii() and request_id.isprintable()):
        raise InvalidValue(
            f"a request_id has 1 to {MAX_REQUEST_ID_LENGTH} characters of printable ASCII", field_name="request_id"
        )
    return request_id


# ---- Python to proto: one setter for each type ----------------------------------------------------------------------


def _string_setter(cell: types_pb2.Value, value: object) -> None:
    if value is None:
        cell.null_value = types_pb2.NULL_VALUE_NULL
    else:
        cell.string_value = value  # pyright: ignore[reportAttributeAccessIssue]: the column's type


def _int64_setter(cell: types_pb2.Value, value: object) -> None:
    if value is None:
        cell.null_value = types_pb2.NULL_VALUE_NULL
    else:
        cell.int64_value = value  # pyright: ignore[reportAttributeAccessIssue]: the column's type


def _double_setter(cell: types_pb2.Value, value: object) -> None:
    if value is None:
        cell.null_value = types_pb2.NULL_VALUE_NULL
    else:
        cell.double_value = value  # pyright: ignore[reportAttributeAccessIssue]: the column's type


def _bool_setter(cell: types_pb2.Value, value: object) -> None:
    if value is None:
        cell.null_value = types_pb2.NULL_VALUE_NULL
    else:
        cell.bool_value = value  # pyright: ignore[reportAttributeAccessIssue]: the column's type


def _bytes_setter(cell: types_pb2.Value, value: object) -> None:
    if value is None:
        cell.null_value = types_pb2.NULL_VALUE_NULL
    else:
        cell.bytes_value = value  # pyright: ignore[reportAttributeAccessIssue]: the column's type


def _timestamp_setter(cell: types_pb2.Value, value: object) -> None:
    if value is None:
        cell.null_value = types_pb2.NULL_VALUE_NULL
        return
    time = cell.timestamp_value
    time.SetInParent()  # the epoch itself has no field that differs from its default
    set_time(time, value)  # pyright: ignore[reportArgumentType]: the column's type


def _decimal_setter(cell: types_pb2.Value, value: object) -> None:
    if value is None:
        cell.null_value = types_pb2.NULL_VALUE_NULL
    else:
        cell.decimal_value = format(value, "f")


def _json_setter(cell: types_pb2.Value, value: object) -> None:
    if value is None:
        cell.null_value = types_pb2.NULL_VALUE_NULL
    else:
        cell.json_value = value  # pyright: ignore[reportAttributeAccessIssue]: the column's type


# ---- proto to Python: one parser for each type ----------------------------------------------------------------------


def _null_or_wrong(cell: types_pb2.Value, name: str, wanted: str) -> None:
    """Returns when the cell says null; raises `InvalidValue` otherwise."""
    kind = cell.WhichOneof("kind")
    if kind == "null_value" and cell.null_value == types_pb2.NULL_VALUE_NULL:
        return
    if kind is None:
        raise _invalid(name, f"no kind of value is set: say {wanted} or NULL_VALUE_NULL")
    if kind == "null_value":
        raise _invalid(name, "null is said by NULL_VALUE_NULL")
    raise _invalid(name, f"the value must be {wanted} and is {kind}")


def _invalid(name: str, rule: str) -> InvalidValue:
    return InvalidValue(f"column {name}: {rule}", field_name=f"columns.{name}")


def _parse_string(cell: types_pb2.Value, name: str) -> object:
    if not cell.HasField("string_value"):
        return _null_or_wrong(cell, name, "string_value")
    value = cell.string_value
    if "\0" in value:
        raise _invalid(name, "a string may not contain U+0000")
    return value


def _parse_int64(cell: types_pb2.Value, name: str) -> object:
    return cell.int64_value if cell.HasField("int64_value") else _null_or_wrong(cell, name, "int64_value")


def _parse_double(cell: types_pb2.Value, name: str) -> object:
    return cell.double_value if cell.HasField("double_value") else _null_or_wrong(cell, name, "double_value")


def _parse_bool(cell: types_pb2.Value, name: str) -> object:
    return cell.bool_value if cell.HasField("bool_value") else _null_or_wrong(cell, name, "bool_value")


def _parse_bytes(cell: types_pb2.Value, name: str) -> object:
    return cell.bytes_value if cell.HasField("bytes_value") else _null_or_wrong(cell, name, "bytes_value")


def _parse_timestamp(cell: types_pb2.Value, name: str) -> object:
    if not cell.HasField("timestamp_value"):
        return _null_or_wrong(cell, name, "timestamp_value")
    seconds, nanos = cell.timestamp_value.seconds, cell.timestamp_value.nanos
    if not _MIN_SECONDS <= seconds <= _MAX_SECONDS or not 0 <= nanos < 1_000_000_000:
        raise _invalid(name, "a timestamp lies in the years 1 to 9999, its nanos in 0 to 999,999,999")
    if nanos % 1000:
        raise _invalid(name, "a timestamp has microseconds; finer digits cannot be stored")
    return EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)


def _parse_decimal(cell: types_pb2.Value, name: str) -> object:
    if not cell.HasField("decimal_value"):
        return _null_or_wrong(cell, name, "decimal_value")
    text = cell.decimal_value
    if len(text) > MAX_DECIMAL_DIGITS + 2 or not _DECIMAL.fullmatch(text):
        raise _invalid(name, f"a decimal is a plain number such as -12.50 of at most {MAX_DECIMAL_DIGITS} digits")
    value = Decimal(text)
    return value or abs(value)  # there is no negative zero in the store


def _parse_json(cell: types_pb2.Value, name: str) -> object:
    if not cell.HasField("json_value"):
        return _null_or_wrong(cell, name, "json_value")
    text = cell.json_value
    check_json(text, name)
    return text


def check_json(text: str, name: str) -> None:
    """Raises `InvalidValue` unless the text is one JSON value (RFC 8259) that every JSON reader can hold."""
    try:
        # Numbers are left as they are written: only their grammar matters here.
        json.loads(text, parse_constant=_refuse_constant, parse_float=_ignore, parse_int=_ignore)
    except (ValueError, RecursionError):
        raise _invalid(name, "the text is not JSON (RFC 8259)") from None
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH < _depth(text):
        raise _invalid(name, f"the JSON is nested deeper than {MAX_JSON_DEPTH}")
    if "\\u" in text and _ESCAPED_NUL_OR_SURROGATE.search(text) and not _has_only_text(text):
        raise _invalid(name, "a JSON string may not contain U+0000 or half of a surrogate pair")


def _refuse_constant(_: str) -> None:
    raise ValueError


def _ignore(_: str) -> int:
    return 0


def _depth(text: str) -> int:
    depth = deepest = 0
    for mark in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest


def _has_only_text(text: str) -> bool:
    """Whether every string of valid JSON is Unicode text without U+0000."""
    try:
        for literal in re.findall(r'"(?:[^"\\]|\\.)*"', text):
            value = str(json.loads(literal))
            value.encode()
            if "\0" in value:
                return False
    except UnicodeEncodeError:
        return False
    return True


# ---- tables ---------------------------------------------------------------------------------------------------------

SETTERS: Final[Mapping[ColumnType, Setter]] = {
    ColumnType.STRING: _string_setter,
    ColumnType.INT64: _int64_setter,
    ColumnType.DOUBLE: _double_setter,
    ColumnType.BOOL: _bool_setter,
    ColumnType.BYTES: _bytes_setter,
    ColumnType.TIMESTAMP: _timestamp_setter,
    ColumnType.DECIMAL: _decimal_setter,
    ColumnType.JSON: _json_setter,
}
"""Puts a value of the store into a cell, by column type."""

PARSERS: Final[Mapping[ColumnType, Parser]] = {
    ColumnType.STRING: _parse_string,
    ColumnType.INT64: _parse_int64,
    ColumnType.DOUBLE: _parse_double,
    ColumnType.BOOL: _parse_bool,
    ColumnType.BYTES: _parse_bytes,
    ColumnType.TIMESTAMP: _parse_timestamp,
    ColumnType.DECIMAL: _parse_decimal,
    ColumnType.JSON: _parse_json,
}
"""Reads a cell as a value for the store, by column type; raises `InvalidValue` naming the column."""


class _Codec:
    """The setters and parsers of one dataset."""

    __slots__ = ("dataset", "parsers", "setters")

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.setters = {name: SETTERS[column.type] for name, column in dataset.columns.items()}
        self.parsers = {name: PARSERS[column.type] for name, column in dataset.columns.items()}


_codecs: dict[str, _Codec] = {}


def _codec(dataset: Dataset) -> _Codec:
    # One for each dataset's name: a policy names the datasets, so this cannot grow by what callers send.
    codec = _codecs.get(dataset.name)
    if codec is None or codec.dataset is not dataset:
        codec = _codecs[dataset.name] = _Codec(dataset)
    return codec
