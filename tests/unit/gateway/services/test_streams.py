"""Calls whose answer is a stream: how they end."""

from __future__ import annotations

import asyncio

import pytest

from gateway import streams
from gateway.admission import Admission
from gateway.identity import PeerSide
from gateway.ladder import Ladder
from gateway.settings import GatewaySettings
from gateway.streams import stream
from policy.errors import RowNotFound
from runtime.telemetry.spans import read_spans
from runtime.telemetry.tracing import Tracing
from tests.support.gateways import until

TRACE = "0" * 31 + "7"


class Aborted(Exception):
    """What grpc raises."""


class HandContext:
    """One call, as grpc hands it over."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.reason = ""

    def invocation_metadata(self):
        return (("traceparent", f"00-{TRACE}-{'1' * 16}-01"),)

    def time_remaining(self):
        return None

    async def write(self, message: str) -> None:
        await self.flowing.wait()
        self.written.append(message)

    async def abort_with_status(self, status) -> None:
        self.reason = dict(status.trailing_metadata)["grpc-status-details-bin"].decode("latin-1")
        raise Aborted


class Service:
    """Counts as far as it is asked to."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        self.admission = Admission(GatewaySettings(idc="fra", database_url="postgresql://unused"))
        self.admission.open()
        tracing = tracing or Tracing("gateway", "fra", 0.0, None)
        self.ladder = Ladder(self.admission, PeerSide(has_tls=False), tracing, "fra")
        self.has_ended = asyncio.Event()

    @stream
    async def Count(self, request: int, call) -> None:  # noqa: N802
        try:
            for number in range(request):
                await call.send(str(number))
            if request < 0:
                raise RowNotFound("none")
        finally:
            self.has_ended.set()


async def test_messages_are_sent_in_order_and_the_call_is_one_span(tmp_path):
    tracing = Tracing("gateway", "fra", 1.0, tmp_path)
    service, context = Service(tracing), HandContext()
    await service.Count(3, context)
    tracing.shutdown()
    assert context.written == ["0", "1", "2"]
    assert service.admission.streams == 0
    assert [(span.name, span.trace_id) for span in read_spans(tmp_path)] == [("Count", TRACE)]


async def test_an_error_ends_the_call_with_its_reason():
    service, context = Service(), HandContext()
    with pytest.raises(Aborted):
        await service.Count(-1, context)
    assert "ROW_NOT_FOUND" in context.reason
    assert service.admission.streams == 0


async def test_a_gateway_that_stops_ends_a_stream_that_goes_on():
    service, context = Service(), HandContext()
    context.flowing.clear()
    counting = asyncio.create_task(service.Count(3, context))
    await until(lambda: service.admission.streams == 1)
    service.admission.close()
    with pytest.raises(Aborted):
        await counting
    assert "UNAVAILABLE" in context.reason
    assert service.has_ended.is_set()


async def test_another_side_that_takes_nothing_ends_the_stream(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "SEND_SECONDS", 0.02)
    service, context = Service(), HandContext()
    context.flowing.clear()
    with pytest.raises(Aborted):
        await service.Count(3, context)
    assert "DEADLINE_EXCEEDED" in context.reason


async def test_a_caller_that_has_gone_ends_the_body():
    service, context = Service(), HandContext()
    context.flowing.clear()
    counting = asyncio.create_task(service.Count(3, context))
    await until(lambda: service.admission.streams == 1)
    counting.cancel()
    await asyncio.wait((counting,))
    assert counting.cancelled()
    assert service.has_ended.is_set()
    assert service.admission.streams == 0
