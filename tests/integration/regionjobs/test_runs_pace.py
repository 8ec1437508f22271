"""How fast jobs go: by a rate, and slower while others need the database more."""

from __future__ import annotations

import time
from datetime import timedelta
from itertools import accumulate
from urllib.parse import urlsplit, urlunsplit

from regionjobs import metrics
from regionjobs.definition import job
from tests.support.cluster import eventually
from tests.support.tcp_proxy import TcpProxy

RATE = 200.0


async def test_a_job_keeps_its_rate_within_a_fifth(site):
    """Whatever it may do at once in the first second is its due, so only what comes after is counted."""
    for shard in range(2):
        await site.put("DE", *site.keys_in("DE", shard, 250))
    done = []

    async def note(batch):
        done.append((time.monotonic(), len(batch)))

    made = job(name="paced", dataset="customers", regions=["DE"], rate=RATE, batch_size=10)(note)
    async with site.runner("fra", made):
        await site.passed("fra", "paced")
        (run,) = await site.runs("fra", "paced", 1)
    assert run.rows == 500
    counts = list(accumulate(rows for _, rows in done))
    start = next(index for index, rows in enumerate(counts) if rows >= RATE)
    seconds = done[-1][0] - done[start][0]
    rate = (counts[-1] - counts[start]) / seconds
    assert 0.8 * RATE <= rate <= 1.2 * RATE
    assert metrics.PAUSED_SECONDS.labels("paced")._value.get() > 0


async def test_a_job_slows_down_while_the_database_is_slow_and_recovers(site):
    for shard in range(2):
        await site.put("DE", *site.keys_in("DE", shard, 400))
    counts = {"polite": 0, "plain": 0}

    def counting(name):
        async def count(batch):
            counts[name] += 1

        return count

    words = {"dataset": "customers", "regions": ["DE"], "kind": "long-running", "batch_size": 1, "concurrency": 2}
    polite = job(name="polite", yield_above=timedelta(milliseconds=60), **words)(counting("polite"))
    plain = job(name="plain", **words)(counting("plain"))
    parts = urlsplit(site.idcs["fra"].url)
    async with TcpProxy(parts.port) as proxy:
        slow = urlunsplit(parts._replace(netloc=parts.netloc.replace(str(parts.port), str(proxy.port))))
        async with site.whole_runner("fra", polite, plain, url=slow) as runner:
            pace = runner.loop("polite").pace
            await eventually(lambda: min(counts.values()) > 0, 20)
            proxy.delay = 0.05
            await eventually(lambda: pace.speed < 0.2, 20)
            begun = dict(counts)
            await eventually(lambda: counts["plain"] >= begun["plain"] + 20, 20)
            assert counts["polite"] - begun["polite"] <= 10
            lowest = pace.speed
            proxy.delay = 0.0
            await eventually(lambda: pace.speed > lowest, 20)
    assert metrics.PAUSED_SECONDS.labels("polite")._value.get() > 0
    assert metrics.PAUSED_SECONDS.labels("plain")._value.get() == 0
