"""Runs a process of regiongate without some of its guards: `python -m tests.support.unguarded fence,freshness gateway`.

The product has no switch for a guard. This launcher takes one away in its own process, so that a test can see the
anomaly that the guard is there against. Each replacement asserts that what it replaces is still there: a guard
that was renamed makes the launcher fail, not the anomaly go away.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def take(holder: object, name: str, substitute: object) -> Any:
    """Puts a substitute in a name's place; returns what was there."""
    original = getattr(holder, name)
    setattr(holder, name, substitute)
    return original


def fence() -> None:
    """Law L2: reads and writes go through at whatever epoch and in whatever mode the shard's fence is."""
    from sqlalchemy import true

    from rowstore import listing, read_statements, write_statements
    from rowstore.model import ShardEpoch
    from rowstore.store import RowStore

    # A mode that is compared with itself is always the right one.
    take(write_statements, "SERVING", write_statements.shard_fences.c.mode)
    for reader in (read_statements, listing):
        take(reader, "is_readable", lambda _mode: true())

    async def at_any_epoch(store: RowStore, rows: Any) -> Any:
        shards = [ShardEpoch(row.region_code, row.shard, row.epoch) for row in rows]
        epochs = {(it.region_code, it.shard): it.epoch for it in await store.fences.get(shards)}
        return [row._replace(epoch=epochs.get((row.region_code, row.shard), row.epoch)) for row in rows]

    read, write = RowStore.read, RowStore.write

    async def unfenced_read(store: RowStore, dataset: Any, keys: Any) -> Any:
        return await read(store, dataset, await at_any_epoch(store, keys))

    async def unfenced_write(store: RowStore, dataset: Any, writes: Any) -> Any:
        return await write(store, dataset, await at_any_epoch(store, writes))

    take(RowStore, "read", unfenced_read)
    take(RowStore, "write", unfenced_write)


def requests() -> None:
    """Laws L3 and L4: a write that is tried again is not recognised."""
    from rowstore.store import RowStore

    write = RowStore.write

    async def forgetful(store: RowStore, dataset: Any, writes: Any) -> Any:
        return await write(store, dataset, [row._replace(request_id="") for row in writes])

    take(RowStore, "write", forgetful)


def freshness() -> None:
    """Law L6: a gateway believes that it knows the law, whatever has become of its lease."""
    from policy.presence import Presence

    assert isinstance(take(Presence, "is_fresh", property(lambda _: True)), property)


def second_judgement() -> None:
    """Law L6: what was judged when it was asked is not judged again before the answer leaves."""
    from gateway import branches, scan

    def as_it_was(decision: Any, *_: object, **__: object) -> Any:
        return decision

    take(branches, "still_stands", as_it_was)
    take(scan, "still_stands", as_it_was)


def beginning() -> None:
    """Law L6: a write that has waited is begun, whatever has become of the law."""
    from gateway.engine import Engine

    take(Engine, "_guard", lambda _engine, _policy: lambda: True)


def withholding() -> None:
    """Law L1: the owner lets withheld columns travel."""
    from gateway import branches, scan

    visible = branches.visible
    take(branches, "visible", lambda row, columns, _withheld: visible(row, columns, frozenset()))
    shown = scan._visible
    take(scan, "_visible", lambda row, query, it: shown(row, query, replace(it, withheld=frozenset())))


def owners_judgement() -> None:
    """Law L6: the owner believes whatever gateway has forwarded a call."""
    from gateway import judge

    decide = judge._decide

    def trusting(policy: Any, operation: Any, asking: Any) -> Any:
        return replace(decide(policy, operation, asking), allowed=True)

    take(judge, "_decide", trusting)


def attempts() -> None:
    """Law L2: a fence obeys a step of a move that was called off."""
    from rowstore.moving import fence_steps

    for name in ("_DRAIN", "_CLOSE"):
        statement: str = getattr(fence_steps, name)
        assert "f.attempt = $4" in statement
        take(fence_steps, name, statement.replace("f.attempt = $4", "f.attempt >= 0 * $4::bigint"))


def switch() -> None:
    """Law L2: an owner is switched without looking whether the rollout still wants it."""
    from policy.controller.ledger import Ledger

    async def unasked(ledger: Ledger, before: Any, after: Any, _wanted: Any, puts: Any, **changes: Any) -> None:
        await ledger.write(before, after, (), puts, **changes)

    take(Ledger, "write_guarded", unasked)


def sessions() -> None:
    """Law L5: a runner goes on with what it has begun, whether it has a session, and the shard, or not."""
    from regionjobs.job_loop import JobLoop

    take(JobLoop, "_still", lambda *_: True)
    take(JobLoop, "_end_if_changed", lambda *_: False)


def ending() -> None:
    """Runners leave the connections of those that are gone alone."""
    from regionjobs.runner import Runner

    async def nothing(_: Runner) -> None:
        return

    take(Runner, "_end_lost_sessions", nothing)


def _advance_without(condition: str, substitute: str) -> None:
    from rowstore.jobs import offsets

    statement: str = offsets._ADVANCE
    assert condition in statement
    take(offsets, "_ADVANCE", statement.replace(condition, substitute))


def token() -> None:
    """Law L5: a commit does not look whether somebody else has taken the shard."""
    _advance_without("o.token = $4", "o.token >= 0 * $4::bigint")


def position() -> None:
    """Law L5: a commit does not look whether the offset is where the batch began."""
    _advance_without("o.seq = $11", "o.seq >= 0 * $11")


def job_fence() -> None:
    """Laws L1 and L5: a commit does not look whether this IDC serves the shard."""
    _advance_without("f.epoch = $5 AND f.mode IN ('serving', 'draining')", "f.epoch >= 0 * $5::bigint")


GUARDS: Mapping[str, Callable[[], None]] = {
    "fence": fence,
    "requests": requests,
    "freshness": freshness,
    "second-judgement": second_judgement,
    "beginning": beginning,
    "withholding": withholding,
    "owners-judgement": owners_judgement,
    "attempts": attempts,
    "switch": switch,
    "sessions": sessions,
    "ending": ending,
    "token": token,
    "position": position,
    "job-fence": job_fence,
    "nothing": lambda: None,
}


def main() -> None:
    """Takes the guards away and becomes the command."""
    _, names, *command = sys.argv
    for name in names.split(","):
        GUARDS[name]()
    sys.argv = ["regiongate", *command]
    from regiongate.cli.main import main as regiongate

    regiongate()


if __name__ == "__main__":
    main()
