"""Sources of one's own: how rows are read, and which promises are held against them."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import pytest

from policy.errors import InvalidJob
from regionjobs.source import AdoptedTable, CallableSource, SourceRow


class Answering:
    """A database that gives the same records to every statement, and remembers what it was asked."""

    def __init__(self, *records):
        self.records = records
        self.asked = []

    async def fetch(self, statement, *arguments, is_repeatable=False):
        self.asked.append((statement, arguments, is_repeatable))
        return list(self.records)


def giving(*rows, **words):
    """A bound source that returns these rows, whatever it is asked."""

    async def select_batch(position, limit):
        return rows

    return CallableSource(select_batch, **words).bind(None)


def row(position, region_code="DE", key="a"):
    return {"position": position, "region_code": region_code, "key": key}


async def test_rows_are_read_by_item_attribute_or_function():
    one = row(1)
    assert await giving(one)(0, 10) == [SourceRow(1, "DE", "a", one)]
    two = SimpleNamespace(position=2, region_code=None, key=7)
    assert await giving(two)(0, 10) == [SourceRow(2, None, 7, two)]
    three = (3, "FR", "b")
    read = giving(three, position=lambda it: it[0], region_code=lambda it: it[1], key=lambda it: it[2])
    assert await read(0, 10) == [SourceRow(3, "FR", "b", three)]
    four = {"id": 4, "land": "FR", "name": "c"}
    assert await giving(four, position="id", region_code="land", key="name")(0, 10) == [SourceRow(4, "FR", "c", four)]


async def test_a_source_is_asked_for_what_is_above_a_position():
    asked = []

    async def select_batch(position, limit):
        asked.append((position, limit))
        return []

    assert await CallableSource(select_batch).bind(None)(7, 100) == []
    assert asked == [(7, 100)]


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        ([row(5)], "position"),
        ([row(4)], "position"),
        ([row(6), row(6)], "position"),
        ([row(7), row(6)], "position"),
        ([row(6), row(7), row(8)], "at most 2"),
        ([row("6")], "position"),
        ([row(True)], "position"),
        ([row(None)], "position"),
        ([row(6, region_code=49)], "region_code"),
        ([row(6, key=None)], "key"),
        ([row(6, key=1.5)], "key"),
        ([row(6, key=uuid.UUID(int=5))], "key"),
    ],
)
async def test_a_source_that_breaks_its_promise_gives_no_batch_and_no_row_is_quoted(rows, word):
    with pytest.raises(InvalidJob, match=word) as caught:
        await giving(*rows)(5, 2)
    assert caught.value.field_name == "source"
    for each in rows:
        assert not any(len(str(value)) > 3 and str(value) in str(caught.value) for value in each.values() if value)


@pytest.mark.parametrize("missing", ["table", "position", "region_code", "key"])
def test_an_adopted_table_names_its_table_and_its_columns(missing):
    words = {"table": "t", "position": "p", "region_code": "r", "key": "k"} | {missing: ""}
    with pytest.raises(InvalidJob, match=missing):
        AdoptedTable(**words)


async def test_names_of_an_adopted_table_are_quoted_and_values_are_arguments():
    record = {"p": 1, 'r"; DROP': "DE", "k": "x", "more": 2}
    database = Answering(record)
    source = AdoptedTable("other.table", position="p", region_code='r"; DROP', key="k", columns=("more", "k"))
    assert await source.bind(database)(0, 10) == [SourceRow(1, "DE", "x", record)]
    ((statement, arguments, is_repeatable),) = database.asked
    assert statement == (
        'SELECT "p", "r""; DROP", "k", "more" FROM "other"."table" WHERE "p" > $1::bigint ORDER BY "p" LIMIT $2::bigint'
    )
    assert (arguments, is_repeatable) == ((0, 10), True)


async def test_all_columns_of_an_adopted_table_are_read_when_none_is_named():
    database = Answering()
    assert await AdoptedTable("t", position="p", region_code="r", key="k").bind(database)(3, 10) == []
    assert database.asked[0][0].startswith('SELECT * FROM "t" ')


async def test_a_position_that_a_table_has_twice_gives_no_batch():
    record = {"p": 1, "r": "DE", "k": "x"}
    source = AdoptedTable("t", position="p", region_code="r", key="k")
    with pytest.raises(InvalidJob, match="position"):
        await source.bind(Answering(record, record))(0, 10)
