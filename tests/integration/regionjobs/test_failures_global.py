"""Rows of a source that fail: set aside, stopped at, and tried again, each in the shard that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field

from regionjobs.definition import Kind, OnPoison, job
from regionjobs.source import AdoptedTable
from rowstore.jobs import registry
from tests.support.job_failures import QUICK, Poison
from tests.support.job_runner_parts import enter
from tests.support.row_databases import until

ADOPTED = AdoptedTable("adopted", position="id", region_code="region", key="name")
SHARDS = {1: 0, 2: 1, 3: 0, 4: 1, 5: 0, 6: 1}
"""Position -> shard of DE; both are fra's."""


@dataclass
class Moody:
    """A handler that cannot bear some positions, until it can."""

    bad: set[int] = field(default_factory=set)
    batches: list[tuple[bool, list[int]]] = field(default_factory=list)
    shards: list[tuple[tuple[str, int], ...]] = field(default_factory=list)

    async def __call__(self, batch):
        self.batches.append((batch.is_replay, [row.position for row in batch.rows]))
        self.shards.append(batch.shards)
        await enter(batch, [batch.idempotency_key(row).split("/")[1:] for row in batch.rows])
        if self.bad & {row.position for row in batch.rows}:
            raise Poison


def places(handler, **words):
    words = {"name": "places", "source": ADOPTED, "regions": ["DE"], "retry": QUICK} | words
    return job(**words)(handler)


async def show(site, *positions):
    """Rows appear in the adopted table."""
    keys = {shard: site.keys_in("DE", shard, len(SHARDS)) for shard in (0, 1)}
    for position in positions:
        name = keys[SHARDS[position]][position - 1]
        await site.idcs["fra"].hand.execute("INSERT INTO adopted VALUES ($1, 'DE', $2)", position, name)


async def positions(site):
    """What the ledger has, shard and position."""
    return sorted((int(seq), int(shard)) for _, shard, seq in (it.split("/") for it in await site.ledger("places")))


async def asides(site):
    rows, _ = await registry.set_aside_rows(site.idcs["fra"].database.fetch, "places", "", 100)
    return [(row.seq, row.shard, row.attempts, row.error_class) for row in rows]


async def replay(site):
    """Orders that everything that is set aside is tried again."""
    await registry.replay(site.idcs["fra"].database.fetch, "places", "")
    await site.ring("fra")


async def test_poisoned_rows_of_a_source_are_set_aside_in_their_shards_and_replayed_by_position(site):
    handler = Moody({2, 3, 6})
    await show(site, *SHARDS)
    async with site.runner("fra", places(handler, batch_size=4)):
        await site.passed("fra", "places")
        assert await positions(site) == [(1, 0), (4, 1), (5, 0)]
        assert sorted(await asides(site)) == [(2, 1, 3, "Poison"), (3, 0, 3, "Poison"), (6, 1, 3, "Poison")]
        offsets = await site.offsets("fra", "places")
        assert offsets == {("DE", 0): 6, ("DE", 1): 6}

        # One is borne now, one is not, and one is gone.
        handler.bad = {3}
        handler.batches.clear()
        handler.shards.clear()
        await site.idcs["fra"].hand.execute("DELETE FROM adopted WHERE id = 6")
        await replay(site)

        async def is_over():
            return [it[0] for it in await asides(site)] == [3] and (await asides(site))[0][2] == 6

        await until(is_over, "2 is handled, 3 has failed again, 6 is forgotten")
        assert await positions(site) == [(1, 0), (2, 1), (4, 1), (5, 0)]
        # No firing was open: nothing else was handed over, and only the shards concerned were held to be ours.
        assert all(is_replay and set(seen) <= {2, 3} for is_replay, seen in handler.batches)
        assert handler.batches[0] == (True, [2, 3])
        assert set(handler.shards) == {(("DE", 0), ("DE", 1)), (("DE", 1),), (("DE", 0),)}
        assert await site.offsets("fra", "places") == offsets
        await site.passed("fra", "places")
        assert await positions(site) == [(1, 0), (2, 1), (4, 1), (5, 0)]


async def test_a_source_stops_in_the_shard_of_the_row_that_fails_and_goes_on_in_the_others(site):
    handler = Moody({3})
    await show(site, 1, 2, 3, 4)
    forever = places(handler, kind=Kind.LONG_RUNNING, on_poison=OnPoison.STOP)
    async with site.runner("fra", forever):
        await site.entered("places", 3)
        await show(site, 5, 6)

        async def has_passed():
            return (6, 1) in await positions(site)

        await until(has_passed, "the other shard goes on")
        assert await positions(site) == [(1, 0), (2, 1), (4, 1), (6, 1)]
        query = "SELECT shard, seq, is_stopped FROM job_offsets WHERE job = 'places' ORDER BY shard"
        states = [tuple(record) for record in await site.idcs["fra"].hand.fetch(query)]
        assert states == [(0, 2, True), (1, 6, False)]
        tries = len(handler.batches)
        handler.bad.clear()
        await registry.resume(site.idcs["fra"].database.fetch, "places")
        await site.ring("fra")
        await site.entered("places", 6)
    assert await positions(site) == [(position, SHARDS[position]) for position in sorted(SHARDS)]
    # It took up where the shard had stopped, and what the other shard had passed was not handed over again.
    assert [seen for _, seen in handler.batches[tries:]] == [[3, 5]]
    assert await asides(site) == []
