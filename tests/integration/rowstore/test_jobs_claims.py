"""Law L5 in the store: whoever holds the newest token commits, once, from where the offset is; nobody else does."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest

from policy.errors import ClaimLost
from rowstore.driver_errors import DRIVER_ERRORS
from rowstore.jobs import offsets
from rowstore.jobs.model import Advance, Claim
from rowstore.model import ShardEpoch, Written
from rowstore.shard_tables import SHARD_TABLES
from tests.support.job_stores import JOB, LEDGER, change, commit, connected, enter, ledger, offset, take
from tests.support.row_databases import CUSTOMERS, put

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.row_databases import RowDatabase

LATER = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture
async def home(idc: RowDatabase) -> AsyncIterator[RowDatabase]:
    """An IDC with a ledger, and three changes in shard 0."""
    await idc.hand.execute(LEDGER)
    await change(idc, "a", "b", "c")
    return idc


async def raise_tokens(idc: RowDatabase) -> None:
    """What closing shard 0 does after its fence is shut."""
    for table in SHARD_TABLES:
        if table.on_close:
            await idc.database.fetch(table.on_close, "DE", 0)


# ---- claims ----


async def test_each_claim_raises_the_token_and_tells_where_to_go_on(home: RowDatabase) -> None:
    first = await take(home)
    assert first == Claim("DE", 0, 1, 1, 0, 3, 0)
    await commit(home, first, [1, 2])
    second = await take(home, "two.1")
    assert (second.token, second.seq, second.last_seq) == (2, 2, 3)
    assert await home.hand.fetchval("SELECT runner FROM job_offsets") == "two.1"


async def test_only_shards_that_are_served_at_that_epoch_are_claimed(home: RowDatabase) -> None:
    for shard, mode in ((1, "draining"), (2, "closed"), (3, "importing")):
        await home.set_fence(shard, mode=mode)
    wanted = [ShardEpoch("DE", shard, 1) for shard in (3, 2, 1, 0, 9)]
    wanted += [ShardEpoch("DE", 0, 2), ShardEpoch("FR", 0, 1), ShardEpoch("DE", 0, 1)]
    claims = await offsets.claim(home.database.fetch, JOB, "one.1", wanted)
    assert [claim[:4] for claim in claims] == [("DE", 0, 1, 1)]
    assert await home.hand.fetchval("SELECT count(*) FROM job_offsets") == 1
    assert await offsets.claim(home.database.fetch, JOB, "one.1", []) == []


async def test_many_shards_are_claimed_in_parts_and_come_in_their_order(home: RowDatabase) -> None:
    number = offsets.CLAIMED_AT_ONCE * 2 + 7
    await home.store.fences.open([ShardEpoch("NL", shard, 1) for shard in range(number)])
    wanted = [ShardEpoch("NL", shard, 1) for shard in reversed(range(number))]
    claims = await offsets.claim(home.database.fetch, JOB, "one.1", wanted)
    assert [claim.shard for claim in claims] == list(range(number))


async def test_runners_that_claim_at_once_get_tokens_of_their_own(home: RowDatabase) -> None:
    async def claim(number: int) -> list[Claim]:
        shards = [ShardEpoch("DE", shard, 1) for shard in range(4)]
        return await offsets.claim(home.database.fetch, JOB, f"r.{number}", shards[:: 1 if number % 2 else -1])

    claims = [claim for claims in await asyncio.gather(*map(claim, range(24))) for claim in claims]
    assert len({(claim.shard, claim.token) for claim in claims}) == len(claims)
    newest = {claim.shard: claim for claim in sorted(claims, key=lambda claim: claim.token)}
    for shard in range(4):
        assert await offset(home, shard) == (0, newest[shard].token)


async def test_a_runner_without_a_session_claims_nothing(home: RowDatabase) -> None:
    with pytest.raises(ClaimLost, match="without a session"):
        await offsets.claim(home.database.fetch, JOB, "", [ShardEpoch("DE", 0, 1)])


async def test_a_claim_waits_for_the_fence_and_is_refused_when_the_shard_begins_to_close(home: RowDatabase) -> None:
    async with home.holding_fence() as connection:
        claim = asyncio.create_task(offsets.claim(home.database.fetch, JOB, "one.1", [ShardEpoch("DE", 0, 1)]))
        await home.until_waiting(1)
        await connection.execute("UPDATE shard_fences SET mode = 'draining' WHERE shard = 0")
    assert await claim == []
    assert await offset(home) is None


async def test_a_commit_that_a_paused_runner_sits_on_holds_up_neither_claims_nor_writers(home: RowDatabase) -> None:
    held = await take(home)
    async with connected(home) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await enter(connection, held, [1, 2, 3])
        await offsets.advance(connection.fetch, JOB, held, Advance(3, 3))
        # It stops here, with the offset locked: another runner gets all other shards at once, and writers pass.
        wanted = [ShardEpoch("DE", shard, 1) for shard in range(4)]
        claims = await offsets.claim(home.database.fetch, JOB, "two.1", wanted)
        assert [claim.shard for claim in claims] == [1, 2, 3]
        assert isinstance((await home.store.write(CUSTOMERS, [put("d")]))[0], Written)
        await transaction.commit()
    assert (await take(home, "two.1")).seq == 3


async def test_a_commit_that_a_paused_runner_sits_on_is_ended_by_the_server(home: RowDatabase) -> None:
    held = await take(home)
    async with connected(home) as connection:
        await connection.execute("BEGIN")
        await enter(connection, held, [1, 2, 3])
        await offsets.advance(connection.fetch, JOB, held, Advance(3, 3))
        await home.set_fence(mode="closed")
        # Closing waits for it, and is not refused.
        await raise_tokens(home)
        with pytest.raises(DRIVER_ERRORS):
            await connection.execute("COMMIT")
    assert await ledger(home) == []
    assert await offset(home) == (0, 2)


async def test_the_haste_of_a_commit_ends_with_it(home: RowDatabase) -> None:
    held = await take(home)
    async with connected(home) as connection:
        show = "SHOW idle_in_transaction_session_timeout"
        async with connection.transaction():
            await offsets.advance(connection.fetch, JOB, held, Advance(1))
            assert await connection.fetchval(show) == offsets.COMMIT_WITHIN
        assert await connection.fetchval(show) == "0"


# ---- commits ----


async def test_law_l5_an_old_token_commits_nothing(home: RowDatabase) -> None:
    old = await take(home)
    new = await take(home, "two.1")
    with pytest.raises(ClaimLost):
        await commit(home, old, [1, 2])
    assert await ledger(home) == []
    assert await offset(home) == (0, 2)
    await commit(home, new, [1, 2])
    assert await ledger(home) == [1, 2]


async def test_law_l5_a_commit_that_waited_for_a_claim_finds_the_new_token(home: RowDatabase) -> None:
    old = await take(home)
    async with connected(home) as other:
        transaction = other.transaction()
        await transaction.start()
        await offsets.claim(other.fetch, JOB, "two.1", [ShardEpoch("DE", 0, 1)])
        late = asyncio.create_task(commit(home, old, [1, 2]))
        await home.until_waiting(1)
        await transaction.commit()
    with pytest.raises(ClaimLost):
        await late
    assert await ledger(home) == []


async def test_a_draining_shard_lets_commit_and_a_closed_one_does_not(home: RowDatabase) -> None:
    held = await take(home)
    await home.set_fence(mode="draining")
    held = await commit(home, held, [1])
    await home.set_fence(mode="closed")
    with pytest.raises(ClaimLost):
        await commit(home, held, [2])
    await home.set_fence(mode="importing")
    with pytest.raises(ClaimLost):
        await commit(home, held, [2])
    await home.set_fence(epoch=2)
    with pytest.raises(ClaimLost):
        await commit(home, held, [2])
    assert await ledger(home) == [1]
    # Called off before the tokens were raised: nothing has happened.
    await home.set_fence()
    await commit(home, held, [2])


async def test_closing_raises_the_tokens_of_all_jobs_once_however_often_it_is_repeated(home: RowDatabase) -> None:
    held = await take(home)
    await take(home, job="other")
    untouched = await take(home, shard=1)
    for _ in range(3):
        await raise_tokens(home)
        assert await offset(home) == (0, 2)
        assert await offset(home, job="other") == (0, 2)
    # The fence serves again: only the token stands in the way of the old claim.
    with pytest.raises(ClaimLost):
        await commit(home, held, [1])
    assert (await take(home)).token == 3
    await commit(home, untouched, [1])


async def test_law_l5_closing_waits_for_a_commit_that_came_first(home: RowDatabase) -> None:
    held = await take(home)
    async with connected(home) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await enter(connection, held, [1, 2, 3])
        await offsets.advance(connection.fetch, JOB, held, Advance(3, 3))
        await home.set_fence(mode="closed")
        closing = asyncio.create_task(raise_tokens(home))
        await home.until_waiting(1)
        await transaction.commit()
        await closing
    assert await ledger(home) == [1, 2, 3]
    assert await offset(home) == (3, 2)


async def test_law_l5_a_commit_whose_answer_was_lost_is_not_made_again(home: RowDatabase) -> None:
    held = await take(home)
    await commit(home, held, [1, 2])
    await change(home, "d")
    # The runner never heard of it, and tries the same batch, or what it reads now from there, under the same claim.
    for seqs in ([1, 2], [1, 2, 3, 4]):
        with pytest.raises(ClaimLost):
            await commit(home, held, seqs)
        with pytest.raises(ClaimLost):
            await offsets.advance_many(home.database.fetch, JOB, [(held, Advance(max(seqs), after=held.seq))])
    again = await take(home)
    assert (again.token, again.seq) == (2, 2)
    await commit(home, again, [3, 4])
    assert await ledger(home) == [1, 2, 3, 4]


async def test_an_offset_never_goes_back(home: RowDatabase) -> None:
    held = await commit(home, await take(home), [1, 2])
    with pytest.raises(ClaimLost):
        await commit(home, held, [1], Advance(1, 1))
    with pytest.raises(ClaimLost):
        await offsets.advance_many(home.database.fetch, JOB, [(held, Advance(1))])
    assert await offset(home) == (2, 1)
    # It may stay where it is: a pass ends, or a row is replayed.
    await offsets.advance(home.database.fetch, JOB, held, Advance(2, pass_time=LATER))


async def test_what_a_commit_says_is_kept_and_what_it_does_not_say_stays(home: RowDatabase) -> None:
    held = await take(home)
    fetch = home.database.fetch
    assert await offsets.note_failure(fetch, JOB, held, "ValueError") == 1
    assert await offsets.note_failure(fetch, JOB, held, "KeyError") == 2
    assert (await take(home)).failures == 2
    held = await take(home)
    # What waiting helps against is for people to see, and counts as no failure.
    await offsets.note_obstacle(fetch, JOB, held, "Unavailable")
    assert tuple(await home.hand.fetchrow("SELECT failures, last_error FROM job_offsets")) == (2, "Unavailable")
    step = Advance(2, rows=2, row_time=LATER, pass_time=LATER)
    await offsets.advance(fetch, JOB, held, step)
    await offsets.advance(fetch, JOB, held, Advance(3, rows=1))
    record = await home.hand.fetchrow("SELECT * FROM job_offsets")
    told = {name: record[name] for name in ("seq", "rows", "batches", "row_time", "pass_time", "pass_epoch")}
    assert told == {"seq": 3, "rows": 3, "batches": 2, "row_time": LATER, "pass_time": LATER, "pass_epoch": 1}
    assert (record["failures"], record["last_error"]) == (0, "")
    assert record["last_success"] is not None


async def test_a_pass_for_an_older_firing_takes_back_nothing_unless_it_is_of_a_new_owner(home: RowDatabase) -> None:
    fetch = home.database.fetch
    for many in (False, True):
        await home.hand.execute("DELETE FROM job_offsets; UPDATE shard_fences SET epoch = 1")

        async def make(held: Claim, step: Advance, *, many: bool = many) -> datetime:
            if many:
                await offsets.advance_many(fetch, JOB, [(held, step)])
            else:
                await offsets.advance(fetch, JOB, held, step)
            return await home.hand.fetchval("SELECT pass_time FROM job_offsets")

        held, earlier = await take(home), LATER - timedelta(hours=1)
        assert await make(held, Advance(0, pass_time=LATER)) == LATER
        assert await make(held, Advance(0, pass_time=earlier)) == LATER
        await home.set_fence(epoch=3)
        held = await take(home, epoch=3)
        assert await make(held, Advance(0, pass_time=earlier)) == earlier
        assert await home.hand.fetchval("SELECT pass_epoch FROM job_offsets") == 3


async def test_a_failure_is_noted_only_by_whoever_holds_the_shard(home: RowDatabase) -> None:
    old = await take(home)
    await take(home, "two.1")
    with pytest.raises(ClaimLost):
        await offsets.note_failure(home.database.fetch, JOB, old, "ValueError")
    with pytest.raises(ClaimLost):
        await offsets.stop_at(home.database.fetch, JOB, old)
    assert await home.hand.fetchval("SELECT failures FROM job_offsets") == 0


# ---- several shards at once ----


async def test_several_offsets_move_together_or_not_at_all(home: RowDatabase) -> None:
    claims = [await take(home, shard=shard) for shard in (2, 0, 1)]
    await take(home, "two.1", shard=1)

    async def commit_all(claims: list[Claim]) -> None:
        async with connected(home) as connection, connection.transaction():
            await enter(connection, claims[0], [1])
            steps = [(held, Advance(5, rows=1, after=held.seq)) for held in claims]
            await offsets.advance_many(connection.fetch, JOB, steps)

    for lost in (claims, [*claims[:2], claims[0]]):
        with pytest.raises((ClaimLost, asyncpg.CardinalityViolationError)):
            await commit_all(lost)
    assert [await offset(home, shard) for shard in range(3)] == [(0, 1), (0, 2), (0, 1)]
    await home.set_fence(2, mode="closed")
    with pytest.raises(ClaimLost, match="1 of 2"):
        await commit_all(claims[:2])
    await home.set_fence(2, mode="draining")
    await commit_all(claims[:2])
    assert [await offset(home, shard) for shard in range(3)] == [(5, 1), (0, 2), (5, 1)]
    assert await ledger(home, 2) == [1]
    with pytest.raises(ClaimLost, match="2 of 2"):
        await commit_all(claims[:2])
    await offsets.advance_many(home.database.fetch, JOB, [])


async def test_commits_over_several_shards_never_wait_for_each_other_in_a_circle(home: RowDatabase) -> None:
    claims = [await take(home, shard=shard) for shard in range(4)]

    async def rush(turn: int) -> int:
        steps = [(held, Advance(0)) for held in claims][:: 1 if turn % 2 else -1]
        async with connected(home) as connection:
            for _ in range(25):
                async with connection.transaction():
                    await offsets.advance_many(connection.fetch, JOB, steps)
        return 1

    assert await asyncio.gather(*map(rush, range(6))) == [1] * 6
    assert await home.hand.fetchval("SELECT min(batches) FROM job_offsets") == 150
