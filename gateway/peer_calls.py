"""What single calls to other IDCs' gateways have in common: whom they speak for, and how their errors are told."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc.aio

from gateway.identity import INGRESS, ORIGIN, TRACEPARENT
from gateway.status import error_from_rpc
from policy.errors import PeerUnreachable
from runtime.tasks import is_cancelled

if TYPE_CHECKING:
    from collections.abc import Generator

    from gateway.operations import CallContext


def hop_metadata(idc: str, context: CallContext) -> list[tuple[str, str]]:
    """Says that a call has entered in this IDC, and what else the one that asks has stated."""
    metadata = [(INGRESS, idc)]
    metadata += [(ORIGIN, context.origin_idc)] if context.origin_idc else []
    metadata += [(TRACEPARENT, context.traceparent)] if context.traceparent else []
    return metadata


@contextmanager
def told_as_ours(idc: str) -> Generator[None]:
    """Raises what the gateway of the IDC has raised, and `PeerUnreachable` when it went away meanwhile."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from error
    except (grpc.aio.UsageError, asyncio.CancelledError) as error:
        if is_cancelled():
            raise
        raise PeerUnreachable(f"the gateway of {idc} has gone") from error
