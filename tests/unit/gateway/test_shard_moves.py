"""The steps of moves against a table that a test moves by hand, and a mover that only notes what it is asked."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from gateway import shard_import
from gateway.export_parts import decode_part, encode_part
from gateway.move_checks import PHASES, Step
from policy.errors import (
    AccessDenied,
    DatabaseUnavailable,
    InvalidInput,
    NotOwnedHere,
    SchemaDiffers,
    StaleAttempt,
    TableTooOld,
    Unavailable,
)
from policy.model import Phase
from policy.records import Leftover
from regiongate.v1 import shard_service_pb2 as pb
from rowstore.moving.model import (
    End,
    Head,
    ImportProgress,
    ShardDigest,
    SliceEnd,
    SliceStart,
    TableLayout,
)
from tests.support.gateways import until
from tests.support.move_sides import (
    CALLED_OFF,
    NO_UK,
    TIME,
    WAY,
    HandCall,
    Side,
    reference,
    side_of,
)


@pytest.mark.parametrize("phase", list(WAY))
@pytest.mark.parametrize("step", list(Step))
async def test_a_step_is_taken_in_the_phases_in_which_the_record_asks_for_it(step: Step, phase: Phase):
    """Law L2: the first line of defence; the second is the fence's own attempt."""
    record = WAY[phase]
    side = side_of(step, record)
    asked = reference(attempt=record.attempt)
    if phase in PHASES[step]:
        await side.take(step, asked)
        assert side.mover.steps or step in (Step.EXPORT, Step.FINAL_EXPORT)
    else:
        with pytest.raises((TableTooOld, StaleAttempt)):
            await side.take(step, asked)
        assert not side.mover.steps


@pytest.mark.parametrize("step", list(Step))
@pytest.mark.parametrize("wrong", [{"attempt": 2}, {"epoch": 2}, {"source_idc": "ams"}, {"target_idc": "ams"}])
async def test_a_step_of_another_move_is_not_taken(step: Step, wrong: dict[str, object]):
    """Law L2."""
    phase = next(
        phase
        for phase in WAY
        if phase in PHASES[step] and WAY[phase].attempt == reference().attempt + (step is Step.REOPEN)
    )
    side = side_of(step, WAY[phase])
    right = reference(attempt=WAY[phase].attempt)
    asked = reference(**{"attempt": WAY[phase].attempt} | ({"attempt": 9} if "attempt" in wrong else wrong))
    if step is Step.PURGE and "target_idc" in wrong:
        pytest.skip("what is to be purged is said by IDC, epoch and attempt")
    with pytest.raises((TableTooOld, StaleAttempt, InvalidInput, NotOwnedHere)):
        await side.take(step, asked)
    assert not side.mover.steps
    await side.take(step, right)


async def test_a_step_of_an_attempt_that_was_called_off_is_refused_at_once():
    side = Side("fra", WAY[Phase.ABORTING])
    with pytest.raises(StaleAttempt):
        await side.take(Step.DRAIN, reference(attempt=1), timeout=3600)


async def test_a_step_that_this_gateway_has_not_heard_of_waits_for_the_table():
    side = Side("fra", WAY[Phase.COPYING])
    draining = asyncio.create_task(side.take(Step.DRAIN, timeout=3600))
    await side.view.waiting.wait()
    assert not side.mover.steps
    side.show(WAY[Phase.DRAINING])
    await draining
    assert side.mover.steps == ["drain"]


async def test_what_a_move_that_was_called_off_has_left_is_purged_whatever_it_is():
    side = Side("lon", CALLED_OFF)
    deadline = asyncio.get_running_loop().time() + 1
    request = pb.PurgeShardRequest(move=reference(attempt=2))
    await side.steps.purge(request, deadline)
    assert side.mover.steps == ["purge all"]


@pytest.mark.parametrize("expected", [None, {"rows": 6, "digest": "ab"}, {"rows": 7, "digest": "cd"}])
async def test_a_source_is_purged_only_of_what_the_record_says_that_the_new_owner_has(expected):
    """Law L3."""
    side = Side("fra", WAY[Phase.PURGING])
    request = pb.PurgeShardRequest(move=reference(), expected=pb.ShardDigest(**expected) if expected else None)
    with pytest.raises(InvalidInput):
        await side.steps.purge(request, asyncio.get_running_loop().time() + 1)
    assert not side.mover.steps


async def test_an_owner_is_never_purged():
    """Law L3: whatever the record says."""
    side = Side("lon", replace(WAY[Phase.PURGING], leftovers=(Leftover("lon", 1, 1, "r", 7, "ab"),)))
    with pytest.raises((TableTooOld, StaleAttempt)):
        await side.take(Step.PURGE)
    assert not side.mover.steps


# ---- law L1 ----

PARTS = [
    Head((TableLayout("rows_customers", ("region_code", "key"), ("text", "text")),), 9),
    SliceStart("rows_customers", 9),
    b"rows",
    SliceEnd(ShardDigest(4, "0f"), 9, TIME),
    End(9, TIME),
]


async def test_rows_are_given_to_the_target_of_the_move_only():
    """Law L1."""
    side = Side("fra", WAY[Phase.COPYING])
    side.mover.parts = PARTS
    for stranger in ("", "fra", "ams", "sin"):
        call = HandCall(stranger)
        with pytest.raises(NotOwnedHere):
            await side.exports.export(pb.ExportShardRequest(move=reference()), call)
        assert not call.sent
    call = HandCall("lon")
    await side.exports.export(pb.ExportShardRequest(move=reference()), call)
    assert [decode_part(message) for message in call.sent] == PARTS


@pytest.mark.parametrize("idc", ["fra", "lon"])
async def test_neither_side_takes_part_in_what_the_law_forbids(idc: str):
    """Law L1: each judges by its own newest table."""
    side = Side(idc, WAY[Phase.COPYING])
    side.mover.parts = PARTS
    side.show(WAY[Phase.COPYING], NO_UK)
    with pytest.raises(AccessDenied) as caught:
        await side.take(Step.EXPORT if idc == "fra" else Step.IMPORT)
    assert (caught.value.rule, caught.value.policy_revision) == ("europe", 2)
    assert not side.mover.steps


@pytest.mark.parametrize("idc", ["fra", "lon"])
async def test_neither_side_takes_part_when_it_cannot_know_the_law(idc: str):
    """Law L6."""
    side = Side(idc, WAY[Phase.COPYING])
    side.mover.parts = PARTS
    side.view.is_fresh = False
    with pytest.raises(TableTooOld):
        await side.take(Step.EXPORT if idc == "fra" else Step.IMPORT)
    assert not side.mover.steps


async def test_a_law_that_changes_in_the_middle_of_an_import_stops_it_before_the_next_part():
    """Law L1."""
    side = Side("lon", WAY[Phase.COPYING])
    importing = asyncio.create_task(side.imports.run(pb.ImportShardRequest(move=reference()), HandCall()))
    for part in PARTS[:2]:
        side.source.parts.put_nowait(part)
    await side.mover.begun.wait()
    await until(lambda: len(side.mover.loaded) == 2)
    side.show(WAY[Phase.COPYING], NO_UK)
    for part in PARTS[2:]:
        side.source.parts.put_nowait(part)
    with pytest.raises(AccessDenied):
        await importing
    assert side.mover.loaded == PARTS[:2]


async def test_a_source_stops_sending_when_the_law_changes():
    """Law L1."""
    side = Side("fra", WAY[Phase.COPYING])
    side.mover.parts = PARTS

    class Changing(HandCall):
        async def send(self, message) -> None:
            await super().send(message)
            side.show(WAY[Phase.COPYING], NO_UK)

    call = Changing("lon")
    with pytest.raises(AccessDenied):
        await side.exports.export(pb.ExportShardRequest(move=reference()), call)
    assert len(call.sent) == 1


# ---- imports ----


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shard_import, "FIRST_PAUSE", 0.0)


async def test_what_fails_for_a_while_is_begun_again_and_what_fails_for_good_is_told():
    side = Side("lon", WAY[Phase.COPYING])
    side.mover.failures = [DatabaseUnavailable("away"), DatabaseUnavailable("away")]
    call = HandCall()
    side.source.parts.put_nowait(End(9, None))
    await side.imports.run(pb.ImportShardRequest(move=reference()), call)
    assert side.mover.steps == ["begin_import"] * 3
    assert [message.is_done for message in call.sent] == [True]
    side.mover.failures = [SchemaDiffers("other columns")]
    with pytest.raises(SchemaDiffers):
        await side.take(Step.IMPORT)


async def test_an_import_goes_on_while_much_changes_and_says_that_it_is_done_only_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(shard_import, "TELL_SECONDS", 0.0)
    side, call = Side("lon", WAY[Phase.COPYING]), HandCall()
    side.mover.loaded = [None] * 1000  # as many changes as one export carries

    async def begin_import(_, **__):
        told = len(call.sent)
        if len(side.mover.loaded) > 1000:
            await until(lambda: len(call.sent) > told)
        return ImportProgress(len(side.mover.loaded), None, 9, len(side.mover.loaded), 0)

    async def import_parts(_step, parts, **_):
        side.mover.loaded += [None] * (await anext(parts)).last_seq
        yield ImportProgress(len(side.mover.loaded), None, 9, len(side.mover.loaded), 0, is_done=True)

    side.mover.begin_import, side.mover.import_parts = begin_import, import_parts
    for carried in (4000, 2000, 100):
        side.source.parts.put_nowait(End(carried, None))
    await side.imports.run(pb.ImportShardRequest(move=reference()), call)
    assert len(side.mover.loaded) == 7100
    assert [message.is_done for message in call.sent] == [False] * (len(call.sent) - 1) + [True]


async def test_an_import_that_does_not_get_on_is_given_up_after_a_number_of_tries():
    side = Side("lon", WAY[Phase.COPYING])
    side.mover.failures = [DatabaseUnavailable("away")] * 20
    with pytest.raises(DatabaseUnavailable):
        await side.take(Step.IMPORT)
    assert len(side.mover.steps) == shard_import.MAX_FAILURES + 1


async def test_a_newer_import_of_a_shard_takes_the_place_of_the_older():
    side = Side("lon", WAY[Phase.COPYING])
    first = asyncio.create_task(side.imports.run(pb.ImportShardRequest(move=reference()), HandCall()))
    await side.mover.begun.wait()
    side.mover.begun.clear()
    second = asyncio.create_task(side.imports.run(pb.ImportShardRequest(move=reference()), HandCall()))
    with pytest.raises(Unavailable):
        await first
    await side.mover.begun.wait()
    side.source.parts.put_nowait(End(9, None))
    await second


async def test_an_import_that_is_cancelled_leaves_nothing_running():
    side = Side("lon", WAY[Phase.COPYING])
    importing = asyncio.create_task(side.imports.run(pb.ImportShardRequest(move=reference()), HandCall()))
    await side.mover.begun.wait()
    importing.cancel()
    with suppress(asyncio.CancelledError):
        await importing
    assert [task for task in asyncio.all_tasks() if task.get_name() == "import"] == []
    side.source.parts.put_nowait(End(9, None))
    await side.take(Step.IMPORT)


@pytest.mark.parametrize(
    "part", [*PARTS, SliceStart("rows_customers"), SliceEnd(ShardDigest(0, "")), End(0, None), Head((), 0), b""]
)
def test_a_part_survives_the_way(part):
    assert decode_part(pb.ExportShardResponse.FromString(encode_part(part).SerializeToString())) == part
