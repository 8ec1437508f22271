"""What changes between two steps of a run: it ends without saving, and the next one does it once (requirement U9).

The three steps are: find the start offset, filter (or read) the rows, save the offset.
"""

from __future__ import annotations

import pytest

from regionjobs.definition import job
from regionjobs.source import AdoptedTable
from rowstore.jobs.model import RunResult
from tests.support.job_runner_parts import CLAIM, PAGE, SELECT, Recorder
from tests.support.job_runner_site import LAW

ADOPTED = AdoptedTable("adopted", position="id", region_code="region", key="name")
ONLY_FRANCE = LAW.replace("EU: [DE, FR]", "EU: [FR]").replace("regions: [EU], jur", "regions: [DE, FR], jur")


class Change:
    """Something that happens once, between two steps of a run in fra whose first shard is one of DE."""

    def __init__(self, site, runner, name):
        self.site, self.runner, self.name = site, runner, name

    async def __call__(self):
        await getattr(self, self.name)()
        # The runner knows of it, and its run is still under way.
        await self.runner.sees(self.site.revision)

    async def a_shard_comes(self):
        await self.site.move("FR", 1, "fra")

    async def a_shard_leaves_and_is_back(self):
        await self.site.move("DE", 0, "ams")
        await self.site.move("DE", 0, "fra")

    async def a_shard_leaves(self):
        await self.site.move("DE", 0, "ams")

    async def the_policy_takes_the_region_from_the_job(self):
        await self.site.apply(ONLY_FRANCE)


CHANGES = [name for name in vars(Change) if name.startswith(("a_", "the_"))]
"""In an order in which one can follow the other."""


REASONS = {
    "a_shard_comes": ["FR/1 has come"],
    "a_shard_leaves_and_is_back": ["DE/0 is draining", "DE/0 has been away and is back"],
    "a_shard_leaves": ["DE/0 is draining", "DE/0 has moved to ams"],
    "the_policy_takes_the_region_from_the_job": ["DE/1 is not of the job's regions any more"],
}


async def fill(site, scan):
    """Two changes in each shard, for either scan; returns what must be in the ledger in the end."""
    wanted, position = [], 0
    for code in ("DE", "FR"):
        for shard in range(2):
            keys = site.keys_in(code, shard, 2)
            if scan == "per shard":
                wanted += [f"{code}/{shard}/{seq}" for seq in await site.put(code, *keys)]
                continue
            for key in keys:
                position += 1
                wanted.append(f"{code}/{shard}/{position}")
                for idc in site.idcs.values():
                    await idc.hand.execute("INSERT INTO adopted VALUES ($1, $2, $3)", position, code, key)
    return sorted(wanted)


def name_of(change):
    return change.replace("_", "-")


def jobs_of(scan, recorders):
    where = {"dataset": "customers"} if scan == "per shard" else {"source": ADOPTED}
    return [
        job(name=name_of(change), regions=["EU"], concurrency=1, **where)(recorder)
        for change, recorder in recorders.items()
    ]


@pytest.mark.parametrize("step", ["before finding", "between finding and filtering", "between filtering and saving"])
@pytest.mark.parametrize("scan", ["per shard", "global"])
async def test_a_run_sees_one_set_of_shards_or_ends_without_saving(site, scan, step):
    wanted = await fill(site, scan)
    recorders = {change: Recorder() for change in CHANGES}
    jobs = jobs_of(scan, recorders)
    async with site.runner("fra", *jobs) as runner, site.runner("ams", *jobs):
        for change, recorder in recorders.items():
            name, happening = name_of(change), Change(site, runner, change)
            match step:
                case "before finding":
                    runner.before(CLAIM, happening)
                case "between finding and filtering":
                    runner.before(PAGE if scan == "per shard" else SELECT, happening)
                case _:
                    recorder.then = happening
            await site.passed("fra", name)
            assert (dict(runner.hooks), recorder.then) == ({}, None), f"{change} did not happen"
            first = (await site.runs("fra", name, 1))[0]
            assert first.result is RunResult.ENDED, change
            assert first.reason in REASONS[change], change
            # What comes is no matter to a batch that is under way; whatever takes something away undoes it.
            assert first.rows == 0 or change == "a_shard_comes", change
            if change.startswith("the_policy"):
                assert {entry[:2] for entry in await site.ledger(name)} == {"FR"}
                await site.apply()
            await site.passed("fra", name)
            await site.passed("ams", name)
            assert await site.ledger(name) == wanted, change
