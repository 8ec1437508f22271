"""A stream takes no more than it may hold, answers what is ready, and ends when the gateway does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from gateway.admission import Admission
from gateway.decisions import DecisionMessages
from gateway.engine import Engine
from gateway.exchange import ExchangeShared, ExchangeStream
from gateway.identity import Caller
from gateway.limits import EngineSettings, PeerSettings
from gateway.peers import Peers
from gateway.settings import GatewaySettings
from policy.errors import Unavailable
from regiongate.v1 import row_service_pb2 as pb
from regiongate.v1 import types_pb2
from runtime.telemetry.spans import read_spans
from runtime.telemetry.tracing import Tracing
from tests.support.memory_rows import MemoryRows
from tests.support.routing import HandView, table

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.telemetry.spans import SpanRecord

MAX_MESSAGES = 4
OWN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Context:
    """gRPC's end of a stream: what the client sends, and what it gets."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[object] = asyncio.Queue()
        self.reads = 0
        self.written: list[pb.OperationResult] = []
        self.is_read = asyncio.Event()
        self.is_read.set()
        self.got = asyncio.Condition()

    async def read(self) -> object:
        message = await self.incoming.get()
        self.reads += 1
        return message

    async def write(self, response: pb.ExchangeResponse) -> None:
        await self.is_read.wait()
        async with self.got:
            self.written += response.results
            self.got.notify_all()

    async def results(self, number: int) -> list[pb.OperationResult]:
        async with self.got:
            await asyncio.wait_for(self.got.wait_for(lambda: len(self.written) >= number), 5)
        return self.written


class Stream:
    """A stream in a gateway whose rows are in memory."""

    def __init__(self, tracing: Tracing | None = None, caller: Caller | None = None) -> None:
        view = HandView(table())
        self.rows = MemoryRows()
        self.rows.open_all(view.table, "fra")
        tracing = tracing or Tracing("gateway", "fra", 0, None)
        peers = Peers("fra", view, PeerSettings())
        engine = Engine("fra", view, self.rows, peers, tracing, settings=EngineSettings())
        self.admission = Admission(GatewaySettings(idc="fra", database_url="postgresql://x", max_operations=1000))
        self.admission.open()
        self.context = Context()
        shared = ExchangeShared(engine, view, self.admission, DecisionMessages(), MAX_MESSAGES, tracing=tracing)
        self.task = asyncio.create_task(ExchangeStream(shared, caller or Caller(), self.context).run())

    def send(self, *operations: pb.Operation) -> None:
        self.context.incoming.put_nowait(pb.ExchangeRequest(operations=operations))

    def end(self) -> None:
        self.context.incoming.put_nowait(grpc.aio.EOF)


@pytest.fixture
async def stream():
    made = Stream()
    yield made
    made.rows.resume()
    made.context.is_read.set()
    made.task.cancel()
    await asyncio.wait({made.task})


def get(number: int, region: str = "DE", key: str = "k") -> pb.Operation:
    return pb.Operation(
        id=number,
        dataset="customers",
        region_code=region,
        key=types_pb2.Key(string_key=key),
        get=pb.GetAction(),
    )


async def idle() -> None:
    """Lets everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_messages_beyond_the_bound_stay_unread_until_answers_are_taken(stream: Stream):
    stream.context.is_read.clear()
    for number in range(20):
        stream.send(get(number))
    await idle()
    assert stream.context.reads == MAX_MESSAGES
    stream.context.is_read.set()
    assert {result.id for result in await stream.context.results(20)} == set(range(20))


async def test_an_operation_that_waits_delays_no_other(stream: Stream):
    stream.rows.pause()
    stream.send(get(1), get(2, region="FR"), pb.Operation(id=3))
    assert {result.id for result in await stream.context.results(2)} == {2, 3}
    stream.rows.resume()
    assert {result.id for result in await stream.context.results(3)} == {1, 2, 3}


async def test_a_sender_that_has_ended_gets_all_its_answers(stream: Stream):
    stream.rows.pause()
    stream.send(get(1))
    stream.end()
    await idle()
    assert not stream.task.done()
    stream.rows.resume()
    await asyncio.wait_for(stream.task, 5)
    assert [result.id for result in stream.context.written] == [1]


async def test_a_gateway_that_stops_finishes_what_is_in_work_and_ends_the_stream(stream: Stream):
    stream.rows.pause()
    stream.send(get(1))
    await idle()
    stream.admission.close()
    await idle()
    stream.send(get(2))
    await idle()
    stream.rows.resume()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(stream.task, 5)
    assert [result.id for result in stream.context.written] == [1]


async def test_too_many_operations_at_once_are_refused_one_by_one(stream: Stream):
    stream.rows.pause()
    stream.send(*(get(number, key=str(number)) for number in range(900)))
    await idle()
    stream.send(*(get(1000 + number) for number in range(200)))
    refused = await stream.context.results(200)
    assert {result.error.metadata["limit"] for result in refused} == {"max_operations"}
    stream.rows.resume()
    await stream.context.results(1100)
    assert stream.admission.operations == 0


async def test_a_message_of_more_than_a_thousand_operations_is_refused(stream: Stream):
    stream.send(*(get(number) for number in range(1001)))
    results = await stream.context.results(1001)
    assert {result.error.reason for result in results} == {"LIMIT_REACHED"}


async def test_a_client_that_goes_away_leaves_nothing_behind(stream: Stream):
    stream.rows.pause()
    stream.send(get(1))
    await idle()
    stream.task.cancel()
    await asyncio.wait({stream.task})
    stream.rows.resume()
    await idle()
    assert stream.admission.operations == 0


async def trace(folder: Path, *operations: pb.Operation, ratio: float = 1.0, caller: Caller | None = None):
    """Sends one message to a gateway that samples by itself, and returns the spans that it has recorded."""
    tracing = Tracing("gateway", "fra", ratio, folder)
    stream = Stream(tracing, caller)
    stream.send(*operations)
    stream.end()
    await asyncio.wait_for(stream.task, 5)
    tracing.shutdown()
    return list(read_spans(folder))


def by_name(spans: list[SpanRecord]) -> dict[str, SpanRecord]:
    return {span.name: span for span in spans}


async def test_a_message_without_a_trace_starts_one_by_the_gateways_own_setting(tmp_path: Path):
    spans = by_name(await trace(tmp_path, get(1), get(2, key="k2")))
    root, served = spans["Exchange"], spans["gateway.serve"]
    assert (root.parent_id, root.kind, root.attributes["regiongate.rows"]) == ("", "server", 2)
    assert (served.trace_id, served.parent_id) == (root.trace_id, root.span_id)
    assert spans["db.read"].parent_id == served.span_id


async def test_operations_with_a_trace_of_their_own_stay_in_it(tmp_path: Path):
    mine, theirs = get(1), get(2, key="k2")
    mine.traceparent = OWN
    spans = await trace(tmp_path, mine, theirs)
    roots = {span.trace_id for span in spans if span.name == "Exchange"}
    assert {span.trace_id for span in spans if span.name == "gateway.serve"} == {OWN[3:35], *roots}
    assert len(roots) == 1


@pytest.mark.parametrize("traceparent", [OWN, UNSAMPLED])
async def test_no_trace_is_started_where_every_operation_has_one(tmp_path: Path, traceparent: str):
    operation = get(1)
    operation.traceparent = traceparent
    assert "Exchange" not in by_name(await trace(tmp_path, operation))


async def test_what_a_peer_forwards_is_not_sampled_anew(tmp_path: Path):
    assert not await trace(tmp_path, get(1), caller=Caller(ingress_idc="sin"))


async def test_sampled_out_messages_leave_nothing(tmp_path: Path):
    assert not await trace(tmp_path, get(1), ratio=0.0)
