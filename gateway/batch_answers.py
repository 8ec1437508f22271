"""Answers to batches: one result for each row, and beside them, once, what results have in common.

A batch is decided by few rules, and the rows of one shard commit together: most results are nothing but a version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.status import to_error_message
from gateway.values import encode_row, set_time
from policy.errors import LimitReached, RegiongateError
from regiongate.v1 import row_service_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from gateway.decisions import DecisionMessages
    from gateway.operations import OperationOutcome
    from policy.model import AccessDecision, Dataset

    Outcomes = Iterable[OperationOutcome | RegiongateError]
    """What could not be parsed has no outcome but its error."""

MAX_ANSWER_BYTES: Final = 3 << 20
"""Clients take 4 MiB by default; rows of a batch beyond this are refused one by one, and can be asked for again."""


def error_of(outcome: OperationOutcome) -> RegiongateError:
    """The error of an outcome that has nothing else."""
    return outcome.error or RegiongateError("an operation without an outcome")


def write_answer(
    outcomes: Outcomes, decisions: DecisionMessages, traceparent: str
) -> row_service_pb2.BatchWriteRowsResponse:
    """The answer to a batch of writes."""
    answer = row_service_pb2.BatchWriteRowsResponse()
    add = answer.results.add
    groups: dict[tuple[int, str, datetime | None], int] = {}

    def group_of(decision: AccessDecision | None, owner_idc: str, time: datetime | None) -> int:
        # By identity, as the messages of decisions are kept; the outcomes keep their decisions alive meanwhile.
        name = id(decision), owner_idc, time
        number = groups.get(name)
        if number is None:
            number = groups[name] = len(groups)
            group = answer.groups.add()
            if (message := decisions.message(decision, owner_idc)) is not None:
                group.decision.CopyFrom(message)
            if time is not None:
                set_time(group.update_time, time)
        return number

    for outcome in outcomes:
        result = add()
        if isinstance(outcome, RegiongateError):
            result.error.CopyFrom(to_error_message(outcome))
            continue
        receipt = outcome.receipt
        if receipt is not None:
            result.version = receipt.version
            result.group = group_of(outcome.decision, outcome.owner_idc, receipt.update_time)
            continue
        result.error.CopyFrom(to_error_message(error_of(outcome), where="BatchWriteRows", traceparent=traceparent))
        if outcome.decision is not None:
            result.group = group_of(outcome.decision, outcome.owner_idc, None)
    return answer


def get_answer(
    outcomes: Outcomes, dataset: Dataset, decisions: DecisionMessages, traceparent: str
) -> row_service_pb2.BatchGetRowsResponse:
    """The answer to a batch of reads, no larger than clients take."""
    answer = row_service_pb2.BatchGetRowsResponse()
    add = answer.results.add
    known: dict[tuple[int, str], int] = {}
    size = 0
    for outcome in outcomes:
        result = add()
        if isinstance(outcome, RegiongateError):
            result.error.CopyFrom(to_error_message(outcome))
            continue
        if outcome.row is not None:
            row = encode_row(outcome.row, dataset)
            length = row.ByteSize()
            if size + length > MAX_ANSWER_BYTES:
                full = LimitReached("the answer is full: ask for this row again", limit="answer_bytes")
                result.error.CopyFrom(to_error_message(full))
            else:
                size += length
                result.row.CopyFrom(row)
        else:
            error = to_error_message(error_of(outcome), where="BatchGetRows", traceparent=traceparent)
            result.error.CopyFrom(error)
        message = decisions.message(outcome.decision, outcome.owner_idc)
        if message is not None:
            name = id(outcome.decision), outcome.owner_idc
            number = known.get(name)
            if number is None:
                number = known[name] = len(known)
                answer.decisions.add().CopyFrom(message)
            result.decision = number
    return answer
