"""A stack for attacks on the laws: a small policy with its revocation, what its databases hold, and raw calls.

The stack's leases are short, so that a gateway that is cut off stops counting after seconds. Tests share one stack and
leave it as they found it: everything alive, the policy without the changes that they made to its access rules.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import grpc.aio

from gateway.client.failures import failed_call
from policy.model import Phase
from policy.records import CurrentPolicy, GatewayRecord, Keys, ShardRecord
from regiongate.v1 import policy_service_pb2, row_service_pb2, types_pb2
from regiongate.v1.policy_service_pb2_grpc import PolicyServiceStub
from regiongate.v1.row_service_pb2_grpc import RowServiceStub
from regiongate.v1.shard_service_pb2_grpc import ShardServiceStub
from runtime.etcd import EtcdClient, EtcdSettings
from runtime.supervisor.probe import read_health
from tests.support.stack import RunningStack, StackFailed, make_folder, running_stack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from rowstore.model import FenceMode

LEASE_SECONDS = 3
CLUSTER = "default"

POLICY = """\
version: 1
idcs:
  sha: {jurisdiction: CN}
  fra: {jurisdiction: EU}
  ams: {jurisdiction: EU}
  sin: {jurisdiction: SG}
groups:
  EU: [DE, FR]
residency:
  - {name: china, regions: [CN], jurisdictions: [CN], idcs: {sha: 100}, shards: 4, transit: forbid}
  - {name: europe, regions: [EU], jurisdictions: [EU], idcs: {fra: 50, ams: 50}, shards: 4}
  - {name: asia, regions: [SG], jurisdictions: [SG], idcs: {sin: 100}, shards: 4}
access:
  - {name: eu-support, regions: [EU], from: [SG], operations: [read], purposes: [support], withhold: [personal]}
  - {name: asia-billing, regions: [SG], from: [EU], operations: [read, write], purposes: [billing]}
datasets:
  customers:
    key: string
    columns:
      name: {type: string, class: personal}
      spend: {type: int64}
"""
JURISDICTIONS = {"CN": "CN", "DE": "EU", "FR": "EU", "SG": "SG"}
"""RegionCode -> the only jurisdiction that may hold it."""
IDCS = {"sha": "CN", "fra": "EU", "ams": "EU", "sin": "SG"}


def revoked(document: str) -> str:
    """The same policy without what lets anybody cross a border for `support` or `billing`."""
    return document.replace("purposes: [support]", "purposes: [nothing]").replace("[billing]", "[nothing]")


class Stored(NamedTuple):
    """A row as an IDC's database holds it."""

    idc: str
    region_code: str
    key: str
    shard: int
    seq: int
    deleted: bool
    spend: int | None


class Fence(NamedTuple):
    """A fence as an IDC's database holds it."""

    epoch: int
    mode: FenceMode | str


@contextmanager
def running_law_stack(policy: str = POLICY, **options: Any) -> Iterator[LawStack]:
    """A stack with a policy of its own and short leases."""
    folder = make_folder()
    file = folder / "policy.yaml"
    file.write_text(policy)
    environment = {"REGIONGATE_LEASE_TTL": str(LEASE_SECONDS), **options.pop("environment", {})}
    with _started(file, environment=environment, **options) as stack:
        yield LawStack(stack)


@contextmanager
def _started(file: Path, **options: Any) -> Iterator[RunningStack]:
    """`running_stack`, once more when another process was quicker to take one of the ports."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(running_stack(file, **options))
        except StackFailed as failed:
            if "PORT_TAKEN" not in str(failed):
                raise
            running = stack.enter_context(running_stack(file, **options))
        yield running


@dataclass
class LawStack:
    """A running stack, and what tests ask of it."""

    stack: RunningStack
    document: str = POLICY
    """The policy that tests find; one that adds RegionCodes must replace it, since none can be taken away."""

    def __post_init__(self) -> None:
        self.keys = Keys(self.stack.file.cluster)

    @asynccontextmanager
    async def etcd(self) -> AsyncIterator[EtcdClient]:
        """A client of the stack's etcd that does not wait long."""
        settings = EtcdSettings(
            self.stack.etcd_endpoints, attempt_timeout=timedelta(seconds=1), request_timeout=timedelta(seconds=3)
        )
        async with EtcdClient(settings) as client:
            yield client

    @asynccontextmanager
    async def database(self, idc: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """A connection straight to an IDC's database."""
        connection = await asyncpg.connect(self.stack.idcs[idc].database, timeout=10)
        try:
            yield connection
        finally:
            await connection.close(timeout=5)

    # ---- the law ----------------------------------------------------------------------------------------------------

    async def apply(
        self, document: str, idc: str = "ams", seconds: float = 40
    ) -> policy_service_pb2.ApplyPolicyResponse:
        """Applies a policy through an IDC's gateway, unless it is current; returns when it is effective."""
        async with grpc.aio.insecure_channel(self.stack.gateway(idc)) as channel:
            stub: Any = PolicyServiceStub(channel)
            current = await stub.GetPolicy(policy_service_pb2.GetPolicyRequest(), timeout=seconds)
            if current.policy.document == document:
                return policy_service_pb2.ApplyPolicyResponse(revision=current.policy.revision)
            request = policy_service_pb2.ApplyPolicyRequest(document=document, author="test")
            return await stub.ApplyPolicy(request, timeout=seconds)

    async def gateway_records(self, idc: str = "") -> list[GatewayRecord]:
        """The live gateways by etcd's word."""
        async with self.etcd() as etcd:
            listing = await etcd.list(f"{self.keys.gateways}{idc}/" if idc else self.keys.gateways)
            return [GatewayRecord.decode(item.value) for item in listing.items]

    async def shard_records(self) -> dict[tuple[str, int], ShardRecord]:
        """Who owns what by etcd's word."""
        async with self.etcd() as etcd:
            listing = await etcd.list(self.keys.shards)
            return {self.keys.parse_shard(item.key): ShardRecord.decode(item.value) for item in listing.items}

    async def revision(self) -> int:
        """The current policy revision."""
        async with self.etcd() as etcd:
            item = await etcd.get(self.keys.policy_current)
            return CurrentPolicy.decode(item.value).revision if item else 0

    # ---- what is stored ---------------------------------------------------------------------------------------------

    async def rows(self, idc: str) -> list[Stored]:
        """Every row of the customers in an IDC's database, tombstones too."""
        async with self.database(idc) as connection:
            records = await connection.fetch("SELECT region_code, key, shard, seq, deleted, spend FROM rows_customers")
            return [Stored(idc, *record.values()) for record in records]

    async def fences(self, idc: str) -> dict[tuple[str, int], Fence]:
        """Every fence of an IDC's database."""
        async with self.database(idc) as connection:
            records = await connection.fetch("SELECT region_code, shard, epoch, mode FROM shard_fences")
            return {(r["region_code"], r["shard"]): Fence(r["epoch"], r["mode"]) for r in records}

    async def check_places(self) -> list[Stored]:
        """Law L1 and L2: every row of every database lies where its RegionCode may lie, once, at its shard's owner."""
        owners = await self.shard_records()
        found = [row for rows in await asyncio.gather(*map(self.rows, IDCS)) for row in rows]
        for row in found:
            assert IDCS[row.idc] == JURISDICTIONS[row.region_code], f"law L1: {row.region_code} in {row.idc}"
            assert owners[row.region_code, row.shard].owner == row.idc, f"{row.region_code}/{row.shard} in {row.idc}"
        places = [(row.region_code, row.key) for row in found]
        assert len(places) == len(set(places)), "a row lies in two IDCs"
        return found

    async def check_fences(self) -> None:
        """Law L2: a shard is open at its owner, at its epoch, and nowhere else."""
        owners = await self.shard_records()
        open_at: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for idc in IDCS:
            for shard, fence in (await self.fences(idc)).items():
                if str(fence.mode) == "serving":
                    open_at.setdefault(shard, []).append((idc, fence.epoch))
        for shard, record in owners.items():
            expected = [(record.owner, record.epoch)] if record.phase == Phase.SERVING else []
            assert open_at.pop(shard, []) in (expected, [(record.owner, record.epoch)]), shard
        assert not open_at, f"open without an owner: {open_at}"

    # ---- health -----------------------------------------------------------------------------------------------------

    async def is_ready(self, idc: str) -> bool:
        """Whether the gateway of the IDC can do all of its work, border crossings too."""
        health = await read_health(self.stack.idcs[idc].metrics)
        return health.is_ready and all(state == "ok" for state in health.checks.values())

    async def heal(self, seconds: float = 60) -> None:
        """Waits until every part works again, and brings the policy back."""
        for idc in IDCS:
            await until(partial(self.is_ready, idc), seconds, f"{idc} did not become ready")
        await self.apply(self.document)


async def until(condition: Callable[[], Awaitable[object]], seconds: float, complaint: str) -> None:
    """Waits for what happens in another process."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, complaint
        await asyncio.sleep(0.02)


# ---- raw calls ------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a gateway has answered to a read."""

    values: Mapping[str, Any]
    rule: str
    revision: int
    withheld: tuple[str, ...]


class RawCaller:
    """One gateway, asked as any gRPC client would: no retry, no route of its own."""

    def __init__(self, address: str, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self.address = address
        self.rows: Any = RowServiceStub(channel)
        self.shards: Any = ShardServiceStub(channel)
        self.policies: Any = PolicyServiceStub(channel)
        self.metadata = metadata

    async def call(self, method: Any, request: Any, timeout: float = 10) -> Any:
        """Makes a call; raises the error of `policy.errors` that the gateway told."""
        try:
            return await method(request, timeout=timeout, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            raise failed_call(error, self.address).error from None

    async def get(self, region_code: str, key: str, dataset: str = "customers", timeout: float = 10) -> Answer:
        """Reads a row."""
        request = row_service_pb2.GetRowRequest(
            dataset=dataset, region_code=region_code, key=types_pb2.Key(string_key=key)
        )
        answer = await self.call(self.rows.GetRow, request, timeout)
        decision = answer.decision
        values = {name: getattr(cell, cell.WhichOneof("kind")) for name, cell in answer.row.columns.items()}
        return Answer(values, decision.rule, decision.policy_revision, tuple(decision.withheld))

    async def put(
        self, region_code: str, key: str, spend: int, *, name: str = "", request_id: str = "", timeout: float = 10
    ) -> int:
        """Writes a row; returns its version."""
        request = row_service_pb2.PutRowRequest(
            dataset="customers", region_code=region_code, key=types_pb2.Key(string_key=key), request_id=request_id
        )
        request.columns["spend"].int64_value = spend
        if name:
            request.columns["name"].string_value = name
        return (await self.call(self.rows.PutRow, request, timeout)).receipt.version

    async def apply(self, document: str, timeout: float = 20) -> policy_service_pb2.ApplyPolicyResponse:
        """Applies a policy."""
        request = policy_service_pb2.ApplyPolicyRequest(document=document, author="test")
        return await self.call(self.policies.ApplyPolicy, request, timeout)


@asynccontextmanager
async def calling(address: str, purpose: str = "", origin: str = "", ingress: str = "") -> AsyncIterator[RawCaller]:
    """A channel of one's own to a gateway."""
    stated = (("purpose", purpose), ("origin", origin), ("ingress", ingress))
    metadata = tuple((f"x-regiongate-{name}", value) for name, value in stated if value)
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield RawCaller(address, channel, metadata)
