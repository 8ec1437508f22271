"""Scans of one source as a whole: where they start, what they filter, and what they save."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from regionjobs import metrics
from regionjobs.definition import Kind, Retry, job
from regionjobs.source import AdoptedTable, CallableSource
from tests.support.job_runner_parts import Recorder
from tests.support.row_databases import until

ADOPTED = AdoptedTable("adopted", position="id", region_code="region", key="name")
SHARDS = {1: 0, 2: 1, 3: 2, 4: 0, 5: 1, 6: 0, 7: 0}
"""Position -> shard of SG."""


class Sources:
    """The same rows in both IDCs, of which each has seen some, as a table or as whatever a program reads."""

    def __init__(self, asia, kind):
        self.asia, self.kind = asia, kind
        self.starts: dict[str, list[int]] = {"sha": [], "sin": []}
        self.seen: dict[str, list[dict[str, object]]] = {"sha": [], "sin": []}
        keys = {shard: iter(asia.keys_in("SG", shard, len(SHARDS))) for shard in range(3)}
        self.rows = [(position, next(keys[shard])) for position, shard in SHARDS.items()]

    async def show(self, idc, *positions):
        for position, name in self.rows:
            if position in positions:
                await self.asia.idcs[idc].hand.execute("INSERT INTO adopted VALUES ($1, 'SG', $2)", position, name)
                self.seen[idc].append({"position": position, "region_code": "SG", "key": name})

    def job(self, made, idc):
        """The job as it is deployed in an IDC."""

        async def select(position, limit):
            self.starts[idc].append(position)
            return [row for row in self.seen[idc] if row["position"] > position][:limit]

        return made if self.kind == "table" else replace(made, source=CallableSource(select))


def places(handler, **words):
    """A job over the adopted table."""
    words = {"name": "places", "source": ADOPTED, "regions": ["SG"]} | words
    return job(**words)(handler)


@pytest.mark.parametrize("kind", ["table", "callable"])
async def test_the_published_example_row_5_of_a_shard_that_comes_is_handled_once(asia, kind):
    sources, recorder = Sources(asia, kind), Recorder()
    made = places(recorder, batch_size=2)
    await sources.show("sha", 1, 2, 3)
    await sources.show("sin", *SHARDS)
    async with asia.runner("sha", sources.job(made, "sha")), asia.runner("sin", sources.job(made, "sin")):
        await asia.passed("sha", "places")
        await asia.passed("sin", "places")
        assert await asia.offsets("sha", "places") == {("SG", 1): 3, ("SG", 2): 3}
        assert await asia.offsets("sin", "places") == {("SG", 0): 7}
        assert await asia.ledger("places", "sha") == ["SG/1/2", "SG/2/3"]
        assert await asia.ledger("places", "sin") == ["SG/0/1", "SG/0/4", "SG/0/6", "SG/0/7"]
        recorder.batches.clear()
        sources.starts["sin"].clear()

        await asia.move("SG", 1, "sin")
        await asia.passed("sin", "places")
        assert recorder.changes == ["SG/1/5"]
        assert sources.starts["sin"][:1] == ([] if kind == "table" else [3])
        assert await asia.offsets("sin", "places") == {("SG", 0): 7, ("SG", 1): 7}
        assert await asia.ledger("places", "sin") == [f"SG/{shard}/{n}" for n, shard in _by_shard() if shard != 2]

        await sources.show("sha", 4, 5, 6, 7)
        await asia.passed("sha", "places")
        await asia.passed("sin", "places")
        assert recorder.changes == ["SG/1/5"]
        assert await asia.offsets("sha", "places") == {("SG", 2): 7}


def _by_shard():
    return sorted(SHARDS.items(), key=lambda item: (item[1], item[0]))


async def test_an_offset_is_saved_for_each_shard_of_the_run_also_where_it_has_no_row(asia):
    sources = Sources(asia, "table")
    await sources.show("sha", 1, 2)
    async with asia.runner("sha", places(Recorder())):
        await asia.passed("sha", "places")
        assert await asia.ledger("places") == ["SG/1/2"]
        assert await asia.offsets("sha", "places") == {("SG", 1): 2, ("SG", 2): 2}


async def test_a_source_without_rows_is_passed_and_stands_at_nothing(asia):
    recorder = Recorder()
    async with asia.runner("sha", places(recorder)):
        await asia.passed("sha", "places")
    assert recorder.batches == []
    assert await asia.offsets("sha", "places") == {("SG", 1): 0, ("SG", 2): 0}


async def test_a_long_running_job_takes_up_what_a_source_gets_later(asia):
    sources = Sources(asia, "table")
    await sources.show("sha", 1, 2, 3)
    async with asia.runner("sha", places(Recorder(), kind=Kind.LONG_RUNNING)):
        await asia.entered("places", 2)
        await sources.show("sha", 4, 5)
        await asia.ring("sha")
        assert await asia.entered("places", 3) == ["SG/1/2", "SG/1/5", "SG/2/3"]


async def test_two_runners_of_an_idc_share_a_source_and_handle_each_row_once(asia):
    await asia.move("SG", 0, "sha")
    sources = Sources(asia, "table")
    await sources.show("sha", *SHARDS)
    made = places(Recorder(), batch_size=2)
    async with asia.runner("sha", made, name="one"), asia.runner("sha", made, name="two"):
        await asia.passed("sha", "places")
        assert await asia.ledger("places") == [f"SG/{shard}/{n}" for n, shard in _by_shard()]
        assert set((await asia.offsets("sha", "places")).values()) == {7}
        assert sum(run.shards for run in await asia.runs("sha", "places", 1)) >= 3


async def test_rows_that_no_rule_covers_are_counted_and_handled_by_nobody(asia):
    hand = asia.idcs["sha"].hand
    keys = asia.keys_in("SG", 1, 2)
    await hand.execute(
        "INSERT INTO adopted VALUES (1, 'XX', 'nowhere'), (2, '', 'nobody'), (3, 'SG', $1), (4, 'DE', 'k')", keys[0]
    )
    recorder = Recorder()
    before = metrics.UNOWNED.labels("places")._value.get()
    async with asia.runner("sha", places(recorder, regions=())):
        await asia.passed("sha", "places")
    assert recorder.changes == ["SG/1/3"]
    assert metrics.UNOWNED.labels("places")._value.get() == before + 2


async def test_batches_of_a_source_say_what_they_hold(asia):
    sources, seen = Sources(asia, "table"), []
    await sources.show("sha", 1, 2, 3)

    async def look(batch):
        rows = [(row.position, row.region_code, row.key, dict(row.value)) for row in batch]
        seen.append((batch.region_code, batch.shard, batch.shards, len(batch), rows, batch.idc, batch.policy_revision))

    async with asia.runner("sha", places(look)):
        await asia.passed("sha", "places")
    (_, two), (_, three) = sources.rows[1:3]
    rows = [
        (2, "SG", two, {"id": 2, "region": "SG", "name": two, "size": 1}),
        (3, "SG", three, {"id": 3, "region": "SG", "name": three, "size": 1}),
    ]
    assert seen == [("", -1, (("SG", 1), ("SG", 2)), 2, rows, "sha", 1)]


async def test_a_row_of_a_source_that_keeps_failing_is_set_aside_and_the_others_are_handled(asia):
    sources, recorder = Sources(asia, "table"), Recorder()
    await sources.show("sha", *SHARDS)

    async def choosy(batch):
        if any(row.position == 3 for row in batch):
            raise ValueError("not this one")
        await recorder(batch)

    async with asia.runner("sha", places(choosy, retry=Retry(attempts=1))):
        await asia.passed("sha", "places")
        (run,) = await asia.runs("sha", "places", 1)
    assert recorder.changes == ["SG/1/2", "SG/1/5"]
    assert await asia.ledger("places") == ["SG/1/2", "SG/1/5"]
    assert await asia.offsets("sha", "places") == {("SG", 1): 7, ("SG", 2): 7}
    aside = await asia.idcs["sha"].hand.fetch("SELECT region_code, shard, seq FROM job_set_aside")
    assert [tuple(record) for record in aside] == [("SG", 2, 3)]
    assert (run.rows, run.set_aside, run.result.value) == (2, 1, "done")


async def test_a_source_that_breaks_its_promise_moves_no_offset_and_the_runner_goes_on(asia):
    asked = []

    async def select(position, limit):
        asked.append(position)
        return [{"position": 2, "region_code": "SG", "key": "a"}, {"position": 2, "region_code": "SG", "key": "b"}]

    recorder = Recorder()
    made = places(recorder, source=CallableSource(select), retry=Retry(attempts=1))
    good = job(name="good", dataset="customers", regions=["SG"])(Recorder())
    async with asia.runner("sha", made, good):
        await asia.fire("sha", "places")

        async def is_asked_again():
            return len(asked) >= 2

        await until(is_asked_again, "the source is asked again")
        await asia.passed("sha", "good")
    assert recorder.batches == []
    assert set((await asia.offsets("sha", "places")).values()) == {0}


async def test_a_source_that_raises_or_hangs_is_asked_again_in_the_same_run(asia):
    sources, recorder = Sources(asia, "callable"), Recorder()
    await sources.show("sha", 1, 2)
    asked = []

    async def select(position, limit):
        asked.append(position)
        match len(asked):
            case 1:
                raise RuntimeError("the source is down")
            case 2:
                raise ConnectionError("and away")
            case 3:
                await asyncio.Event().wait()
        return [row for row in sources.seen["sha"] if row["position"] > position][:limit]

    patient = Retry(first_pause=timedelta(milliseconds=20))
    made = places(recorder, source=CallableSource(select), timeout=timedelta(milliseconds=200), retry=patient)
    async with asia.runner("sha", made):
        await asia.passed("sha", "places")
        (run,) = await asia.runs("sha", "places", 1)
    assert recorder.changes == ["SG/1/2"]
    assert (asked, run.result.value) == ([0, 0, 0, 0], "done")
