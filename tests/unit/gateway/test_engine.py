"""The engine on rows in memory, with the other IDCs out of reach; tests/integration/gateway has them in reach."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from gateway.operations import Action, RowOperation
from policy.errors import (
    AccessDenied,
    DatabaseUnavailable,
    DeadlineExceeded,
    InvalidValue,
    NoPolicy,
    NotOwnedHere,
    PeerUnreachable,
    RowNotFound,
    ShardUnavailable,
    TableTooOld,
    VersionConflict,
)
from rowstore.model import FenceMode
from runtime.telemetry.spans import read_spans
from runtime.telemetry.tracing import Tracing
from tests.support import routing
from tests.support.engine_side import ENTRY, SUPPORT, TABLE, Gateway, delete, get, put


async def test_a_row_is_written_read_and_deleted():
    gateway = Gateway()
    (written,) = await gateway.do(put("k", "Ada"))
    assert written.receipt
    (found,) = await gateway.do(get("k"))
    assert found.row
    assert (found.row.values, found.row.version) == ({"name": "Ada", "spend": 1}, written.receipt.version)
    assert (found.decision.rule, found.owner_idc) == ("europe", "fra")
    await gateway.do(delete("k"))
    (gone,) = await gateway.do(get("k"))
    assert isinstance(gone.error, RowNotFound)


async def test_one_message_of_many_operations_is_one_statement_of_each_kind():
    gateway = Gateway()
    await gateway.do(*(put(f"k{number}") for number in range(20)), *(get(f"k{number}") for number in range(30)))
    assert sorted(gateway.rows.statements) == [("read", 30), ("write", 20)]


async def test_each_operation_ends_as_its_own():
    gateway = Gateway()
    await gateway.do(put("there"))
    found = await gateway.do(
        get("there"),
        get("missing"),
        get("k", "XX"),
        get("k", "CN"),
        put("there", if_version=7),
        put("new", if_version=0),
        get("there", "FR"),
    )
    assert found[0].row
    assert isinstance(found[1].error, RowNotFound)
    assert found[2].error.reason == "UNKNOWN_REGION"
    assert isinstance(found[3].error, AccessDenied)
    assert isinstance(found[4].error, VersionConflict)
    assert found[4].error.current == found[0].row.version
    assert found[5].receipt
    assert isinstance(found[6].error, PeerUnreachable)


async def test_withheld_columns_and_those_not_asked_for_are_dropped_here():
    """Law L1: what is withheld never leaves the owner."""
    gateway = Gateway()
    await gateway.do(put("k"))
    (found,) = await gateway.do(get("k"), **SUPPORT)
    assert set(found.row.values) == {"spend"}
    assert found.decision.withheld == {"name"}
    (found,) = await gateway.do(get("k", columns=frozenset({"name"})))
    assert set(found.row.values) == {"name"}
    (found,) = await gateway.do(get("k", columns=frozenset({"name"})), **SUPPORT)
    assert found.row.values == {}


async def test_before_the_first_policy_everything_says_so():
    gateway = Gateway(table=None)
    (found,) = await gateway.do(get("k"))
    assert isinstance(found.error, NoPolicy)


async def test_a_forwarded_operation_for_another_idc_names_the_owner_with_its_endpoints():
    gateway = Gateway()
    gateway.view.gateways = {"ams": (routing.gateway("ams", address="10.0.0.1:7000"),)}
    (found,) = await gateway.do(get("k", "FR"), ingress_idc="lon")
    assert isinstance(found.error, NotOwnedHere)
    assert (found.error.owner_idc, found.error.endpoints) == ("ams", ("10.0.0.1:7000",))


# ---- writes of one call ----


async def test_a_row_twice_in_a_message_is_written_twice():
    gateway = Gateway()
    first, second, other = await gateway.do(put("k", "a"), put("k", "b"), put("x"))
    assert first.receipt.version != second.receipt.version
    assert other.receipt
    (found,) = await gateway.do(get("k"))
    assert found.row.version == max(first.receipt.version, second.receipt.version)


async def test_a_batch_with_one_request_id_stays_together_when_another_row_is_twice():
    """Law L4: a retry must find the batch remembered as one."""
    gateway = Gateway()
    batch = [put(f"k{number}", request_id="r1") for number in range(8)]
    first = await gateway.do(*batch, put("k0", "bare"), put("k0", "bare"))
    again = await gateway.do(*batch)
    assert [it.receipt.version for it in again] == [it.receipt.version for it in first[:8]]
    assert all(it.receipt.is_replay for it in again)


async def test_one_request_id_for_two_writes_of_one_row_is_refused_alone():
    gateway = Gateway()
    first, second, other = await gateway.do(put("k", request_id="r"), put("k", request_id="r"), put("x"))
    assert first.receipt
    assert isinstance(second.error, InvalidValue)
    assert other.receipt


async def test_concurrent_attempts_of_one_request_write_once():
    """Law L4."""
    gateway = Gateway()
    attempts = await asyncio.gather(*(gateway.do(put("k", request_id="r1")) for _ in range(3)))
    versions = {attempt[0].receipt.version for attempt in attempts}
    assert len(versions) == 1
    assert sum(attempt[0].receipt.is_replay for attempt in attempts) == 2


# ---- holding ----


async def test_one_held_operation_delays_no_other_one_in_parts():
    gateway = Gateway(hold_timeout=timedelta(seconds=0.1))
    gateway.rows.set_fence("DE", TABLE.resolve("DE", "held").shard, mode=FenceMode.CLOSED)
    operations = [get(key) for key in ("held", *"abcdefgh")]
    parts = [part async for part in gateway.engine.execute_in_parts(operations, gateway.context())]
    free = {index for index, _ in parts[0]}
    assert 0 not in free
    assert free
    assert sorted(index for part in parts for index, _ in part) == list(range(9))
    assert isinstance(dict(parts[-1])[0].error, ShardUnavailable)


async def test_parts_of_a_call_whose_caller_has_gone_are_given_up():
    gateway = Gateway()
    gateway.rows.pause()
    operations = [get("a"), put("b"), get("k", "FR")]

    async def listen():
        return [part async for part in gateway.engine.execute_in_parts(operations, gateway.context())]

    listening = asyncio.create_task(listen())
    await gateway.rows.wait_begun(2)
    later = asyncio.create_task(gateway.do(get("x")))
    listening.cancel()
    await asyncio.wait({listening})
    assert listening.cancelled()
    gateway.rows.resume()
    assert isinstance((await later)[0].error, RowNotFound)


async def test_a_deadline_ends_an_operation_whose_database_does_not_answer():
    gateway = Gateway()
    gateway.rows.pause()
    found = await gateway.do(get("a"), put("b"), timeout=0.02)
    assert all(isinstance(outcome.error, DeadlineExceeded) for outcome in found)
    gateway.rows.resume()
    await gateway.engine.drain()


async def test_a_database_that_is_down_is_said_to_be():
    gateway = Gateway()
    gateway.rows.failure = DatabaseUnavailable("down")
    found = await gateway.do(get("a"), put("b"))
    assert all(isinstance(outcome.error, DatabaseUnavailable) for outcome in found)


# ---- law L6 ----

STRICTER = routing.policy(
    routing.POLICY.replace("purposes: [support]", "purposes: [legal]").replace("[entry]", "[legal]"), 2
)
HIDING = routing.policy(routing.POLICY.replace("spend: {type: int64}", "spend: {type: int64, class: personal}"), 2)


async def test_a_read_across_the_border_is_judged_again_before_it_leaves():
    """Law L6."""
    gateway = Gateway()
    await gateway.do(put("k"))
    gateway.rows.pause()
    crossing = asyncio.create_task(gateway.do(get("k"), get("missing"), **SUPPORT))
    at_home = asyncio.create_task(gateway.do(get("k")))
    await gateway.rows.wait_begun(2)
    gateway.view.patch(store_revision=11, law=STRICTER)
    gateway.rows.resume()
    found, missing = await crossing
    for outcome in (found, missing):
        assert isinstance(outcome.error, AccessDenied), "whether the row exists is not told either"
        assert outcome.error.policy_revision == 2
    assert (await at_home)[0].row


async def test_a_read_across_the_border_loses_what_the_newest_law_withholds():
    """Law L6."""
    gateway = Gateway()
    await gateway.do(put("k"))
    gateway.rows.pause()
    crossing = asyncio.create_task(gateway.do(get("k"), **SUPPORT))
    await gateway.rows.wait_begun(2)
    gateway.view.patch(store_revision=11, law=HIDING)
    gateway.rows.resume()
    (found,) = await crossing
    assert found.row.values == {}
    assert (found.decision.policy_revision, found.decision.withheld) == (2, {"name", "spend"})


async def test_a_read_across_the_border_does_not_leave_when_the_table_is_no_longer_fresh():
    """Law L6: the process was paused between judging and answering."""
    gateway = Gateway()
    await gateway.do(put("k"))
    gateway.rows.pause()
    crossing = asyncio.create_task(gateway.do(get("k"), **SUPPORT))
    at_home = asyncio.create_task(gateway.do(get("k")))
    await gateway.rows.wait_begun(2)
    gateway.view.is_fresh = False
    gateway.rows.resume()
    assert isinstance((await crossing)[0].error, TableTooOld)
    assert (await at_home)[0].row


async def test_a_write_across_the_border_that_waited_for_its_turn_is_judged_again_before_it_begins():
    """Law L6."""
    gateway = Gateway(writes_in_flight=1)
    gateway.rows.pause()
    first = asyncio.create_task(gateway.do(put("a"), **ENTRY))
    await gateway.rows.wait_begun(1)
    crossing = asyncio.create_task(gateway.do(put("k"), **ENTRY))
    at_home = asyncio.create_task(gateway.do(put("x")))
    await asyncio.sleep(0)
    gateway.view.patch(store_revision=11, law=STRICTER)
    gateway.rows.resume()
    assert (await first)[0].receipt, "it had begun"
    assert isinstance((await crossing)[0].error, AccessDenied)
    assert (await at_home)[0].receipt
    assert isinstance((await gateway.do(get("k")))[0].error, RowNotFound)


async def test_without_a_fresh_table_the_own_jurisdiction_is_served_and_borders_are_closed():
    """Law L6."""
    gateway = Gateway()
    gateway.view.is_fresh = False
    own, crossing = (await gateway.do(put("k")))[0], (await gateway.do(get("k"), **SUPPORT))[0]
    neighbour, unknown = await gateway.do(get("k", "FR"), get("k", "XX"))
    assert own.receipt
    assert isinstance(neighbour.error, PeerUnreachable), "forwarded: ams is under the same law, and has no gateway here"
    for outcome in (crossing, unknown):
        assert isinstance(outcome.error, TableTooOld)


async def test_columns_that_a_later_policy_adds_are_not_read_for_operations_of_an_earlier_one():
    """Law L6: a statement reads the columns of one revision, whose decision knows all of them."""
    gateway = Gateway()
    wider = routing.policy(
        routing.POLICY.replace("  counters:", "      email: {type: string, class: personal}\n  counters:"), 2
    )
    await gateway.do(RowOperation(Action.PUT, wider.datasets["customers"], "DE", "k", values={"email": "e"}))
    old, new = await asyncio.gather(
        gateway.do(get("k")), gateway.do(RowOperation(Action.GET, wider.datasets["customers"], "DE", "k"))
    )
    assert set(new[0].row.values) == {"name", "spend", "email"}
    assert len(gateway.rows.statements) == 3
    assert old[0].row


# ---- traces ----


async def test_a_sampled_call_has_a_span_here_and_one_for_the_statement_that_it_shares(tmp_path):
    tracing = Tracing("gateway", "fra", 1.0, tmp_path)
    gateway = Gateway(tracing=tracing)
    one, two = ("0" * 31 + digit for digit in "12")
    await asyncio.gather(
        gateway.do(put("secret-a"), put("secret-b"), traceparent=f"00-{one}-{'1' * 16}-01"),
        gateway.do(put("secret-c", traceparent=f"00-{two}-{'2' * 16}-03")),
        gateway.do(put("secret-d"), traceparent=f"00-{'3' * 32}-{'3' * 16}-00"),
        gateway.do(put("secret-e")),
    )
    tracing.shutdown()
    spans = list(read_spans(tmp_path))
    assert sorted((span.trace_id[-1], span.name) for span in spans) == [
        ("1", "db.write"),
        ("1", "gateway.serve"),
        ("2", "gateway.serve"),
    ]
    (statement,) = (span for span in spans if span.name == "db.write")
    assert statement.attributes["regiongate.rows"] == 5
    assert [link[:32] for link in statement.links] == [two]
    assert "secret" not in "".join(path.read_text() for path in tmp_path.glob("*"))
