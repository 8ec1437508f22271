"""`JobService` on both listeners: for clients over all IDCs, for peers over this one.

An order is decided first: which IDCs know the job, and whether it can be obeyed. Then it is recorded in the audit
trail, and only then given: no order without a trace. A trace may be of an order that an IDC did not get; the caller was
told which.

Rows that were set aside are shown by the gateways of their own IDC, to clients of that IDC: no peer is told of a key,
and no client that says it is elsewhere (law L1).
"""

# The ladder's decorator makes parameters positional, which is how grpc passes them.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gateway.identity import check_ingress
from gateway.job_local import check_batch
from gateway.job_messages import check_job, page_size
from gateway.job_peers import Question
from gateway.ladder import unary
from policy.apply import check_words
from policy.audit.entry import Fact
from policy.errors import AccessDenied
from policy.store import told_as_ours
from regiongate.v1 import job_service_pb2 as pb
from regiongate.v1.job_service_pb2_grpc import JobServiceServicer
from runtime.tasks import Begun

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from google.protobuf.message import Message

    from gateway.job_local import LocalJobs
    from gateway.job_peers import Answers, JobPeers
    from gateway.ladder import Call, Ladder
    from policy.audit.chain import AuditChain


class Order(Protocol):
    """What the requests of all orders have."""

    job: str
    author: str
    message: str

    @property
    def idcs(self) -> Sequence[str]:
        """IDCs that are meant; all when empty."""
        ...


_Order = TypeVar("_Order", bound=Order)
_Response = TypeVar("_Response", bound="Message")


class JobService(JobServiceServicer):
    """Serves the jobs of all IDCs to clients."""

    def __init__(self, ladder: Ladder, local: LocalJobs, peers: JobPeers, audit: AuditChain) -> None:
        self.ladder = ladder
        self._local = local
        self._peers = peers
        self._audit = audit
        self._begun = Begun()

    @unary
    async def ListJobs(self, request: pb.ListJobsRequest, call: Call) -> pb.ListJobsResponse:  # noqa: D102, N802
        idcs = self._peers.choose(request.idcs)
        answers = await self._peers.ask(idcs, Question("ListJobs", request, self._local.list_jobs), call.context)
        found = sorted((job for answer in answers.found.values() for job in answer.jobs), key=lambda it: it.job)
        return pb.ListJobsResponse(jobs=found, unreachable=answers.unreachable)

    @unary
    async def ListJobOffsets(  # noqa: D102, N802
        self, request: pb.ListJobOffsetsRequest, call: Call
    ) -> pb.ListJobOffsetsResponse:
        check_job(request.job)
        self._local.check_region(request.region_code)
        question = Question("ListJobOffsets", request, self._local.list_offsets)
        answers = await self._peers.ask(self._peers.choose(request.idcs), question, call.context)
        return _merged(pb.ListJobOffsetsResponse(unreachable=answers.unreachable), answers)

    @unary
    async def ListJobRuns(  # noqa: D102, N802
        self, request: pb.ListJobRunsRequest, call: Call
    ) -> pb.ListJobRunsResponse:
        check_job(request.job)
        page_size(request.page_size, 0)
        question = Question("ListJobRuns", request, self._local.list_runs)
        answers = await self._peers.ask(self._peers.choose(request.idcs), question, call.context)
        found = [run for answer in answers.found.values() for run in answer.runs]
        found.sort(key=lambda run: run.start_time.ToNanoseconds(), reverse=True)
        return pb.ListJobRunsResponse(runs=found, unreachable=answers.unreachable)

    @unary
    async def TriggerJob(self, request: pb.TriggerJobRequest, call: Call) -> pb.TriggerJobResponse:  # noqa: D102, N802
        here = partial(self._local.trigger, traceparent=call.traceparent)
        question = Question("TriggerJob", request, here, is_repeatable=False)
        return await self._order("trigger", question, pb.TriggerJobResponse(), call)

    @unary
    async def PauseJob(self, request: pb.PauseJobRequest, call: Call) -> pb.PauseJobResponse:  # noqa: D102, N802
        question = Question("PauseJob", request, self._local.pause)
        return await self._order("pause", question, pb.PauseJobResponse(), call)

    @unary
    async def ResumeJob(self, request: pb.ResumeJobRequest, call: Call) -> pb.ResumeJobResponse:  # noqa: D102, N802
        question = Question("ResumeJob", request, self._local.resume)
        return await self._order("resume", question, pb.ResumeJobResponse(), call)

    @unary
    async def ReplaySetAsideRows(  # noqa: D102, N802
        self, request: pb.ReplaySetAsideRowsRequest, call: Call
    ) -> pb.ReplaySetAsideRowsResponse:
        self._local.check_region(request.region_code)
        question = Question("ReplaySetAsideRows", request, self._local.replay)
        where = {"region_code": request.region_code} if request.region_code else {}
        return await self._order("replay", question, pb.ReplaySetAsideRowsResponse(), call, where)

    @unary
    async def ListSetAsideRows(  # noqa: D102, N802
        self, request: pb.ListSetAsideRowsRequest, call: Call
    ) -> pb.ListSetAsideRowsResponse:
        check_job(request.job)
        if call.context.origin_idc not in {"", self._local.idc}:
            raise _stays()
        self._local.check_region(request.region_code)
        return await self._local.list_set_aside(request)

    async def _order(
        self,
        name: str,
        question: Question[_Order, _Response],
        answer: _Response,
        call: Call,
        where: dict[str, str] | None = None,
    ) -> _Response:
        """Decides, records and gives an order, to its end whatever becomes of the caller."""
        check_job(question.request.job)
        check_words(question.request.author, question.request.message)
        return await self._begun.finish(self._give(name, question, answer, call, where or {}))

    async def _give(
        self, name: str, question: Question[_Order, _Response], answer: _Response, call: Call, where: dict[str, str]
    ) -> _Response:
        order = question.request
        known = Question("ListJobs", pb.ListJobsRequest(job=order.job), self._local.list_jobs)
        before = await self._peers.ask(self._peers.choose(order.idcs), known, call.context)
        if name == "trigger":
            check_batch([job.kind for it in before.found.values() for job in it.jobs])
        idcs = tuple(before.found)
        content = {"order": name, "job": order.job, "idcs": idcs, **where}
        with told_as_ours():
            await self._audit.append(Fact("job", {**content, "author": order.author, "message": order.message}))
        given = await self._peers.ask(idcs, question, call.context)
        _merged(answer, given)
        # Every answer to an order names those that did not get it.
        told: Any = answer
        told.unreachable.extend(sorted({*before.unreachable, *given.unreachable}))
        return answer


class PeerJobService(JobServiceServicer):
    """Serves the jobs of this IDC to gateways of others; asks nobody."""

    def __init__(self, ladder: Ladder, local: LocalJobs) -> None:
        self.ladder = ladder
        self._local = local

    @unary
    async def ListJobs(self, request: pb.ListJobsRequest, call: Call) -> pb.ListJobsResponse:  # noqa: D102, N802
        return await _for_peer(call, self._local.list_jobs, request)

    @unary
    async def ListJobOffsets(  # noqa: D102, N802
        self, request: pb.ListJobOffsetsRequest, call: Call
    ) -> pb.ListJobOffsetsResponse:
        return await _for_peer(call, self._local.list_offsets, request)

    @unary
    async def ListJobRuns(  # noqa: D102, N802
        self, request: pb.ListJobRunsRequest, call: Call
    ) -> pb.ListJobRunsResponse:
        return await _for_peer(call, self._local.list_runs, request)

    @unary
    async def TriggerJob(self, request: pb.TriggerJobRequest, call: Call) -> pb.TriggerJobResponse:  # noqa: D102, N802
        return await _for_peer(call, partial(self._local.trigger, traceparent=call.traceparent), request)

    @unary
    async def PauseJob(self, request: pb.PauseJobRequest, call: Call) -> pb.PauseJobResponse:  # noqa: D102, N802
        return await _for_peer(call, self._local.pause, request)

    @unary
    async def ResumeJob(self, request: pb.ResumeJobRequest, call: Call) -> pb.ResumeJobResponse:  # noqa: D102, N802
        return await _for_peer(call, self._local.resume, request)

    @unary
    async def ReplaySetAsideRows(  # noqa: D102, N802
        self, request: pb.ReplaySetAsideRowsRequest, call: Call
    ) -> pb.ReplaySetAsideRowsResponse:
        return await _for_peer(call, self._local.replay, request)

    @unary
    async def ListSetAsideRows(  # noqa: N802
        self, _request: pb.ListSetAsideRowsRequest, _call: Call
    ) -> pb.ListSetAsideRowsResponse:
        """Refuses every peer."""
        raise _stays()


_Request = TypeVar("_Request")


async def _for_peer(call: Call, here: Callable[[_Request], Awaitable[_Response]], request: _Request) -> _Response:
    check_ingress(call.context.ingress_idc)
    return await here(request)


def _merged(answer: _Response, answers: Answers[_Response]) -> _Response:
    """Adds what each IDC has answered: all fields are lists."""
    for each in answers.found.values():
        answer.MergeFrom(each)
    return answer


def _stays() -> AccessDenied:
    return AccessDenied("rows that were set aside are shown inside their IDC only: their keys cross no border")
