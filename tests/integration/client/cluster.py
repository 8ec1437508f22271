"""Gateways of four IDCs that speak the protos over real grpc.aio, with rows in memory.

They keep the interface's promises that a client relies on: only the owner serves, a request_id returns its first
result, versions rise, `WatchRoutes` begins with a snapshot. What a test needs to go wrong is said to a `Site`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from policy.errors import (
    AccessDenied,
    InvalidInput,
    NotOwnedHere,
    RegiongateError,
    RowNotFound,
    Unavailable,
    UnknownRegion,
    VersionConflict,
)
from policy.sharding import shard_of
from regiongate.v1 import (
    routing_service_pb2,
    routing_service_pb2_grpc,
    row_service_pb2,
    row_service_pb2_grpc,
    types_pb2,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

JURISDICTIONS = {"sha": "CN", "fra": "EU", "ams": "EU", "sin": "SG"}
SHARDS = 4
REGIONS = {"CN": ("sha",), "DE": ("fra", "ams"), "SG": ("sin",)}
TYPES = {
    "name": "string",
    "spend": "int64",
    "score": "double",
    "active": "bool",
    "photo": "bytes",
    "born": "timestamp",
    "balance": "decimal",
    "extra": "json",
}


def key_of(key: types_pb2.Key) -> str | int:
    return key.string_key if key.HasField("string_key") else key.int64_key


def error_message(error: RegiongateError, retry_after_ms: int = 0) -> types_pb2.Error:
    return types_pb2.Error(
        code=code_pb2.UNKNOWN,
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
        retry_after_ms=retry_after_ms or (20 if isinstance(error, Unavailable) else 0),
    )


async def abort(context: grpc.aio.ServicerContext, error: RegiongateError) -> None:
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(domain="regiongate.dev", reason=error.reason, metadata=error.metadata))
    details = [info]
    if isinstance(error, Unavailable):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(20)
        wait = any_pb2.Any()
        wait.Pack(retry)
        details.append(wait)
    code = code_pb2.UNAVAILABLE if isinstance(error, Unavailable) else code_pb2.FAILED_PRECONDITION
    status = status_pb2.Status(code=code, message=error.message, details=details)
    await context.abort_with_status(rpc_status.to_status(status))


@dataclass
class Asked:
    """One operation as it arrived."""

    idc: str
    action: str
    region_code: str
    purpose: str
    origin: str
    request_id: str
    traceparent: str
    timeout_ms: int


@dataclass
class World:
    """What all gateways share: owners, rows, the log of what was asked."""

    owners: dict[tuple[str, int], str] = field(default_factory=dict)
    rows: dict[tuple[str, str | int], types_pb2.Row] = field(default_factory=dict)
    remembered: dict[str, row_service_pb2.WriteReceipt] = field(default_factory=dict)
    versions: int = 0
    sites: list[Site] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    messages: Counter[str] = field(default_factory=Counter)
    watchers: set[asyncio.Queue[routing_service_pb2.WatchRoutesResponse]] = field(default_factory=set)
    revision: int = 1
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        for region_code, idcs in REGIONS.items():
            for shard in range(SHARDS):
                self.owners[region_code, shard] = idcs[shard % len(idcs)]

    def note(self, asked: Asked) -> None:
        self.asked.append(asked)
        self.heard.set()

    async def wait_asked(self, count: int) -> None:
        """Waits until so many operations and calls have arrived."""
        async with asyncio.timeout(5):
            while len(self.asked) < count:
                self.heard.clear()
                await self.heard.wait()

    def owner_of(self, region_code: str, key: str | int) -> str:
        return self.owners.get((region_code, shard_of(key, SHARDS)), "")

    def endpoints_of(self, idc: str) -> list[str]:
        return [site.address for site in self.sites if site.idc == idc and site.is_announced]

    def move(self, region_code: str, shard: int, idc: str, *, tell: bool = True) -> None:
        self.owners[region_code, shard] = idc
        if tell:
            self.tell()

    def tell(self, *, snapshot: bool = False) -> None:
        self.revision += 1
        for watcher in self.watchers:
            watcher.put_nowait(self.news(snapshot=snapshot))

    def news(self, *, snapshot: bool) -> routing_service_pb2.WatchRoutesResponse:
        news = routing_service_pb2.WatchRoutesResponse(
            snapshot=snapshot, policy_revision=1, store_revision=self.revision
        )
        for (region_code, shard), idc in self.owners.items():
            news.routes.add(region_code=region_code, shard=shard, idc=idc, epoch=1, phase="serving")
        for region_code in REGIONS:
            news.regions.add(region_code=region_code, shards=SHARDS)
        for idc, jurisdiction in JURISDICTIONS.items():
            news.idcs.add(idc=idc, jurisdiction=jurisdiction, endpoints=self.endpoints_of(idc))
        news.datasets.add(dataset="customers", key_type="string", column_types=TYPES)
        news.datasets.add(dataset="orders", key_type="int64", column_types={"name": "string"})
        return news


class Site(row_service_pb2_grpc.RowServiceServicer, routing_service_pb2_grpc.RoutingServiceServicer):
    """One gateway of one IDC."""

    def __init__(self, world: World, idc: str) -> None:
        self.world = world
        self.idc = idc
        self.address = ""
        self.is_announced = True
        self.failures: deque[RegiongateError] = deque()
        """Each fails one operation, oldest first."""
        self.answers = asyncio.Event()
        """Cleared: operations are performed, and then nothing is answered."""
        self.answers.set()
        self.works = asyncio.Event()
        """Cleared: operations wait before they are performed, as in a paused process."""
        self.works.set()
        self.can_forward = True
        self.breaks_after_write = 0
        """So many streams break after the write was done and before it was answered."""
        self.unreachable: list[str] = []
        self.server: grpc.aio.Server | None = None
        self.streams = 0

    async def start(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        self.server = grpc.aio.server()
        row_service_pb2_grpc.add_RowServiceServicer_to_server(self, self.server)
        routing_service_pb2_grpc.add_RoutingServiceServicer_to_server(self, self.server)
        where = f"127.0.0.1:{port}"
        add = self.server.add_insecure_port
        port = self.server.add_secure_port(where, credentials) if credentials else add(where)
        self.address = f"127.0.0.1:{port}"
        await self.server.start()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(0)
            self.server = None

    # ---- routes ---------------------------------------------------------------------------------------------------

    async def WatchRoutes(self, _request, context):  # noqa: N802
        queue = asyncio.Queue()
        self.world.watchers.add(queue)
        try:
            news = self.world.news(snapshot=True)
            while True:
                news.home_idc = self.idc
                await context.write(news)
                news = await queue.get()
        finally:
            self.world.watchers.discard(queue)

    # ---- operations -------------------------------------------------------------------------------------------------

    async def Exchange(self, requests, context):  # noqa: N802
        self.streams += 1
        origin = dict(context.invocation_metadata()).get("x-regiongate-origin", "")
        writing = asyncio.Lock()
        async with asyncio.TaskGroup() as group:
            async for request in requests:
                self.world.messages[self.idc] += 1
                group.create_task(self._answer(request, origin, context, writing))

    async def _answer(self, request, origin, context, writing):
        await self.works.wait()
        answer = row_service_pb2.ExchangeResponse()
        for operation in request.operations:
            action = operation.WhichOneof("action")
            self.world.note(
                Asked(
                    self.idc,
                    action,
                    operation.region_code,
                    request.purpose,
                    origin,
                    operation.request_id,
                    operation.traceparent,
                    request.timeout_ms,
                )
            )
            answer.results.append(self._perform(operation, origin or self.idc))
        if self.breaks_after_write:
            self.breaks_after_write -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
        await self.answers.wait()
        async with writing:  # grpc takes one write at a time
            await context.write(answer)

    def _perform(self, operation, asker):
        result = row_service_pb2.OperationResult(id=operation.id)
        try:
            self._judge(operation.region_code, key_of(operation.key), asker)
            match operation.WhichOneof("action"):
                case "get":
                    result.row.CopyFrom(self._get(operation))
                case "put":
                    result.receipt.CopyFrom(self._write(operation, operation.put))
                case "delete":
                    result.receipt.CopyFrom(self._write(operation, None))
            result.decision.CopyFrom(self._decision(operation.region_code, key_of(operation.key), asker))
        except RegiongateError as error:
            result.error.CopyFrom(error_message(error))
        return result

    def _judge(self, region_code, key, asker):
        if self.failures:
            raise self.failures.popleft()
        owner = self.world.owner_of(region_code, key)
        if not owner:
            raise UnknownRegion(f"no residency rule covers {region_code}", field_name="region_code")
        if region_code == "CN" and JURISDICTIONS[asker] != "CN":
            raise AccessDenied("rule china keeps it inside CN", rule="china", policy_revision=7)
        if owner != self.idc and not self.can_forward:
            raise NotOwnedHere(
                "the owner is elsewhere", owner_idc=owner, endpoints=tuple(self.world.endpoints_of(owner))
            )

    def _decision(self, region_code, key, asker):
        return types_pb2.Decision(
            rule="europe",
            policy_revision=7,
            asking_jurisdiction=JURISDICTIONS[asker],
            owner_idc=self.world.owner_of(region_code, key),
            withheld=["name"] if asker == "sin" and region_code == "DE" else [],
        )

    def _get(self, operation):
        row = self.world.rows.get((operation.region_code, key_of(operation.key)))
        if row is None:
            raise RowNotFound("no such row")
        if operation.get.columns:
            kept = types_pb2.Row()
            kept.CopyFrom(row)
            for name in set(row.columns) - set(operation.get.columns):
                del kept.columns[name]
            return kept
        return row

    def _write(self, operation, content, request_id=""):
        request_id = request_id or operation.request_id
        place = (operation.region_code, key_of(operation.key))
        remembered = self.world.remembered.get(f"{request_id}{place}")
        if remembered is not None:
            return remembered
        known = self.world.rows.get(place)
        current = known.version if known else 0
        if operation.HasField("if_version") and operation.if_version != current:
            raise VersionConflict("the row has another version", current=current)
        self.world.versions += 1
        receipt = row_service_pb2.WriteReceipt(version=self.world.versions)
        receipt.update_time.seconds = 1_700_000_000
        if content is None:
            self.world.rows.pop(place, None)
        else:
            row = types_pb2.Row(
                region_code=place[0], key=operation.key, version=self.world.versions, update_time=receipt.update_time
            )
            for name, value in content.columns.items():
                row.columns[name].CopyFrom(value)
            self.world.rows[place] = row
        self.world.remembered[f"{request_id}{place}"] = receipt
        return receipt

    # ---- unary ------------------------------------------------------------------------------------------------------

    def _note(self, context, action, request_id=""):
        words = dict(context.invocation_metadata())
        purpose, origin = words.get("x-regiongate-purpose", ""), words.get("x-regiongate-origin", "")
        self.world.note(Asked(self.idc, action, "", purpose, origin, request_id, words.get("traceparent", ""), 0))
        return origin or self.idc

    async def BatchGetRows(self, request, context):  # noqa: N802
        asker = self._note(context, "batch_get")
        await self.works.wait()
        self.world.messages[f"{self.idc}.keys"] += len(request.keys)
        answer = row_service_pb2.BatchGetRowsResponse()
        for item in request.keys:
            result = answer.results.add()
            operation = row_service_pb2.Operation(region_code=item.region_code, key=item.key)
            operation.get.columns.extend(request.columns)
            try:
                self._judge(item.region_code, key_of(item.key), asker)
                result.row.CopyFrom(self._get(operation))
                result.decision = len(answer.decisions)
                answer.decisions.append(self._decision(item.region_code, key_of(item.key), asker))
            except RegiongateError as error:
                result.error.CopyFrom(error_message(error))
        return answer

    async def BatchWriteRows(self, request, context):  # noqa: N802
        asker = self._note(context, "batch_write", request.request_id)
        await self.works.wait()
        self.world.messages[f"{self.idc}.rows"] += len(request.writes)
        answer = row_service_pb2.BatchWriteRowsResponse()
        for item in request.writes:
            result = answer.results.add()
            try:
                self._judge(item.region_code, key_of(item.key), asker)
                content = item.put if item.HasField("put") else None
                receipt = self._write(item, content, request.request_id)
                result.version, result.group = receipt.version, len(answer.groups)
                decision = self._decision(item.region_code, key_of(item.key), asker)
                answer.groups.add(decision=decision, update_time=receipt.update_time)
            except RegiongateError as error:
                result.error.CopyFrom(error_message(error))
        return answer

    async def ListRows(self, request, context):  # noqa: N802
        asker = self._note(context, "list")
        await self.works.wait()
        if self.failures:
            await abort(context, self.failures.popleft())
        if request.page_size > 1000:
            await abort(context, InvalidInput("page_size is above 1,000", field_name="page_size"))
        rows = sorted(
            (key, row) for (region_code, key), row in self.world.rows.items() if region_code == request.region_code
        )
        after = [row for key, row in rows if not request.page_token or key > request.page_token]
        page = after[: request.page_size]
        return row_service_pb2.ListRowsResponse(
            rows=page,
            next_page_token=page[-1].key.string_key if len(after) > len(page) else "",
            unreachable=self.unreachable,
            decision=self._decision(request.region_code, "", asker),
        )


@asynccontextmanager
async def running(*extra: str, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[dict[str, Site]]:
    """A gateway in each IDC, by IDC; more of the IDCs named, as `fra2`, `fra3`, ..."""
    world = World()
    sites: dict[str, Site] = {idc: Site(world, idc) for idc in JURISDICTIONS}
    for name in extra:
        sites[name] = Site(world, name.rstrip("0123456789"))
    for site in sites.values():
        await site.start(credentials=credentials)
        world.sites.append(site)
    try:
        yield sites
    finally:
        for site in sites.values():
            await site.stop()
