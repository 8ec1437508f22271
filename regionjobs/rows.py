"""What a job is given of a shard: a page of its changes, in the order of their sequences.

A page is read in one snapshot together with the shard's fence, so it says two things: these rows, and nothing else up
to `through_seq`. Rows are made of the driver's records when they are looked at, not before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, overload

from policy.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import asyncpg
    import pyarrow as pa

# Where a record has what; the columns of the policy follow. By place, since a policy may use any name.
FENCE_SEQ: Final = 0
SEQ: Final = 1
KEY: Final = 2
UPDATE_TIME: Final = 3
DELETED: Final = 4
FIRST_VALUE: Final = 5

_EPOCH_2000: Final = datetime(2000, 1, 1, tzinfo=UTC)
FIRST_TIME: Final = -63_082_281_600_000_000
LAST_TIME: Final = 252_455_615_999_999_999
"""The last time that Python has, in microseconds since PostgreSQL's epoch; `FIRST_TIME` is the first."""


@dataclass(frozen=True, slots=True)
class RowShape:
    """What all rows of a page share."""

    region_code: str
    shard: int
    places: Mapping[str, int]
    """Where a record has each column of the dataset."""
    times: frozenset[str]
    """Those whose values are as PostgreSQL sends times."""


def read_time(sent: bytes) -> datetime:
    """A time as PostgreSQL sends it; infinite ones become the first and the last that Python has, as in Arrow tables.

    Rows hold their times like this until somebody looks: making them is half of all the driver's work on a page.
    """
    microseconds = int.from_bytes(sent, "big", signed=True)
    return _EPOCH_2000 + timedelta(microseconds=min(max(microseconds, FIRST_TIME), LAST_TIME))


class JobRow:
    """A row as it was when its page was read; `row["name"]` is the value of a column, None when it is null.

    Values are plain Python, as in `rowstore.model`: json is its text.
    """

    __slots__ = ("_record", "_shape")

    def __init__(self, shape: RowShape, record: asyncpg.Record) -> None:
        self._shape = shape
        self._record = record

    @property
    def region_code(self) -> str:
        """The tag of the place whose law the row is under."""
        return self._shape.region_code

    @property
    def shard(self) -> int:
        """The slice of the RegionCode's keys that it is in."""
        return self._shape.shard

    @property
    def key(self) -> str | int:
        """Its key, as the dataset has keys."""
        return self._record[KEY]

    @property
    def version(self) -> int:
        """The sequence of the change that made it what it is."""
        return self._record[SEQ]

    @property
    def update_time(self) -> datetime:
        """When that was; never runs backwards inside a shard."""
        return read_time(self._record[UPDATE_TIME])

    @property
    def is_deleted(self) -> bool:
        """Whether the change was a deletion: then there are no values. Only with `with_deleted`."""
        return self._record[DELETED]

    @property
    def values(self) -> Mapping[str, Any]:
        """The columns of the dataset, a new dictionary each time."""
        return {column: self[column] for column in self._shape.places}

    def __getitem__(self, column: str) -> Any:  # noqa: ANN401 (as the column is)
        value = self._record[self._shape.places[column]]
        return value if value is None or column not in self._shape.times else read_time(value)

    def get(self, column: str, default: Any = None) -> Any:  # noqa: ANN401 (as the column is)
        """The value of a column, or `default` when the dataset has no such column."""
        return self[column] if column in self._shape.places else default

    def __contains__(self, column: object) -> bool:
        return column in self._shape.places

    def __repr__(self) -> str:
        # No key and no value: a representation may end in a log (law L1).
        return f"<JobRow of shard {self._shape.region_code}/{self._shape.shard} version {self.version}>"


class JobRows(Sequence[JobRow]):
    """The rows of a page; each is made when it is asked for."""

    __slots__ = ("_records", "_shape")

    def __init__(self, shape: RowShape, records: Sequence[asyncpg.Record]) -> None:
        self._shape = shape
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> JobRow: ...
    @overload
    def __getitem__(self, index: slice) -> JobRows: ...
    def __getitem__(self, index: int | slice) -> JobRow | JobRows:
        if isinstance(index, slice):
            return JobRows(self._shape, self._records[index])
        return JobRow(self._shape, self._records[index])

    def __iter__(self) -> Iterator[JobRow]:
        shape = self._shape
        return (JobRow(shape, record) for record in self._records)

    def __repr__(self) -> str:
        return f"<JobRows {len(self)} of shard {self._shape.region_code}/{self._shape.shard}>"


class Page(ABC):
    """Changes of one shard in the order of their sequences."""

    def __init__(self, shape: RowShape, *, count: int, last_seq: int, fence_seq: int, is_full: bool) -> None:
        self._shape = shape
        self.count = count
        """Rows in it."""
        self.last_seq = last_seq
        """Sequence of the last change that was looked at, whether or not it is a row of the page; 0 without one."""
        self.fence_seq = fence_seq
        """The shard's newest change, in the same snapshot, whatever the dataset."""
        self.is_full = is_full
        """Whether it holds as many changes as it may, so that there can be more above `last_seq`."""

    def __len__(self) -> int:
        return self.count

    @property
    def region_code(self) -> str:
        """The RegionCode of all its rows."""
        return self._shape.region_code

    @property
    def shard(self) -> int:
        """The shard of all its rows."""
        return self._shape.shard

    @property
    def through_seq(self) -> int:
        """Where the offset goes to once these rows are handled: there are no others for the job up to here.

        Changes of other datasets and, unless the job wants them, deletions are passed over without being rows.
        """
        return self.last_seq if self.is_full else self.fence_seq

    @property
    def rows(self) -> JobRows:
        """The rows; raises `InvalidJob` when they came as a table."""
        raise InvalidJob('batches of format "arrow" have a table, not rows', field_name="format")

    @property
    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownParameterType]: pyarrow tells no types
        """The rows as an Arrow table (`regionjobs.arrow`); raises `InvalidJob` unless that is the job's format."""
        raise InvalidJob('only batches of format "arrow" have a table', field_name="format")

    @property
    def last_time(self) -> datetime | None:
        """When the newest row was changed; None without rows."""
        return self.time_at(self.count - 1) if self.count else None

    @abstractmethod
    def seq_at(self, index: int) -> int:
        """Sequence of a row."""

    @abstractmethod
    def key_at(self, index: int) -> str | int:
        """Key of a row."""

    @abstractmethod
    def time_at(self, index: int) -> datetime:
        """When a row was changed."""

    def part(self, start: int, stop: int) -> Page:
        """The rows from `start` to before `stop`, as a page that reaches just as far as they do."""
        start, stop, _ = slice(start, stop).indices(self.count)
        if start == 0 and stop == self.count:
            return self
        if stop == self.count:
            return self._cut(start, stop, self.last_seq, is_full=self.is_full)
        last_seq = self.seq_at(stop - 1) if stop else 0
        return self._cut(start, stop, last_seq, is_full=True)

    @abstractmethod
    def _cut(self, start: int, stop: int, last_seq: int, *, is_full: bool) -> Page:
        """A page of some of the rows."""

    def __repr__(self) -> str:
        return f"<Page of shard {self._shape.region_code}/{self._shape.shard}: {self.count} rows>"


class RowPage(Page):
    """A page of rows, which are the driver's records."""

    def __init__(
        self, shape: RowShape, records: Sequence[asyncpg.Record], *, last_seq: int, fence_seq: int, is_full: bool
    ) -> None:
        super().__init__(shape, count=len(records), last_seq=last_seq, fence_seq=fence_seq, is_full=is_full)
        self._records = records

    @property
    def rows(self) -> JobRows:
        """The rows."""
        return JobRows(self._shape, self._records)

    def seq_at(self, index: int) -> int:
        """Sequence of a row."""
        return self._records[index][SEQ]

    def key_at(self, index: int) -> str | int:
        """Key of a row."""
        return self._records[index][KEY]

    def time_at(self, index: int) -> datetime:
        """When a row was changed."""
        return read_time(self._records[index][UPDATE_TIME])

    def _cut(self, start: int, stop: int, last_seq: int, *, is_full: bool) -> RowPage:
        records = self._records[start:stop]
        return RowPage(self._shape, records, last_seq=last_seq, fence_seq=self.fence_seq, is_full=is_full)
