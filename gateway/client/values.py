"""Python values to the proto's typed values and back.

A dataset's column types, as the gateway tells them, say what a Python value becomes, so that `3` fits a double and a
list fits json. A column that the client has not heard of yet is sent by its Python type: the gateway has the last
word. What does not fit is refused here with the column's name and type, never with the value (law L1).
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

from gateway.client.model import Decision, Receipt, Row
from policy.errors import InvalidValue
from regiongate.v1 import types_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from google.protobuf.timestamp_pb2 import Timestamp

    from regiongate.v1 import row_service_pb2

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_MAX_DECIMAL_DIGITS: Final = 1000
"""As the gateway has it; a larger number would be written out as that many zeros."""
_MAX_DECISIONS: Final = 1024


def set_key(message: types_pb2.Key, key: str | int) -> None:
    """Puts a key into its message; raises `InvalidValue` when it is neither text nor an int64."""
    if isinstance(key, str):
        try:
            message.string_key = key
        except UnicodeEncodeError:
            # From None: the original error carries the key (law L1).
            raise InvalidValue("the key is not valid Unicode", field_name="key") from None
    elif isinstance(key, int) and not isinstance(key, bool) and _INT64_MIN <= key <= _INT64_MAX:
        message.int64_key = key
    else:
        raise InvalidValue("a key is a str or an int of 64 bits", field_name="key")


def decode_key(key: types_pb2.Key) -> str | int:
    """The key as Python has it."""
    return key.string_key if key.WhichOneof("kind") == "string_key" else key.int64_key


def set_columns(
    cells: MutableMapping[str, types_pb2.Value], values: Mapping[str, Any], types: Mapping[str, str]
) -> None:
    """Puts the columns of one row into its message.

    Args:
        cells: The message's map.
        values: Column -> value; None is null.
        types: Column -> type, as far as the client knows.

    Raises:
        InvalidValue: A value does not fit its column.
    """
    for name, value in values.items():
        cell = cells[name]
        if value is None:
            cell.null_value = types_pb2.NULL_VALUE_NULL
            continue
        kind = types.get(name) or _guess(name, value)
        put = _SETTERS.get(kind)
        try:
            has_put = put is not None and put(cell, value)
        except (TypeError, ValueError, OverflowError, RecursionError):
            has_put = False
        if not has_put:
            # Outside of the except: the original error may carry the value (law L1).
            raise InvalidValue(f"column {name} takes {_TAKES.get(kind, kind)}", field_name=f"columns.{name}")


def _guess(name: str, value: object) -> str:
    for kind, types in _BY_PYTHON_TYPE:
        if isinstance(value, types):
            return kind
    raise InvalidValue(f"column {name}: {type(value).__name__} is no type of a column", field_name=name)


def _set_string(cell: types_pb2.Value, value: Any) -> bool:  # noqa: ANN401 (any value: it is judged here)
    if not isinstance(value, str):
        return False
    cell.string_value = value
    return True


def _set_int64(cell: types_pb2.Value, value: Any) -> bool:  # noqa: ANN401
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    cell.int64_value = value
    return True


def _set_double(cell: types_pb2.Value, value: Any) -> bool:  # noqa: ANN401
    if isinstance(value, float):
        cell.double_value = value
        return True
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    cell.double_value = float(value)
    return int(cell.double_value) == value


def _set_bool(cell: types_pb2.Value, value: Any) -> bool:  # noqa: ANN401
    if not isinstance(value, bool):
        return False
    cell.bool_value = value
    return True


def _set_bytes(cell: types_pb2.Value, value: Any) -> bool:  # noqa: ANN401
    if not isinstance(value, (bytes, bytearray, memoryview)):
        return False
    cell.bytes_value = bytes(value)
    return True


def _set_timestamp(cell: types_pb2.Value, value: Any) -> bool:  # noqa: ANN401
    if not isinstance(value, datetime) or value.tzinfo is None:
        return False
    since = value - _EPOCH
    time = cell.timestamp_value
    time.SetInParent()  # 1970 itself has no field that differs from its default
    time.seconds = since.days * 86400 + since.seconds
    time.nanos = since.microseconds * 1000
    return True


def _set_decimal(cell: types_pb2.Value, value: Any) -> bool:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        return False
    number = Decimal(value)
    if not number.is_finite() or abs(number.adjusted()) > _MAX_DECIMAL_DIGITS:
        return False
    cell.decimal_value = format(number, "f")
    return True


def _set_json(cell: types_pb2.Value, value: Any) -> bool:  # noqa: ANN401
    cell.json_value = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return True


_SETTERS: Final[Mapping[str, Callable[[types_pb2.Value, Any], bool]]] = {
    "string": _set_string,
    "int64": _set_int64,
    "double": _set_double,
    "bool": _set_bool,
    "bytes": _set_bytes,
    "timestamp": _set_timestamp,
    "decimal": _set_decimal,
    "json": _set_json,
}
"""Puts a value into a cell, by column type; False when it does not fit."""

_TAKES: Final = {
    "string": "a str of valid Unicode",
    "int64": "an int of 64 bits",
    "double": "a float, or an int that a float holds exactly",
    "bool": "a bool",
    "bytes": "bytes",
    "timestamp": "a datetime with a time zone",
    "decimal": "a finite Decimal or an int",
    "json": "what json.dumps takes, without NaN and infinities",
}

_BY_PYTHON_TYPE: Final[tuple[tuple[str, type | tuple[type, ...]], ...]] = (
    ("string", str),
    ("bool", bool),
    ("int64", int),
    ("double", float),
    ("bytes", (bytes, bytearray, memoryview)),
    ("timestamp", datetime),
    ("decimal", Decimal),
    ("json", (dict, list, tuple)),
)
"""In this order: a bool is an int, too."""


def read_time(time: Timestamp) -> datetime:
    """A proto timestamp as an aware datetime."""
    return _EPOCH + timedelta(0, time.seconds, time.nanos // 1000)


def _decode_timestamp(value: types_pb2.Value) -> datetime:
    return read_time(value.timestamp_value)


_DECODERS: Final[Mapping[str, Callable[[types_pb2.Value], object]]] = {
    "null_value": lambda _: None,
    "string_value": lambda value: value.string_value,
    "int64_value": lambda value: value.int64_value,
    "double_value": lambda value: value.double_value,
    "bool_value": lambda value: value.bool_value,
    "bytes_value": lambda value: value.bytes_value,
    "timestamp_value": _decode_timestamp,
    "decimal_value": lambda value: Decimal(value.decimal_value),
    "json_value": lambda value: json.loads(value.json_value),
}

_decisions: dict[bytes, Decision] = {}
"""Few different ones travel with very many rows."""


def decode_decision(decision: types_pb2.Decision) -> Decision:
    """The decision; equal ones are one object."""
    wire = decision.SerializeToString()
    known = _decisions.get(wire)
    if known is not None:
        return known
    if len(_decisions) >= _MAX_DECISIONS:
        _decisions.clear()
    made = _decisions[wire] = Decision(
        decision.rule,
        decision.policy_revision,
        decision.asking_jurisdiction,
        decision.owner_idc,
        tuple(decision.withheld),
    )
    return made


def decode_row(row: types_pb2.Row, decision: Decision) -> Row:
    """A row with the decision that let it through."""
    values: dict[str, Any] = {}
    for name, value in row.columns.items():
        kind = value.WhichOneof("kind")
        values[name] = _DECODERS[kind](value) if kind else None
    return Row(row.region_code, decode_key(row.key), values, row.version, read_time(row.update_time), decision)


def decode_receipt(receipt: row_service_pb2.WriteReceipt, decision: Decision) -> Receipt:
    """A receipt with the decision that let the write through."""
    return Receipt(receipt.version, read_time(receipt.update_time), decision)


def from_text(kind: str, value: Any) -> Any:  # noqa: ANN401 (whatever JSON holds)
    """Reads a value that came as JSON, for columns whose type JSON lacks: base64, RFC 3339 times, decimals as strings.

    Raises:
        ValueError: The text is not one of that type.
    """
    if isinstance(value, str):
        match kind:
            case "bytes":
                return b64decode(value, validate=True)
            case "timestamp":
                return datetime.fromisoformat(value)
            case "decimal":
                try:
                    return Decimal(value)
                except InvalidOperation:
                    raise ValueError("not a decimal number") from None
            case _:
                return value
    return value


def to_text(value: object) -> object:
    """The reverse of `from_text`: the value as JSON can hold it."""
    match value:
        case bytes():
            return b64encode(value).decode()
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case Decimal():
            return str(value)
        case _:
            return value
