"""Any order of writes, rounds, breaks and attempts that are called off ends with equal rows on both sides."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from policy.errors import DatabaseUnavailable
from rowstore.moving import MoveStep
from tests.support.postgres import create_database
from tests.support.row_databases import CUSTOMERS, MovePair, delete, move_pair, put, row_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rowstore.moving import ExportPart
    from runtime.embedded.postgres import EmbeddedPostgres

KEYS = st.integers(0, 8)
ACTIONS = st.one_of(
    st.tuples(st.just("write"), st.lists(KEYS, min_size=1, max_size=6, unique=True)),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("request"), KEYS),
    st.tuples(st.just("copy"), st.none()),
    st.tuples(st.just("break"), st.integers(1, 9)),
    st.tuples(st.just("call off"), st.booleans()),
    st.tuples(st.just("move"), st.none()),
)


async def broken(parts: AsyncIterator[ExportPart], after: int) -> AsyncIterator[ExportPart]:
    async for part in parts:
        if after == 0:
            raise DatabaseUnavailable("broken off by the test")
        after -= 1
        yield part


class Run:
    """One shard, wherever it is, and its attempts."""

    def __init__(self, pair: MovePair) -> None:
        self.pair = pair
        self.step = MoveStep("DE", 0, 1, 0)
        self.is_begun = False
        self.number = 0

    async def begin(self) -> None:
        if not self.is_begun:
            self.step = self.step._replace(attempt=self.step.attempt + 1)
            await self.pair.sender.begin_export(self.step)
            self.is_begun = True

    async def act(self, action: str, argument: object) -> None:
        self.number += 1
        epoch = self.step.epoch
        if action == "write":
            writes = [put(f"k{key}", {"spend": self.number}, epoch=epoch) for key in argument]
            await self.pair.source.store.write(CUSTOMERS, writes)
        elif action == "delete":
            await self.pair.source.store.write(CUSTOMERS, [delete(f"k{argument}", epoch=epoch)])
        elif action == "request":
            write = put(f"k{argument}", {"name": ""}, epoch=epoch, request_id=f"r{self.number}")
            await self.pair.source.store.write(CUSTOMERS, [write])
        else:
            await self.move(action, argument)

    async def move(self, action: str, argument: object) -> None:
        await self.begin()
        if action == "copy":
            await self.pair.copy(self.step)
        elif action == "break":
            await self.break_off(argument)
        elif action == "call off":
            await self.call_off(is_purged=bool(argument))
        else:
            await self.finish()

    async def break_off(self, after: object) -> None:
        begun = await self.pair.receiver.begin_import(self.step)
        parts = self.pair.parts(self.step, begun)
        told = self.pair.receiver.import_parts(
            self.step, broken(parts, int(str(after))), begun=begun, closed_at_seq=None
        )
        async with aclosing(parts), aclosing(told):
            try:
                async for _ in told:
                    pass
            except DatabaseUnavailable:
                pass

    async def call_off(self, *, is_purged: bool) -> None:
        self.step = self.step._replace(attempt=self.step.attempt + 1)
        await self.pair.sender.reopen(self.step)
        if is_purged:
            assert (await self.pair.receiver.purge(self.step, None)).remaining == 0
        self.is_begun = False

    async def finish(self) -> None:
        """Moves the shard, compares everything, and turns round: the next move goes back."""
        progress = await self.pair.close_and_copy(self.step)
        await self.pair.receiver.open(self.step)
        assert await self.pair.source.contents() == await self.pair.target.contents()
        assert progress.digest == await self.pair.receiver.digest(self.step)
        assert progress.digest is not None
        # An odd purge comes late: the shard is on its way back by then, and what is left is deleted by the import.
        if self.number % 2:
            assert (await self.pair.sender.purge(self.step, progress.digest)).remaining == 0
        self.pair = MovePair(self.pair.target, self.pair.source, self.pair.receiver, self.pair.sender)
        self.step = self.step._replace(epoch=self.step.epoch + 1)
        self.is_begun = False


def test_any_order_of_writes_breaks_and_attempts_ends_equal(
    postgres_server: EmbeddedPostgres, prepared: str, prepared_target: str
) -> None:
    with asyncio.Runner() as runner:

        async def play(actions: list[tuple[str, object]], source_url: str, target_url: str) -> None:
            async with row_database(source_url) as source, row_database(target_url) as target:
                for idc, mode in ((source, "serving"), (target, None)):
                    await idc.hand.execute(
                        "TRUNCATE rows_customers, rows_orders, write_requests,"
                        " shard_fences, shard_imports, shard_purges"
                    )
                    if mode:
                        await idc.hand.execute(
                            "INSERT INTO shard_fences (region_code, shard, epoch, mode) VALUES ('DE', 0, 1, 'serving')"
                        )
                async with move_pair(source, target) as pair:
                    run = Run(pair)
                    for action, argument in actions:
                        await run.act(action, argument)
                    await run.act("move", None)

        urls = [runner.run(create_database(postgres_server, template)) for template in (prepared, prepared_target)]

        @settings(
            max_examples=10,
            deadline=None,
            derandomize=True,
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(ACTIONS, min_size=3, max_size=14))
        def check(actions: list[tuple[str, object]]) -> None:
            runner.run(play(actions, *urls))

        check()
