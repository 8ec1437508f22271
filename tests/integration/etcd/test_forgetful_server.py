"""A server that behaves as old etcd releases are said to: it loses events, and its notes of progress run ahead."""

import asyncio
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta

import grpc
import grpc.aio
import pytest

from runtime.etcd import EtcdClient, EtcdSettings
from runtime.etcd.methods import RANGE, WATCH
from runtime.etcd.pb import rpc_pb2 as pb
from tests.support.ports import free_port


class ForgetfulServer:
    """Keeps one key, and tells watches only what the test tells it to."""

    def __init__(self) -> None:
        self.revision = 1
        self.item: pb.KeyValue | None = None
        self.starts: list[int] = []
        self.watching = asyncio.Event()
        self._watches: dict[grpc.aio.ServicerContext, asyncio.Event] = {}

    def put(self, value: bytes) -> int:
        self.revision += 1
        self.item = pb.KeyValue(
            key=b"/k", value=value, mod_revision=self.revision, create_revision=self.revision, version=1
        )
        return self.revision

    async def tell(self, response: pb.WatchResponse) -> None:
        response.header.revision = self.revision
        for context in self._watches:
            await context.write(response)

    async def end_watches(self) -> None:
        self.watching.clear()
        for end in self._watches.values():
            end.set()

    async def range(self, request: pb.RangeRequest, context: grpc.aio.ServicerContext) -> pb.RangeResponse:  # noqa: ARG002
        response = pb.RangeResponse(kvs=[self.item] if self.item else [])
        response.header.revision = self.revision
        return response

    async def watch(self, requests, context) -> None:
        end = asyncio.Event()
        answering = asyncio.create_task(self._answer(requests, context, end))
        ending = asyncio.create_task(end.wait())
        try:
            await asyncio.wait({answering, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._watches.pop(context, None)
            answering.cancel()
            ending.cancel()
            await asyncio.gather(answering, ending, return_exceptions=True)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "ended by the test")

    async def _answer(self, requests, context, end: asyncio.Event) -> None:
        async for request in requests:
            response = pb.WatchResponse(watch_id=-1)
            if request.HasField("create_request"):
                self.starts.append(request.create_request.start_revision)
                response = pb.WatchResponse(watch_id=7, created=True)
            response.header.revision = self.revision
            await context.write(response)
            if response.created:
                self._watches[context] = end
                self.watching.set()


@asynccontextmanager
async def serve(etcd: ForgetfulServer):
    handlers = {
        RANGE.path: grpc.unary_unary_rpc_method_handler(
            etcd.range, pb.RangeRequest.FromString, pb.RangeResponse.SerializeToString
        ),
        WATCH.path: grpc.stream_stream_rpc_method_handler(
            etcd.watch, pb.WatchRequest.FromString, pb.WatchResponse.SerializeToString
        ),
    }

    class Handlers(grpc.GenericRpcHandler):
        def service(self, handler_call_details):
            return handlers.get(handler_call_details.method)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Handlers()])
    port = free_port()
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    settings = EtcdSettings((f"127.0.0.1:{port}",), watch_check_every=timedelta(milliseconds=50))
    try:
        async with EtcdClient(settings) as client:
            yield client
    finally:
        await server.stop(None)


async def test_a_follower_finds_out_that_an_event_was_lost():
    etcd = ForgetfulServer()
    async with (
        serve(etcd) as client,
        asyncio.timeout(10),
        aclosing(client.follow("/", relist_every=timedelta(milliseconds=100))) as batches,
    ):
        assert (await anext(batches)).items == ()
        pending = asyncio.ensure_future(anext(batches))
        await etcd.watching.wait()
        revision = etcd.put(b"never told")
        found = await pending
        assert found.is_snapshot
        assert found.revision == revision
        assert found.items[0].value == b"never told"


async def test_an_event_that_is_only_late_gives_no_second_snapshot():
    etcd = ForgetfulServer()
    async with (
        serve(etcd) as client,
        asyncio.timeout(10),
        aclosing(client.follow("/", relist_every=timedelta(milliseconds=300))) as batches,
    ):
        await anext(batches)
        pending = asyncio.ensure_future(anext(batches))
        await etcd.watching.wait()
        etcd.put(b"late")
        await asyncio.wait({pending}, timeout=0.4)  # listed once, so the change is owed
        assert not pending.done()
        await etcd.tell(pb.WatchResponse(watch_id=7, events=[pb.Event(kv=etcd.item)]))
        assert not (await pending).is_snapshot
        assert etcd.starts == [2]


async def test_history_that_has_gone_back_gives_a_new_snapshot():
    etcd = ForgetfulServer()
    etcd.revision = 50
    async with (
        serve(etcd) as client,
        asyncio.timeout(10),
        aclosing(client.follow("/", relist_every=timedelta(milliseconds=100))) as batches,
    ):
        await anext(batches)
        pending = asyncio.ensure_future(anext(batches))
        await etcd.watching.wait()
        etcd.revision = 3  # restored from an old backup
        assert (await pending).revision == 3


@pytest.mark.parametrize(("watch_id", "resumes_at"), [(7, 51), (-1, 5)])
async def test_a_watch_moves_on_by_notes_of_its_own_and_not_by_those_it_has_asked_for(watch_id, resumes_at):
    etcd = ForgetfulServer()
    async with serve(etcd) as client, asyncio.timeout(10):
        pending = asyncio.ensure_future(anext(client.watch("/", start_revision=5)))
        await etcd.watching.wait()
        etcd.revision = 50
        await etcd.tell(pb.WatchResponse(watch_id=watch_id))
        await etcd.end_watches()
        await etcd.watching.wait()
        assert etcd.starts == [5, resumes_at]
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)


async def test_parts_of_a_revision_are_joined_and_a_part_that_was_cut_off_is_read_again():
    etcd = ForgetfulServer()
    async with serve(etcd) as client, asyncio.timeout(10):
        pending = asyncio.ensure_future(anext(client.watch("/", start_revision=1)))
        await etcd.watching.wait()
        etcd.put(b"")
        part = pb.WatchResponse(watch_id=7, fragment=True, events=[pb.Event(kv=etcd.item)])
        await etcd.tell(part)
        await etcd.end_watches()
        await etcd.watching.wait()
        await etcd.tell(part)
        await etcd.tell(pb.WatchResponse(watch_id=7, events=[pb.Event(kv=etcd.item)]))
        assert len((await pending).events) == 2
        assert etcd.starts == [1, 1]


async def test_a_server_that_reads_old_history_for_long_is_given_more_time_at_each_attempt():
    etcd = ForgetfulServer()
    etcd.put(b"")

    async def read_slowly(requests, context) -> None:
        await anext(aiter(requests))
        await context.write(pb.WatchResponse(watch_id=7, created=True))
        await asyncio.sleep(0.5)  # ten times what this client takes for silence
        await context.write(pb.WatchResponse(watch_id=7, events=[pb.Event(kv=etcd.item)]))

    etcd.watch = read_slowly
    async with serve(etcd) as client, asyncio.timeout(10):
        assert (await anext(client.watch("/", start_revision=1))).revision == etcd.revision
