"""A row's move that is paused, cut off or loses its answers: it happens once and whole, or not at all (laws L3, L4).

Readers look at both names all the while: once the row is seen gone from its old name it is seen under its new one, and
once it is seen there it is not seen at the old one any more.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager

import grpc.aio
import pytest
import pytest_asyncio

from policy.errors import PeerUnreachable, RowExists, RowMoving, RowNotFound, VersionConflict
from regiongate.v1 import row_service_pb2 as pb
from tests.support.gateways import Site, running_site
from tests.support.linearizability import Event, is_linearizable
from tests.support.row_move_site import POLICY, RELOCATION, STEPS, conductor, get, move, put

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 15.0
_numbers = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(etcd, postgres_server):
    async with running_site(etcd.endpoint, postgres_server, "fra", "sin", "sha", policy=POLICY) as running:
        yield running


@pytest.fixture
def name() -> str:
    return f"row-{next(_numbers)}"


async def read(site: Site, region: str, text: str, timeout: float = PATIENCE) -> int | None:
    """The row's spend, read at home; None without a row."""
    try:
        answer = await site["fra" if region == "DE" else "sin"].rows.GetRow(get(region, text), timeout=timeout)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return None
    return answer.row.columns["spend"].int64_value


class Watch:
    """Readers of both names, and what they have seen."""

    def __init__(self, site: Site, text: str) -> None:
        self._site = site
        self._text = text
        self.histories: dict[str, list[Event]] = {"DE": [], "SG": []}
        self._stop = asyncio.Event()

    async def look(self, region: str) -> None:
        now = asyncio.get_running_loop().time
        while not self._stop.is_set():
            start = now()
            value = await read(self._site, region, self._text)
            self.histories[region].append(Event(is_write=False, value=value, start=start, end=now()))

    def stop(self) -> None:
        self._stop.set()

    def check(self) -> None:
        """At no instant both, at no instant neither."""
        for one, other in itertools.permutations(self.histories.values()):
            gone = [seen.end for seen in one if seen.value is None]
            if gone and one is self.histories["DE"]:
                late = [seen for seen in other if seen.start >= min(gone) and seen.value is None]
                assert not late, "neither was seen"
            live = [seen.end for seen in one if seen.value is not None]
            if live and one is self.histories["SG"]:
                late = [seen for seen in other if seen.start >= min(live) and seen.value is not None]
                assert not late, "both were seen"


@asynccontextmanager
async def watched(site: Site, text: str, readers: int = 2):
    watch = Watch(site, text)
    async with asyncio.TaskGroup() as group:
        for region in ("DE", "SG"):
            for _ in range(readers):
                group.create_task(watch.look(region))
        try:
            yield watch
        finally:
            watch.stop()
    watch.check()


async def seen(watch: Watch, condition) -> None:
    """Waits until the readers have seen what is to be seen."""
    async with asyncio.timeout(PATIENCE):
        while not condition(watch.histories):  # noqa: ASYNC110 (readers ring no bell)
            await asyncio.sleep(0.005)


async def test_readers_of_both_names_see_the_row_once_at_every_instant(site: Site) -> None:
    for text in [f"watched-{number}" for number in range(20)]:
        await site["fra"].rows.PutRow(put("DE", text, spend=1), timeout=5)
        async with watched(site, text) as watch:
            await seen(watch, lambda found: all(found.values()))
            await site["fra"].rows.MoveRow(move("DE", text, "SG"), timeout=10, metadata=RELOCATION)
            await seen(watch, lambda found: found["DE"][-1].value is None and found["SG"][-1].value == 1)


@pytest.mark.parametrize("step", ["arrive", "settle"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_conductor_that_stands_still_is_overtaken_and_does_no_harm_when_it_wakes(
    site: Site, name: str, step: str, when: str
) -> None:
    await site["fra"].rows.PutRow(put("DE", name, spend=1), timeout=5)
    async with conductor(site, "fra") as frozen, watched(site, name) as watch:
        thaw = asyncio.Event()
        pauses = frozen.homes.pauses_before if when == "before" else frozen.homes.pauses_after
        pauses[STEPS[step]] = thaw
        moving = asyncio.create_task(frozen.move(move("DE", name, "SG")))
        await frozen.homes.reached.wait()
        # The gateways' own sweepers find the departure, and end it by its state.
        has_left = step == "settle"
        end = {"DE": None, "SG": 1} if has_left else {"DE": 1, "SG": None}
        await asyncio.wait_for(until_over(site), PATIENCE)
        assert {region: await read(site, region, name) for region in end} == end
        thaw.set()
        answer = (await asyncio.gather(moving, return_exceptions=True))[0]
        # A move that was undone begins again; one that was completed is answered as such.
        assert isinstance(answer, pb.MoveRowResponse | RowMoving), answer
        await asyncio.wait_for(until_over(site), PATIENCE)
        if isinstance(answer, pb.MoveRowResponse):
            end = {"DE": None, "SG": 1}
        await seen(watch, lambda found: all(found[region][-1].value == value for region, value in end.items()))


async def until_over(site: Site) -> None:
    """Waits until nothing is on its way in any database."""
    import asyncpg

    for idc in site.gateways:
        connection = await asyncpg.connect(site.databases[idc])
        try:
            while await connection.fetchval(  # noqa: ASYNC110 (the database rings no bell)
                "SELECT (SELECT count(*) FROM row_departures) + (SELECT count(*) FROM row_arrivals)"
            ):
                await asyncio.sleep(0.02)
        finally:
            await connection.close()


@pytest.mark.parametrize("step", ["arrive", "settle"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_caller_that_repeats_after_lost_messages_moves_the_row_once(
    site: Site, name: str, step: str, when: str
) -> None:
    written = await site["fra"].rows.PutRow(put("DE", name, spend=1), timeout=5)
    request = move("DE", name, "SG", if_version=written.receipt.version)
    async with conductor(site, "fra") as lossy, watched(site, name):
        loses = lossy.homes.loses_before if when == "before" else lossy.homes.loses_after
        loses.add(STEPS[step])
        with pytest.raises((PeerUnreachable, RowMoving)):
            await lossy.move(request)
        loses.clear()
        again = await lossy.move(request)
        assert (await lossy.move(request)).receipt == again.receipt
        assert (await read(site, "DE", name), await read(site, "SG", name)) == (None, 1)


async def test_an_arrival_that_comes_after_its_move_was_called_off_is_turned_away(site: Site, name: str) -> None:
    await site["fra"].rows.PutRow(put("DE", name, spend=1), timeout=5)
    async with conductor(site, "fra") as late:
        thaw = asyncio.Event()
        late.homes.pauses_before[STEPS["arrive"]] = thaw
        moving = asyncio.create_task(late.move(move("DE", name, "SG")))
        await late.homes.reached.wait()
        await late.sweep()
        # Its departure is over before the arrival is written; nobody will ever settle or cancel that one.
        moving.cancel()
        thaw.set()
        await asyncio.wait_for(until_over(site), PATIENCE)
        assert late.homes.asked.count(STEPS["arrive"]) >= 1
    assert await read(site, "SG", name) in (None, 1)
    assert (await read(site, "DE", name) is None) == (await read(site, "SG", name) == 1)


async def test_a_caller_that_goes_away_leaves_no_row_on_its_way(site: Site, name: str) -> None:
    await site["fra"].rows.PutRow(put("DE", name, spend=1), timeout=5)
    async with conductor(site, "fra") as patient:
        thaw = asyncio.Event()
        patient.homes.pauses_before[STEPS["settle"]] = thaw
        moving = asyncio.create_task(patient.move(move("DE", name, "SG")))
        await patient.homes.reached.wait()
        moving.cancel()
        await asyncio.wait({moving})
        thaw.set()
        await patient.mover.drain()
        # No sweeper has been needed.
        assert await read(site, "SG", name, timeout=0.5) == 1


async def test_while_nobody_can_settle_it_the_new_name_says_that_the_row_is_moving(site: Site, name: str) -> None:
    await site["fra"].rows.PutRow(put("DE", name, spend=1), timeout=5)
    async with conductor(site, "fra") as frozen:
        thaw = asyncio.Event()
        frozen.homes.pauses_after[STEPS["arrive"]] = thaw
        moving = asyncio.create_task(frozen.move(move("DE", name, "SG")))
        await frozen.homes.reached.wait()
        rows = site["sin"].rows
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rows.GetRow(get("SG", name), timeout=0.5)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        insert = put("SG", name, spend=2)
        insert.if_version = 0
        listing = pb.ListRowsRequest(dataset="customers", region_code="SG", page_size=1000)
        inserting = asyncio.create_task(refused_with(rows.PutRow(insert, timeout=PATIENCE)))
        listed = asyncio.ensure_future(rows.ListRows(listing, timeout=PATIENCE))
        thaw.set()
        await moving
        # The insert has waited for the row, and the listing, too.
        assert await inserting == grpc.StatusCode.ABORTED
        assert name in [row.key.string_key for row in (await listed).rows]


async def refused_with(call) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_a_row_that_is_written_while_it_is_to_move_moves_as_it_is_then(site: Site, name: str) -> None:
    rows = site["fra"].rows
    await rows.PutRow(put("DE", name, spend=1), timeout=5)
    async with conductor(site, "fra") as slow:
        thaw = asyncio.Event()
        slow.homes.pauses_after[STEPS["arrive"]] = thaw
        moving = asyncio.create_task(slow.move(move("DE", name, "SG")))
        await slow.homes.reached.wait()
        await rows.PutRow(put("DE", name, spend=2), timeout=5)
        thaw.set()
        await moving
    assert (await read(site, "DE", name), await read(site, "SG", name)) == (None, 2)


async def test_a_row_that_is_written_while_a_version_of_it_is_to_move_stays(site: Site, name: str) -> None:
    rows = site["fra"].rows
    written = await rows.PutRow(put("DE", name, spend=1), timeout=5)
    async with conductor(site, "fra") as slow:
        thaw = asyncio.Event()
        slow.homes.pauses_after[STEPS["arrive"]] = thaw
        moving = asyncio.create_task(slow.move(move("DE", name, "SG", if_version=written.receipt.version)))
        await slow.homes.reached.wait()
        changed = await rows.PutRow(put("DE", name, spend=2), timeout=5)
        thaw.set()
        with pytest.raises(VersionConflict) as caught:
            await moving
        assert caught.value.current == changed.receipt.version
    assert (await read(site, "DE", name), await read(site, "SG", name)) == (2, None)


async def test_writers_movers_and_readers_of_both_names_together_are_linearizable(site: Site) -> None:
    """Rows move to and fro under writes: each name by itself is a register, and no acknowledged write is lost."""
    text = "to-and-fro"
    now = asyncio.get_running_loop().time
    await site["fra"].rows.PutRow(put("DE", text, spend=0), timeout=5)
    async with conductor(site, "fra") as fra, conductor(site, "sin") as sin, watched_to_and_fro(site, text) as seen_by:
        for number in range(1, 30):
            leaves, comes, by = ("DE", "SG", fra) if number % 2 else ("SG", "DE", sin)
            start = now()
            await by.move(move(leaves, text, comes))
            end = now()
            seen_by[leaves].append(Event(is_write=True, value=None, start=start, end=end))
            seen_by[comes].append(Event(is_write=True, value=number - 1, start=start, end=end))
            start = now()
            idc = "fra" if comes == "DE" else "sin"
            await site[idc].rows.PutRow(put(comes, text, spend=number), timeout=5)
            seen_by[comes].append(Event(is_write=True, value=number, start=start, end=now()))
    for region, initial in (("DE", 0), ("SG", None)):
        assert is_linearizable(seen_by[region], initial), region


@asynccontextmanager
async def watched_to_and_fro(site: Site, text: str):
    watch = Watch(site, text)
    async with asyncio.TaskGroup() as group:
        for region in ("DE", "SG"):
            group.create_task(watch.look(region))
        try:
            yield watch.histories
        finally:
            watch.stop()


async def test_two_movers_of_one_row_move_it_once(site: Site, name: str) -> None:
    await site["fra"].rows.PutRow(put("DE", name, spend=1), timeout=5)
    async with conductor(site, "fra") as one, conductor(site, "fra") as two:
        outcomes = await asyncio.gather(
            *(by.move(move("DE", name, "SG")) for by in (one, two, one, two)), return_exceptions=True
        )
    moved = [outcome for outcome in outcomes if isinstance(outcome, pb.MoveRowResponse)]
    assert len(moved) == 1, outcomes
    assert all(isinstance(outcome, RowNotFound | RowExists) for outcome in outcomes if outcome is not moved[0])
    assert await read(site, "SG", name) == 1
