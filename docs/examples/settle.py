"""Two jobs over the dataset `customers`. In each data centre they handle the customers that lie there, and no others.

Make their tables in every data centre's database:   python settle.py data/stack.json
Run them in each data centre:                        regiongate jobs run settle.py --idc fra
"""

import asyncio
import json
import sys
from pathlib import Path

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import create_async_engine

import regiongate

metadata = MetaData()
statements = Table(
    "effects_statements",  # this prefix and the next two columns let its rows go along when their shard moves
    metadata,
    Column("region_code", Text, primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),  # the change that it was made of
    Column("customer", Text, nullable=False),
    Column("spend", BigInteger, nullable=False),
)
totals = Table(
    "effects_totals",
    metadata,
    Column("region_code", Text, primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("statements", BigInteger, nullable=False),
    Column("spend", BigInteger, nullable=False),
)


@regiongate.job(dataset="customers", trigger=regiongate.Every(minutes=5))
async def settle(batch: regiongate.Batch) -> None:
    """Every five minutes: a statement for each customer who has changed since the last time."""
    await batch.connection.execute(insert(statements), [statement_of(row) for row in batch.rows])


def statement_of(row: regiongate.JobRow) -> dict[str, object]:
    """A customer as it is now; `version` is the sequence of the change that has made it so."""
    spend = row["spend"] or 0
    if spend < 0:
        raise ValueError("spend is below zero")
    return {
        "region_code": row.region_code,
        "shard": row.shard,
        "seq": row.version,
        "customer": row.key,
        "spend": spend,
    }


@regiongate.job(dataset="customers", trigger=regiongate.After("settle"))
def total(batch: regiongate.Batch) -> None:
    """When `settle` is through: what the statements of a shard come to. A plain function is run in a thread."""
    of_shard = (
        select(statements.c.region_code, statements.c.shard, func.count(), func.sum(statements.c.spend))
        .where(statements.c.region_code == batch.region_code, statements.c.shard == batch.shard)
        .group_by(statements.c.region_code, statements.c.shard)
    )
    new = insert(totals).from_select(list(totals.c), of_shard)
    newer = {"statements": new.excluded.statements, "spend": new.excluded.spend}
    batch.connection.execute(new.on_conflict_do_update(index_elements=["region_code", "shard"], set_=newer))


async def make_tables(databases: list[str]) -> None:
    """Makes them where they are not there yet."""
    for url in databases:
        engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        await engine.dispose()


if __name__ == "__main__":  # for a stack of `regiongate up`; elsewhere your migrations do this, in every data centre
    stack = json.loads(Path(sys.argv[1]).read_text())
    asyncio.run(make_tables([idc["database"] for idc in stack["idcs"].values()]))
