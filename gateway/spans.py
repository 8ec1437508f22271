"""Spans of messages and of the engine: one for each sampled caller of a branch, never one for each row.

Attributes name places, rules and counts, never a key or a value (law L1).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from runtime.telemetry.tracing import (
    DATASET,
    IDC,
    PEER_IDC,
    POLICY_REVISION,
    REGION_CODE,
    ROWS,
    RULE,
    SpanKind,
    traceparent_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.branches import ForwardBranch, ServeBranch
    from gateway.identity import Caller
    from gateway.operations import RowOperation
    from runtime.telemetry.tracing import Span, Tracing

NO_SPANS: Final[Mapping[str, str]] = MappingProxyType({})


def start_spans(
    tracing: Tracing, idc: str, branch: ServeBranch | ForwardBranch, peer_idc: str = ""
) -> Mapping[str, str]:
    """Starts the spans of a branch.

    Args:
        tracing: Where they go.
        idc: Of this gateway.
        branch: Its spans are kept there, and end with it.
        peer_idc: Where the branch is forwarded to; empty when it is served here.

    Returns:
        For the traceparent of each sampled caller the one that its children carry.
    """
    call = branch.call
    inherited = call.context.traceparent
    callers: dict[str, int] = {}
    for index in branch.indices:
        traceparent = call.operations[index].traceparent or inherited
        if traceparent:
            callers[traceparent] = callers.get(traceparent, 0) + 1
    if not callers:
        return NO_SPANS
    first = call.operations[branch.indices[0]]
    decision = branch.parts[0][0].decision
    attributes: dict[str, str | int] = {
        IDC: idc,
        DATASET: first.dataset.name,
        REGION_CODE: first.region_code,
        RULE: decision.rule,
        POLICY_REVISION: decision.policy_revision,
    }
    if peer_idc:
        attributes[PEER_IDC] = peer_idc
    name, kind = ("gateway.forward", SpanKind.CLIENT) if peer_idc else ("gateway.serve", SpanKind.INTERNAL)
    children: dict[str, str] = {}
    for traceparent, rows in callers.items():
        span = tracing.start(name, kind=kind, traceparent=traceparent, attributes=attributes | {ROWS: rows})
        if span is not None:
            branch.spans.append(span)
            children[traceparent] = traceparent_of(span)
    return children


def start_message(tracing: Tracing, idc: str, caller: Caller, operations: Sequence[RowOperation]) -> Span | None:
    """Starts a trace for a message whose sender has none, when the dice of this gateway's setting say so.

    The operations carry it from here on; those that bring a trace of their own stay in that. What a peer forwards is
    not sampled anew: where it entered, the dice have been cast.
    """
    if caller.traceparent or caller.ingress_idc:
        return None
    for operation in operations:
        if not operation.traceparent:
            break
    else:
        return None
    span = tracing.start("Exchange", kind=SpanKind.SERVER, root=True)
    if span is None:
        return None
    span.set_attributes({IDC: idc, ROWS: len(operations)})
    traceparent = traceparent_of(span)
    for operation in operations:
        operation.traceparent = operation.traceparent or traceparent
    return span
