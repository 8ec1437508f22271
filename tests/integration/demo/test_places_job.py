"""The demo's job counts a row that is written again, deleted or born again as what it is now, on a real database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from regiongate.demo.figures import Figures, read_figures
from regiongate.demo.places_job import count_places, make_tables, metadata

if TYPE_CHECKING:
    from tests.support.stack import RunningStack


@dataclass(frozen=True)
class Change:
    """What the job reads of a row."""

    key: str
    population: int | None
    is_deleted: bool = False

    def __getitem__(self, column: str) -> int | None:
        return {"population": self.population}[column]


@dataclass(frozen=True)
class Changes:
    """What the job reads of a batch."""

    rows: list[Change]
    connection: AsyncConnection
    region_code: str = "DE"
    shard: int = 1


async def test_each_key_counts_as_what_it_is_now_however_often_it_is_written(stack: RunningStack):
    urls = {"fra": stack.idcs["fra"].database}
    await make_tables(urls.values())
    engine = create_async_engine(urls["fra"].replace("postgresql://", "postgresql+asyncpg://"), poolclass=NullPool)

    async def count(*rows: Change, shard: int = 1) -> Figures:
        async with engine.begin() as connection:
            await count_places.handler(Changes(list(rows), connection, shard=shard))
        return (await read_figures(urls))["fra"].by_region["DE"]

    try:
        assert await count(Change("a", 5), Change("c", 7), Change("b", 7)) == Figures(3, 19, 7, "b")
        assert await count(Change("a", 5), Change("b", 6)) == Figures(3, 18, 7, "c")
        assert await count(Change("c", None, is_deleted=True), Change("d", 1)) == Figures(3, 12, 6, "b")
        assert await count(Change("c", 2), Change("d", None)) == Figures(4, 13, 6, "b")
        assert await count(Change("z", 100), shard=2) == Figures(5, 113, 100, "z")
        assert await count(*(Change(key, None, is_deleted=True) for key in "abcd")) == Figures(1, 100, 100, "z")
        assert await count(Change("z", None, is_deleted=True), shard=2) == Figures()
    finally:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.drop_all)
