"""One operation on one row, as every service hands it to the engine, and what comes back.

Unary calls, batches and `Exchange` messages all become lists of operations; the engine resolves, judges and performs
them together, so that one statement or one message serves many.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.errors import RegiongateError
    from policy.model import AccessDecision, Dataset
    from regiongate.v1 import types_pb2
    from rowstore.model import StoredRow, Written


class Action(IntEnum):
    """What is done with the row."""

    GET = 0
    PUT = 1
    DELETE = 2


@dataclass(slots=True)
class RowOperation:
    """A checked operation: dataset and columns exist, values have their types, limits are kept."""

    action: Action
    dataset: Dataset
    region_code: str
    key: str | int
    columns: frozenset[str] | None = None
    """Columns asked for by a get; None for all."""
    values: Mapping[str, object] | None = None
    if_version: int | None = None
    request_id: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class CallContext:
    """What the operations of one message share."""

    deadline: float
    """On the event loop's clock, seconds."""
    purpose: str = ""
    origin_idc: str = ""
    """The home IDC that a client states when it goes straight to an owner; it can only narrow what is allowed."""
    ingress_idc: str = ""
    """The IDC where a forwarded call entered, as its authenticated peer says; empty when it entered here."""
    traceparent: str = ""


@dataclass(slots=True)
class OperationOutcome:
    """Exactly one of `row`, `receipt` and `error` is set."""

    row: StoredRow | types_pb2.Row | None = None
    """Already without the columns that are withheld or were not asked for. A row from another IDC stays the message
    that it came as; `values.encode_row` takes both."""
    receipt: Written | None = None
    error: RegiongateError | None = None
    decision: AccessDecision | None = None
    """The owner's, where it has judged; equal ones are the same object, so that messages can be kept by identity."""
    owner_idc: str = ""
