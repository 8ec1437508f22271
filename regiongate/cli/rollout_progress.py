"""A rollout's way to its end, told on stderr while it goes.

On a terminal it is one picture that changes; anywhere else it is one line for each finished move and for each thing
that the rollout comes to, without control characters. A gateway that dies is no reason to stop: the next one is asked,
and tells everything anew.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from rich.live import Live
from rich.table import Table
from rich.text import Text

from regiongate.cli.failures import CommandFailed
from regiongate.cli.output import say, stderr
from regiongate.cli.policy_calls import counted, policy_stub

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regiongate.cli.entry import Entry
    from regiongate.v1 import policy_service_pb2 as pb
    from regiongate.v1.policy_service_pb2_grpc import PolicyServiceAsyncStub

SILENCE_SECONDS = 600.0
"""How long nothing may be heard of a rollout."""
_RECONNECT_SECONDS = 60.0
_PAUSE_SECONDS = 0.3
_SHOWN_MOVES = 12
ENDED = frozenset({"done", "cancelled", "superseded"})
AT_REST = frozenset({"waiting", "done", "called off"})


class Progress:
    """What is known of a rollout, put together from what a watch has told."""

    def __init__(self) -> None:
        self.rollout: pb.Rollout | None = None
        self.news = 0
        """Goes up with everything that was not known before."""
        self._moves: dict[tuple[str, int], pb.ShardMove] = {}
        self._told: set[tuple[str, int]] = set()
        self._stages: set[str] = set()

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.rollout is not None and self.rollout.state in ENDED

    @property
    def under_way(self) -> list[pb.ShardMove]:
        """Moves that have begun and not come to their end."""
        return [move for move in self._moves.values() if move.phase not in AT_REST]

    def take(self, rollout: pb.Rollout) -> list[str]:
        """Takes a message in; returns the lines that it is worth."""
        known, self.rollout = self.rollout, rollout
        lines: list[str] = []
        never_begun = 0
        self.news += known is None or (known.state, known.shards_done) != (rollout.state, rollout.shards_done)
        for move in rollout.moves:
            key = move.region_code, move.shard
            self.news += self._moves.get(key) != move
            self._moves[key] = move
            if move.phase in ("done", "called off") and key not in self._told:
                self._told.add(key)
                if move.phase == "called off" and not move.attempt:
                    never_begun += 1
                else:
                    lines.append(end_text(move))
            elif move.phase not in AT_REST:
                self._told.discard(key)
        if never_begun:
            lines.append(
                f"{counted(never_begun, 'move')} called off before {'it' if never_begun == 1 else 'they'} began"
            )
        stage = self._stage()
        if stage not in self._stages and not self.is_ended:  # its end is told by who follows it
            self._stages.add(stage)
            lines.insert(0, f"rollout {rollout.rollout} {stage}")
        return lines

    def headline(self) -> str:
        """Where the rollout stands, in one line."""
        rollout = self.rollout
        if rollout is None:
            return "waiting for the rollout"
        return f"{rollout.rollout} is {rollout.state}: {rollout.shards_done} of {counted(rollout.shards_total)}"

    def _stage(self) -> str:
        rollout = self.rollout
        if rollout is None or rollout.state != "running":
            return f"is {rollout.state if rollout else 'unknown'}"
        phases = {move.phase for move in self.under_way}
        if phases - {"purging"}:
            return "moves shards"
        if phases:
            return "deletes what its moves have left behind"
        if any(move.phase == "waiting" for move in self._moves.values()):
            return f"has {counted(rollout.shards_total)} to bring to where they are to be"
        is_assigning = rollout.shards_done < rollout.shards_total - len(self._moves)
        return "gives shards their first owners" if is_assigning else "comes to its end"


def end_text(move: pb.ShardMove) -> str:
    """How a move has ended."""
    way = f"{move.region_code}/{move.shard} {move.from_idc} -> {move.to_idc}"
    if move.phase == "called off":
        return f"{way}: called off{f', {move.note}' if move.note else ''}"
    stall = f", writes held for {move.stall_ms:,.0f} ms" if move.HasField("switch_time") else ""
    return f"{way}: done, {counted(move.rows_copied, 'row')}{stall}"


class Screen(Protocol):
    """Where progress is shown."""

    def show(self, progress: Progress, lines: Iterable[str]) -> None:
        """Shows what is new, and where things stand."""
        ...


class Lines:
    """For logs and pipes: what is new, line by line."""

    def show(self, progress: Progress, lines: Iterable[str]) -> None:  # noqa: ARG002 (the screen's)
        """Prints the lines."""
        for line in lines:
            say(line)


class Picture:
    """For terminals: a table of what is under way, below the lines."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, progress: Progress, lines: Iterable[str]) -> None:
        """Prints the lines above the picture, and draws it anew."""
        for line in lines:
            self._live.console.print(Text(line))
        self._live.update(draw(progress))


def draw(progress: Progress) -> Table:
    """The moves under way."""
    table = Table(box=None, pad_edge=False, title=Text(progress.headline()), title_justify="left")
    for column in ("shard", "way", "phase", "rows", "rows/s", "remaining"):
        table.add_column(column.upper(), justify="right" if column in ("rows", "rows/s", "remaining") else "left")
    for move in progress.under_way[:_SHOWN_MOVES]:
        table.add_row(
            f"{move.region_code}/{move.shard}",
            f"{move.from_idc} -> {move.to_idc}",
            move.phase,
            f"{move.rows_copied:,}",
            f"{move.rows_per_second:,.0f}",
            f"{move.remaining:,}",
        )
    more = len(progress.under_way) - _SHOWN_MOVES
    note = progress.rollout.note if progress.rollout else ""
    table.caption = Text(f"{f'and {more} more; ' if more > 0 else ''}{note}")
    table.caption_justify = "left"
    return table


async def follow_rollout(entry: Entry, rollout: str) -> pb.Rollout:
    """Shows a rollout's progress until it has ended, and says how; raises `CommandFailed` when it does not end."""
    progress = Progress()
    if stderr().is_terminal:
        with Live(draw(progress), console=stderr(), transient=True, refresh_per_second=10) as live:
            await _watch(entry, rollout, progress, Picture(live))
    else:
        await _watch(entry, rollout, progress, Lines())
    last = progress.rollout
    if last is None or not progress.is_ended:
        hint = last.note if last else ""
        raise CommandFailed("ROLLOUT_UNFINISHED", f"nothing was heard of rollout {rollout} for a long time", hint)
    say(f"rollout {rollout} is {last.state}: {last.shards_done} of {counted(last.shards_total)}; {last.note}")
    return last


async def finish_rollout(entry: Entry, rollout: str) -> pb.Rollout:
    """The same, for who has ordered it: raises `CommandFailed` when it was not done as ordered."""
    last = await follow_rollout(entry, rollout)
    if last.state != "done":
        raise CommandFailed(f"ROLLOUT_{last.state.upper()}", f"rollout {rollout} is {last.state}", last.note)
    return last


async def _watch(entry: Entry, rollout: str, progress: Progress, screen: Screen) -> None:
    """Takes what gateways tell, one after another as they die, until the rollout has ended or nothing is heard."""
    import grpc.aio  # noqa: PLC0415 (takes 100 ms to load; --help needs none)

    loop = asyncio.get_running_loop()
    heard = connected = loop.time()
    while not progress.is_ended and loop.time() - heard < SILENCE_SECONDS:
        news = progress.news
        try:
            async with policy_stub(entry) as stub:
                await _take_all(stub, rollout, progress, screen)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
        except CommandFailed:  # no gateway answers now
            if loop.time() - connected > _RECONNECT_SECONDS:
                raise
            await asyncio.sleep(_PAUSE_SECONDS)
            continue
        connected = loop.time()
        if progress.news > news:
            heard = connected
        if not progress.is_ended:
            await asyncio.sleep(_PAUSE_SECONDS)


async def _take_all(stub: PolicyServiceAsyncStub, rollout: str, progress: Progress, screen: Screen) -> None:
    from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

    request = pb.WatchRolloutRequest(rollout=rollout)
    async for answer in stub.WatchRollout(request, timeout=SILENCE_SECONDS):
        screen.show(progress, progress.take(answer.rollout))
