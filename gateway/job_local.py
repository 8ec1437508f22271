"""Jobs of this gateway's own IDC: what its database and the list of live runners tell, and orders to them.

Every method takes a request of `JobService` and answers for this IDC alone, whoever asks. One that names a job raises
`UnknownJob` when no runner of this IDC has ever run it. The name itself is in no message: a caller that mixes up its
arguments may have sent a key (law L1).
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from gateway.job_messages import (
    DEFAULT_RUNS,
    DEFAULT_SET_ASIDE,
    job_message,
    offset_message,
    page_size,
    run_message,
    set_aside_message,
    stamp,
)
from gateway.requests import table_of
from policy.errors import InvalidInput, StoreUnavailable, UnknownJob
from policy.groups import Groups
from policy.records import RunnerRecord
from policy.store import told_as_ours
from regiongate.v1 import job_service_pb2 as pb
from rowstore.jobs import firings, registry, runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.requests import HasTable
    from policy.compile import Policy
    from policy.store import PolicyStore
    from rowstore.database import Database
    from rowstore.jobs.model import JobRecord

BATCH: Final = "batch"
_ORIGIN: Final = "manual"
_STORE_SECONDS: Final = 2.0
"""For the list of live runners; the etcd client would try on for longer than most callers wait."""


class LocalJobs:
    """The jobs of one IDC."""

    def __init__(self, idc: str, view: HasTable, database: Database, store: PolicyStore) -> None:
        """Reads and changes nothing yet.

        Args:
            idc: Where this gateway stands.
            view: Knows the policy, and with it the groups that jobs name.
            database: The IDC's.
            store: Where runners keep themselves registered.
        """
        self.idc = idc
        self._view = view
        self._fetch = database.fetch
        self._read = partial(database.fetch, is_repeatable=True)
        self._store = store

    def check_region(self, region_code: str) -> None:
        """Raises `UnknownRegion` for a RegionCode that is given and is not the policy's."""
        if region_code:
            table_of(self._view).policy.residency(region_code)

    async def list_jobs(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """All jobs of this IDC, or the one that is named."""
        policy = table_of(self._view).policy
        records = await registry.list_jobs(self._read, request.job)
        if request.job and not records:
            raise self._unknown()
        runners = await self._runners() if records else []
        answer = pb.ListJobsResponse()
        for record in records:
            status = await registry.status(self._read, record, regions_of(record, policy))
            running = sorted(runner.runner for runner in runners if record.job in runner.jobs)
            answer.jobs.append(job_message(status, self.idc, running))
        return answer

    async def list_offsets(self, request: pb.ListJobOffsetsRequest) -> pb.ListJobOffsetsResponse:
        """How far a job is in each shard that this IDC serves."""
        record = await self._get(request.job)
        codes: Sequence[str] = regions_of(record, table_of(self._view).policy)
        if request.region_code:
            codes = [code for code in codes if code == request.region_code]
        states = await registry.offsets(self._read, record, codes)
        return pb.ListJobOffsetsResponse(offsets=[offset_message(state, record.job, self.idc) for state in states])

    async def list_runs(self, request: pb.ListJobRunsRequest) -> pb.ListJobRunsResponse:
        """The newest runs."""
        size = page_size(request.page_size, DEFAULT_RUNS)
        await self._get(request.job)
        found = await runs.newest(self._read, request.job, size)
        return pb.ListJobRunsResponse(runs=[run_message(run, self.idc) for run in found])

    async def list_set_aside(self, request: pb.ListSetAsideRowsRequest) -> pb.ListSetAsideRowsResponse:
        """Rows that were set aside here, with their keys: for clients of this IDC only."""
        size = page_size(request.page_size, DEFAULT_SET_ASIDE)
        await self._get(request.job)
        rows, total = await registry.set_aside_rows(self._read, request.job, request.region_code, size)
        messages = [set_aside_message(row, request.job) for row in rows]
        return pb.ListSetAsideRowsResponse(idc=self.idc, rows=messages, total=total)

    async def trigger(self, request: pb.TriggerJobRequest, traceparent: str) -> pb.TriggerJobResponse:
        """Fires a batch job now; raises `InvalidInput` for a long-running one."""
        check_batch([(await self._get(request.job)).kind])
        time = await firings.trigger(self._fetch, request.job, _ORIGIN, traceparent)
        if time is None:
            raise self._unknown()
        await registry.ring(self._fetch)
        return pb.TriggerJobResponse(
            firings=[pb.JobFiring(job=request.job, idc=self.idc, scheduled_time=stamp(time))],
        )

    async def pause(self, request: pb.PauseJobRequest) -> pb.PauseJobResponse:
        """Pauses a job."""
        if not await registry.pause(self._fetch, request.job, request.author):
            raise self._unknown()
        await registry.ring(self._fetch)
        return pb.PauseJobResponse(idcs=[self.idc])

    async def resume(self, request: pb.ResumeJobRequest) -> pb.ResumeJobResponse:
        """Lets a job go on, also where it has stopped."""
        if not await registry.resume(self._fetch, request.job):
            raise self._unknown()
        await registry.ring(self._fetch)
        return pb.ResumeJobResponse(idcs=[self.idc])

    async def replay(self, request: pb.ReplaySetAsideRowsRequest) -> pb.ReplaySetAsideRowsResponse:
        """Gives rows that were set aside to the job again."""
        await self._get(request.job)
        rows = await registry.replay(self._fetch, request.job, request.region_code)
        await registry.ring(self._fetch)
        return pb.ReplaySetAsideRowsResponse(idcs=[pb.ReplayedRows(idc=self.idc, rows=rows)])

    async def _get(self, job: str) -> JobRecord:
        record = await registry.get(self._read, job)
        if record is None:
            raise self._unknown()
        return record

    async def _runners(self) -> list[RunnerRecord]:
        """Live runners of this IDC; raises `StoreUnavailable`."""
        try:
            with told_as_ours():
                async with asyncio.timeout(_STORE_SECONDS):
                    listing = await self._store.client.list(self._store.keys.runners_of(self.idc))
        except TimeoutError as error:
            raise StoreUnavailable("the policy store does not answer: live runners are not known") from error
        return [RunnerRecord.decode(item.value) for item in listing.items]

    def _unknown(self) -> UnknownJob:
        return UnknownJob(f"no job of this name was ever run in {self.idc}")


def check_batch(kinds: Sequence[str]) -> None:
    """Raises `InvalidInput` when a job of one of these kinds is not run by firings."""
    if any(kind != BATCH for kind in kinds):
        raise InvalidInput("a long-running job goes on as changes come: it cannot be triggered", field_name="job")


def regions_of(record: JobRecord, policy: Policy) -> tuple[str, ...]:
    """RegionCodes of a job, as the policy understands the names in its definition: all of the policy without any."""
    names = _names_in(record.definition)
    if not names:
        return tuple(policy.regions)
    groups = Groups(policy.document.groups)
    codes: dict[str, None] = {}
    for name in names:
        try:
            codes |= dict.fromkeys(groups.expand((name,)))
        except ValueError:
            # A group that the policy knows no more holds nothing.
            continue
    return tuple(codes)


def _names_in(definition: str) -> list[str]:
    try:
        described: Any = json.loads(definition)
    except ValueError:
        return []
    names: Any = cast("dict[str, Any]", described).get("regions") if isinstance(described, dict) else None
    return [str(name) for name in cast("list[Any]", names)] if isinstance(names, list) else []
