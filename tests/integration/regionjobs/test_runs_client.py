"""What a handler does through the gateway of its IDC."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta

import regiongate
from regionjobs.definition import Retry, job
from tests.support.gateways import Site, running_gateway, until
from tests.support.job_runner_parts import enter


@asynccontextmanager
async def client_of(site, idc):
    """The SDK's client of a gateway on the site's database."""
    gateways = Site(site.endpoint, site.keys.root.split("/")[2], {idc: site.idcs[idc].url})
    async with running_gateway(gateways, idc) as running:
        await until(lambda: running.gateway.readiness().is_ready)
        async with regiongate.connect(str(running.gateway.address)) as client:
            yield client


async def test_what_a_handler_does_through_the_client_is_judged_like_any_request(site):
    await site.put("DE", *site.keys_in("DE", 0, 2))
    (copy,) = site.keys_in("FR", 0, 1, "copy")
    seen = []

    async def awaiting(batch):
        seen.extend([(await batch.client.get("customers", row.region_code, row.key)).version for row in batch])
        await batch.client.put("customers", "FR", copy, {"spend": len(batch)})
        await enter(batch, [batch.idempotency_key(row).split("/")[1:] for row in batch])

    def waiting(batch):
        seen.extend(batch.client.get("customers", row.region_code, row.key).version for row in batch)

    async def trespassing(batch):
        await batch.client.put("customers", "SG", "not-from-here", {"spend": 1})

    kinds = [awaiting, waiting, trespassing]
    jobs = [
        job(dataset="customers", regions=["DE"], retry=Retry(attempts=1, first_pause=timedelta(milliseconds=10)))(it)
        for it in kinds
    ]
    async with client_of(site, "fra") as client, site.runner("fra", *jobs, sdk=client):
        for it in kinds:
            await site.passed("fra", it.__name__)
        (refused,) = await site.runs("fra", "trespassing", 1)
    assert seen == [1, 2, 1, 2]
    assert await site.ledger("awaiting") == ["DE/0/1", "DE/0/2"]
    assert (refused.set_aside, refused.rows) == (2, 0)
    errors = await site.idcs["fra"].hand.fetch("SELECT DISTINCT error_class FROM job_set_aside")
    assert [record[0] for record in errors] == ["AccessDenied"]


async def test_without_a_gateway_a_handler_that_needs_one_waits_and_costs_no_row(site):
    tries = []

    async def asking(batch):
        tries.append(batch.attempt)
        if len(tries) < 4:
            await batch.client.get("customers", "DE", "anything")
        await enter(batch, [batch.idempotency_key(row).split("/")[1:] for row in batch])

    await site.put("DE", *site.keys_in("DE", 0, 1))
    made = job(dataset="customers", regions=["DE"], retry=Retry(attempts=2, first_pause=timedelta(milliseconds=10)))
    async with site.runner("fra", made(asking)):
        await site.passed("fra", "asking")
        (run,) = await site.runs("fra", "asking", 1)
    assert (run.failures, run.set_aside, run.rows) == (0, 0, 1)
    assert await site.ledger("asking") == ["DE/0/1"]
