from __future__ import annotations

import asyncio

import pytest

from gateway.coalescer import COMPANY, ENOUGH_ROWS, SUPERSEDED, Coalescer, write_clashes
from policy.errors import DatabaseUnavailable, DeadlineExceeded, InvalidValue, RegiongateError
from rowstore.model import RowWrite

FAR = 1e12


class Database:
    """Statements that end when the test says so, each answering an item with itself doubled."""

    def __init__(self) -> None:
        self.statements: list[list] = []
        self.traceparents: list[list[str]] = []
        self.begun = asyncio.Condition()
        self.gate = asyncio.Semaphore(0)
        self.refuses: set = set()
        self.failure: Exception | None = None

    async def perform(self, items, traceparents):
        self.statements.append(list(items))
        self.traceparents.append(list(traceparents))
        async with self.begun:
            self.begun.notify_all()
        await self.gate.acquire()
        if self.failure:
            raise self.failure
        if self.refuses.intersection(items):
            raise InvalidValue("refused")
        return [item * 2 if isinstance(item, int) else item for item in items]

    async def wait_begun(self, number: int) -> None:
        async with self.begun:
            await self.begun.wait_for(lambda: len(self.statements) >= number)

    def release(self, number: int = 1) -> None:
        for _ in range(number):
            self.gate.release()


def make(database: Database, **settings) -> Coalescer:
    return Coalescer(database.perform, **{"in_flight": 1, "max_rows": 10} | settings)


async def test_what_arrives_in_one_turn_of_the_loop_shares_a_statement():
    database = Database()
    coalescer = make(database)
    futures = [coalescer.submit([number], FAR) for number in range(5)]
    database.release()
    assert [await future for future in futures] == [[0], [2], [4], [6], [8]]
    assert database.statements == [[0, 1, 2, 3, 4]]


async def test_what_arrives_while_a_statement_is_in_flight_goes_with_the_next_one():
    database = Database()
    coalescer = make(database)
    first = coalescer.submit([1], FAR)
    await database.wait_begun(1)
    later = [coalescer.submit([number], FAR) for number in (2, 3)]
    database.release(2)
    await asyncio.gather(first, *later)
    assert database.statements == [[1], [2, 3]]


async def test_no_more_statements_are_in_flight_than_allowed_and_none_waits_for_nobody():
    database = Database()
    coalescer = make(database, in_flight=2, max_rows=2)
    futures = []
    for number in range(9):
        futures.append(coalescer.submit([number], FAR))
        if number < 2:
            await database.wait_begun(number + 1)
    await asyncio.sleep(0)
    assert len(database.statements) == 2
    database.release(20)
    assert await asyncio.gather(*futures) == [[number * 2] for number in range(9)]
    assert all(len(statement) <= 2 for statement in database.statements)
    again = coalescer.submit([1], FAR)
    assert await again == [2]


async def test_a_group_is_never_split_and_never_overfills_a_statement():
    database = Database()
    coalescer = make(database)
    database.release(10)
    groups = [[1] * 6, [2] * 6, [3] * 4, [4] * 10]
    futures = [coalescer.submit(group, FAR) for group in groups]
    assert await asyncio.gather(*futures) == [[2] * 6, [4] * 6, [6] * 4, [8] * 10]
    assert [len(statement) for statement in database.statements] == [6, 10, 10]


def write(key: str, request_id: str = "", region_code: str = "DE") -> RowWrite:
    return RowWrite(region_code, 0, 1, key, {}, None, request_id)


async def test_no_row_is_twice_in_a_statement_and_a_later_group_may_pass():
    """Law L4: two writes of one row in one statement would have one winner by accident."""
    database = Database()
    coalescer = make(database, clashes=write_clashes)
    database.release(10)
    groups = [[write("a")], [write("a")], [write("b")], [write("a", region_code="FR")], [write("a"), write("c")]]
    await asyncio.gather(*(coalescer.submit(group, FAR) for group in groups))
    keys = [[(item.region_code, item.key) for item in statement] for statement in database.statements]
    assert keys == [[("DE", "a"), ("DE", "b"), ("FR", "a")], [("DE", "a")], [("DE", "a"), ("DE", "c")]]


async def test_two_attempts_of_one_request_are_never_in_one_statement():
    """Law L4: they would be remembered as one group of twice the size."""
    database = Database()
    coalescer = make(database, clashes=write_clashes)
    database.release(10)
    await asyncio.gather(*(coalescer.submit([write(key, "r1")], FAR) for key in ("a", "b")))
    assert [len(statement) for statement in database.statements] == [1, 1]


async def test_writes_of_different_conditions_do_not_share_a_statement():
    """Law L4: each kind is a transaction of its own, and only a failed statement that wrote nothing may be repeated."""
    database = Database()
    coalescer = make(database, clashes=write_clashes)
    database.release(10)
    versions = {"a": [None], "b": [0], "c": [None], "d": [5], "e": [0], "f": [None, 7]}
    groups = [[write(f"{name}{v}")._replace(if_version=v) for v in versions[name]] for name in versions]
    await asyncio.gather(*(coalescer.submit(group, FAR) for group in groups))
    assert [[item.key[0] for item in statement] for statement in database.statements] == [
        ["a", "c"],
        ["b", "e"],
        ["d"],
        ["f", "f"],
    ]


async def test_a_request_id_that_looks_like_a_key_does_not_clash_with_it():
    assert not write_clashes([write("a", "b")], seen := set())
    assert not write_clashes([write("b")], seen)


async def test_one_groups_bad_value_fails_that_group_alone():
    database = Database()
    coalescer = make(database)
    database.refuses = {2}
    database.release(10)
    good, bad, other = await asyncio.gather(*(coalescer.submit([number], FAR) for number in (1, 2, 3)))
    assert (good, other) == ([2], [6])
    assert isinstance(bad, InvalidValue)


async def test_a_database_that_is_down_fails_all_at_once_and_is_not_asked_for_each():
    database = Database()
    coalescer = make(database)
    database.failure = DatabaseUnavailable("down")
    database.release(10)
    results = await asyncio.gather(*(coalescer.submit([number], FAR) for number in range(3)))
    assert all(isinstance(result, DatabaseUnavailable) for result in results)
    assert len(database.statements) == 1
    database.failure = None
    assert await coalescer.submit([4], FAR) == [8], "and it heals"


async def test_an_unexpected_failure_is_an_internal_error_with_its_cause():
    database = Database()
    coalescer = make(database)
    database.failure = ZeroDivisionError()
    database.release()
    result = await coalescer.submit([1], FAR)
    assert type(result) is RegiongateError
    assert isinstance(result.__cause__, ZeroDivisionError)


async def test_what_a_caller_has_given_up_before_it_began_is_not_begun():
    database = Database()
    coalescer = make(database)
    first = coalescer.submit([1], FAR)
    await database.wait_begun(1)
    given_up = coalescer.submit([2], FAR)
    kept = coalescer.submit([3], FAR)
    given_up.cancel()
    database.release(2)
    await asyncio.gather(first, kept)
    assert database.statements == [[1], [3]]


@pytest.mark.parametrize("is_begun", [True, False], ids=["begun", "waiting"])
async def test_a_deadline_ends_the_wait_and_what_was_not_begun_never_is(is_begun):
    database = Database()
    coalescer = make(database)
    now = asyncio.get_running_loop().time()
    if not is_begun:
        blocking = coalescer.submit([1], FAR)
        await database.wait_begun(1)
    late = coalescer.submit([2], now + 0.01)
    assert isinstance(await late, DeadlineExceeded)
    database.release(2)
    if not is_begun:
        await blocking
        await coalescer.drain()
    assert database.statements == ([[2]] if is_begun else [[1]])


async def test_a_guard_that_no_longer_holds_keeps_the_group_from_beginning():
    """Law L6: the guard is asked when the statement begins, not when the group came."""
    database = Database()
    coalescer = make(database)
    first = coalescer.submit([1], FAR)
    await database.wait_begun(1)
    stands = True
    guarded = coalescer.submit([2], FAR, lambda: stands)
    bare = coalescer.submit([3], FAR)
    stands = False
    database.release(2)
    await asyncio.gather(first, bare)
    assert await guarded is SUPERSEDED
    assert database.statements == [[1], [3]]


async def test_traceparents_of_all_groups_reach_the_statement():
    database = Database()
    coalescer = make(database)
    database.release()
    await asyncio.gather(
        *(coalescer.submit([number], FAR, None, traces) for number, traces in ((1, ["x"]), (2, []), (3, ["y"])))
    )
    assert database.traceparents == [["x", "y"]]


LONG = 3600.0
"""A pace that no test waits for."""


async def share(coalescer: Coalescer, database: Database) -> None:
    """A statement that serves several callers: those that come after it wait for the pace."""
    database.release()
    await asyncio.gather(*(coalescer.submit([number], FAR) for number in range(COMPANY)))


async def test_a_caller_alone_never_waits_for_the_pace():
    database = Database()
    coalescer = make(database, pace=LONG)
    database.release(3)
    for number in range(3):
        assert await coalescer.submit([number], FAR) == [number * 2]
    assert len(database.statements) == 3


async def test_two_callers_do_not_wait_for_the_pace():
    database = Database()
    coalescer = make(database, pace=LONG)
    database.release(2)
    await asyncio.gather(coalescer.submit([1], FAR), coalescer.submit([2], FAR))
    assert await coalescer.submit([3], FAR) == [6]


async def test_callers_that_come_together_wait_for_the_pace_until_enough_rows_have_gathered():
    database = Database()
    coalescer = make(database, pace=LONG, max_rows=100)
    await share(coalescer, database)
    futures = [coalescer.submit([number], FAR) for number in range(ENOUGH_ROWS - 1)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(database.statements) == 1
    futures.append(coalescer.submit([ENOUGH_ROWS], FAR))
    database.release()
    await asyncio.gather(*futures)
    assert [len(statement) for statement in database.statements] == [COMPANY, ENOUGH_ROWS]


@pytest.mark.parametrize("groups", [1, 2])
async def test_many_rows_do_not_wait_for_the_pace(groups):
    database = Database()
    coalescer = make(database, pace=LONG, max_rows=100)
    await share(coalescer, database)
    database.release()
    rows = [1] * (ENOUGH_ROWS // groups)
    assert await asyncio.gather(*(coalescer.submit(rows, FAR) for _ in range(groups))) == [[2] * len(rows)] * groups


async def test_what_waits_for_the_pace_begins_when_it_is_over():
    database = Database()
    coalescer = make(database, pace=0.002)
    await share(coalescer, database)
    database.release()
    assert await coalescer.submit([3], FAR) == [6]


async def test_a_statement_that_takes_long_is_overtaken_by_the_next_one():
    database = Database()
    coalescer = make(database, in_flight=2, pace=0.002)
    slow = coalescer.submit([1], FAR)
    await database.wait_begun(1)
    next_one = coalescer.submit([2], FAR)
    await database.wait_begun(2)
    database.release(2)
    assert await asyncio.gather(slow, next_one) == [[2], [4]]


async def test_what_came_during_a_statement_for_one_caller_does_not_wait_for_the_pace():
    database = Database()
    coalescer = make(database, in_flight=2, pace=LONG)
    first = coalescer.submit([1], FAR)
    await database.wait_begun(1)
    later = coalescer.submit([2], FAR)
    database.release(2)
    assert await asyncio.gather(first, later) == [[2], [4]]


async def test_a_deadline_ends_the_wait_for_the_pace():
    database = Database()
    coalescer = make(database, pace=LONG)
    await share(coalescer, database)
    late = coalescer.submit([3], asyncio.get_running_loop().time())
    assert isinstance(await late, DeadlineExceeded)
    assert len(database.statements) == 1


async def test_draining_does_not_wait_for_the_pace():
    database = Database()
    coalescer = make(database, pace=LONG)
    await share(coalescer, database)
    future = coalescer.submit([3], FAR)
    database.release()
    await coalescer.drain()
    assert future.result() == [6]
