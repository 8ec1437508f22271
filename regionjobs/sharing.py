"""Which shards are a runner's to work on: what its IDC owns now, of the job's regions, and its share among the runners.

Pure: from a routing table and the live runners. The same inputs give the same share on every runner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policy.errors import InvalidJob
from policy.groups import Groups, UnknownName
from policy.model import Phase
from regionjobs.distribution import share
from rowstore.model import ShardEpoch

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from policy.compile import Policy
    from policy.records import RunnerRecord
    from policy.table import RoutingTable
    from regionjobs.definition import Job

WORKABLE: Final = frozenset({Phase.SERVING, Phase.COPYING, Phase.ABORTING, Phase.PURGING})
"""Phases in which jobs begin work on a shard of their IDC: the fence may let it be taken."""

Share = frozenset[ShardEpoch]


def regions_of(job: Job, policy: Policy) -> tuple[str, ...]:
    """RegionCodes of a job by this policy.

    Raises `InvalidJob`: the policy does not have the dataset, or a region.
    """
    if job.dataset and job.dataset not in policy.datasets:
        known = ", ".join(sorted(policy.datasets)) or "none"
        raise InvalidJob(
            f"job {job.name}: dataset: the policy has no dataset {job.dataset!r}; it has {known}", field_name="dataset"
        )
    if not job.regions:
        return tuple(policy.regions)
    groups = Groups({name: tuple(members) for name, members in policy.document.groups.items()})
    try:
        codes = groups.expand(job.regions)
    except UnknownName as error:
        raise InvalidJob(f"job {job.name}: regions: {error}", field_name="regions") from None
    for code in codes:
        if code not in policy.regions:
            raise InvalidJob(f"job {job.name}: regions: no residency rule covers {code}", field_name="regions")
    return codes


def owned(table: RoutingTable, idc: str, regions: tuple[str, ...]) -> list[ShardEpoch]:
    """Shards of the regions that the IDC owns and may work on."""
    return [
        ShardEpoch(route.region_code, route.shard, route.epoch)
        for code in regions
        for route in table.routes_of(code)
        if route is not None and route.idc == idc and route.phase in WORKABLE
    ]


class Sharing:
    """Works out one job's share, anew only when something has changed that it depends on."""

    def __init__(self, job: Job, idc: str) -> None:
        self._job = job
        self._idc = idc
        self._known: tuple[object, ...] = ()
        self._share: Share = frozenset()
        self._regions: tuple[int, tuple[str, ...]] = (-1, ())

    def regions(self, policy: Policy) -> tuple[str, ...]:
        """See `regions_of`."""
        if self._regions[0] != policy.revision:
            self._regions = (policy.revision, regions_of(self._job, policy))
        return self._regions[1]

    def share(self, table: RoutingTable, members: Mapping[str, RunnerRecord], me: str) -> Share:
        """The shards that are runner `me`'s; empty when it is not among the members. Raises `InvalidJob`."""
        regions = self.regions(table.policy)
        runners = tuple(sorted(name for name, record in members.items() if self._job.name in record.jobs))
        inputs = (regions, runners, me, *(table.routes_of(code) for code in regions))
        # Tables share what has not changed: mostly it is the very same objects.
        if len(inputs) != len(self._known) or any(
            new is not old and new != old for new, old in zip(inputs, self._known, strict=True)
        ):
            self._known, self._share = inputs, self._work_out(table, regions, runners, me)
        return self._share

    def _work_out(self, table: RoutingTable, regions: tuple[str, ...], runners: tuple[str, ...], me: str) -> Share:
        if me not in runners:
            return frozenset()
        shards = {shard[:2]: shard for shard in owned(table, self._idc, regions)}
        mine = share(self._job.name, shards, runners, me)
        return frozenset(shards[key] for key in mine)


def difference(held: Share, wanted: Share, table: RoutingTable, idc: str, regions: Collection[str]) -> str:
    """Why a run that holds some shards must end, in one sentence; `regions` are the job's by the table's policy."""
    gone = sorted(held - wanted)
    changed = gone or sorted(wanted - held)
    shard = changed[0]
    more = f", and {len(changed) - 1} more," if len(changed) > 1 else ""
    why = _why_gone(shard, table, idc, regions) if gone else "has come"
    return f"{shard.region_code}/{shard.shard}{more} {why}"


def _why_gone(shard: ShardEpoch, table: RoutingTable, idc: str, regions: Collection[str]) -> str:
    if shard.region_code not in regions:
        return "is not of the job's regions any more"
    route = table.route(shard.region_code, shard.shard)
    if route is None:
        return "has no owner now"
    if route.idc != idc:
        return f"has moved to {route.idc}"
    if route.epoch != shard.epoch:
        return "has been away and is back"
    return f"is {route.phase.value}" if route.phase not in WORKABLE else "is another runner's now"
