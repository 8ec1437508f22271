"""What a handler gets: some rows, a transaction, a client, and who and where it is.

A batch is over when its handler returns: from then on its connection refuses to work, so that nothing that a handler
has left behind can act in another batch's transaction.
"""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy.ext.asyncio import AsyncTransaction

from policy.errors import InvalidJob, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Generator, Sequence
    from datetime import datetime

    import pyarrow as pa

    from regionjobs.workbench import BatchContext


class Batch:
    """Rows to handle, and the transaction in which to do it."""

    def __init__(self, context: BatchContext, content: Content, connection: Any, client: Any, attempt: int) -> None:  # noqa: ANN401 (facades differ for threads)
        self._context = context
        self._content = content
        self._connection = connection
        self._client = client
        self._is_over = False
        self.attempt = attempt
        """1 for the first try."""

    @property
    def job(self) -> str:
        """Name of the job."""
        return self._context.job

    @property
    def idc(self) -> str:
        """The IDC in which it runs."""
        return self._context.idc

    @property
    def policy_revision(self) -> int:
        """What the run decides by."""
        return self._context.policy_revision

    @property
    def scheduled_time(self) -> datetime | None:
        """The firing that this pass is made for; None in a long-running job. Aware UTC, by the database's clock."""
        return self._context.scheduled_time

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the run shall end: a handler that takes long may return early by raising, or finish its batch."""
        return self._context.stopping

    @property
    def region_code(self) -> str:
        """The RegionCode of all rows; empty in a global scan, where each row has its own."""
        return self._content.region_code

    @property
    def shard(self) -> int:
        """The shard of all rows; -1 in a global scan."""
        return self._content.shard

    @property
    def shards(self) -> tuple[tuple[str, int], ...]:
        """RegionCode and number of each shard that the batch's commit moves on."""
        return self._content.shards

    @property
    def is_replay(self) -> bool:
        """Whether the rows were set aside before and are tried again."""
        return self._content.is_replay

    @property
    def rows(self) -> Sequence[Any]:
        """The rows, in the order of their changes: `JobRow`, or `SourceRow` in a global scan."""
        return self._content.rows

    @property
    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownParameterType]: pyarrow tells no types
        """The rows as an Arrow table; for jobs with `format="arrow"`."""
        return self._content.table

    def __len__(self) -> int:
        """How many rows there are."""
        return self._content.count

    def __iter__(self) -> Any:  # noqa: ANN401 (an iterator of rows)
        """The rows."""
        return iter(self.rows)

    @property
    def connection(self) -> Any:  # noqa: ANN401 (AsyncConnection, or its facade in a thread)
        """A SQLAlchemy `AsyncConnection` in the batch's transaction: its work commits with the offset, or not at all.

        In a plain function its methods wait for their answers. The batch commits; a handler must not.
        """
        if self._is_over:
            raise RuntimeError("the batch is over")
        return self._connection

    @property
    def client(self) -> Any:  # noqa: ANN401 (regiongate.Client, or its facade in a thread)
        """The SDK's client, by the gateway of this IDC; what it does is judged like any request, and not undone."""
        if self._is_over:
            raise RuntimeError("the batch is over")
        if self._client is None:
            raise Unavailable("no gateway of this IDC has answered yet")
        return self._client

    def idempotency_key(self, row: Any) -> str:  # noqa: ANN401 (a row of this batch)
        """The same for each try at this change of this row, on whatever runner: for what leaves the transaction.

        It names the job, the RegionCode, the shard and the sequence, and nothing of the row.
        """
        region_code, shard, seq = self._content.identify(row)
        return f"{self.job}/{region_code}/{shard}/{seq}"

    def close(self) -> None:
        """Called when the handler has returned or failed."""
        self._is_over = True


class Content(ABC):
    """The rows of a batch; see `regionjobs.shard_pass` and `regionjobs.global_pass` for the two kinds."""

    region_code: str = ""
    shard: int = -1
    is_replay: bool = False

    @property
    @abstractmethod
    def count(self) -> int:
        """How many."""

    @property
    @abstractmethod
    def shards(self) -> tuple[tuple[str, int], ...]:
        """See `Batch.shards`."""

    @property
    @abstractmethod
    def rows(self) -> Sequence[Any]:
        """See `Batch.rows`."""

    @property
    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownParameterType]: pyarrow tells no types
        """See `Batch.table`."""
        raise InvalidJob('this job\'s batches are no Arrow tables: define it with format="arrow"', field_name="format")

    @abstractmethod
    def identify(self, row: Any) -> tuple[str, int, int]:  # noqa: ANN401 (a row of this kind)
        """RegionCode, shard and sequence of a row."""


class Waiting:
    """Something whose methods are coroutines, for a thread: each call waits for its result.

    Asynchronous iterators become plain ones, and savepoints plain context managers. Only for threads beside the loop's
    own; attributes that are no coroutines pass through.
    """

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:  # noqa: ANN401 (anything)
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (as the target has it)
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (as the target has it)
            async def perform() -> Any:  # noqa: ANN401 (as the target has it)
                result = value(*args, **kwargs)
                return await result if inspect.isawaitable(result) else result

            result = self._wait(perform())
            if hasattr(result, "__anext__"):
                return self._iterate(result)
            return Waiting(result, self._loop) if isinstance(result, AsyncTransaction) else result

        return call

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Of savepoints: they have begun when they were made.
        if kind is None:
            self.commit()
        else:
            self.rollback()

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 (as the target has it)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _iterate(self, source: AsyncIterator[Any]) -> Generator[Any]:
        async def step() -> tuple[bool, Any]:
            async for item in source:
                return True, item
            return False, None

        while True:
            is_item, item = self._wait(step())
            if not is_item:
                return
            yield item
