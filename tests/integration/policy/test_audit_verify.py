"""`regiongate audit` against a real etcd: whatever is changed in the policy store by hand is found, and where."""

from __future__ import annotations

import asyncio
import json

import pytest

from policy.audit.entry import AuditEntry, AuditHead, Fact
from policy.records import CurrentPolicy
from regiongate.cli.main import run
from tests.integration.policy.test_policy_service import address
from tests.support.cluster import POLICY, WITH_EMAIL, WITHOUT_SUPPORT

__all__ = ["address"]


@pytest.fixture
async def trail(cluster):
    """Three revisions and some moves: seven entries."""
    for document in (POLICY, WITHOUT_SUPPORT, WITH_EMAIL):
        await cluster.apply(document, author="ada", message="because")
        await cluster.store.audit.append(Fact("move", {"rows": 12, "digest": "ab", "stall_ms": 3.25}))
    await cluster.store.audit.append(Fact("drain", {"idc": "fra", "author": "ada"}))
    return cluster


async def audit(*arguments):
    return await asyncio.to_thread(run, ["audit", *arguments])


async def fault(capsys, address, *arguments):
    """The error line of a check that must fail."""
    assert await audit("verify", "--target", address, *arguments) == 1
    out, err = capsys.readouterr()
    assert "head:" not in out
    assert err.startswith("error: AUDIT_BROKEN: ")
    return err.removeprefix("error: AUDIT_BROKEN: ")


async def entry_of(cluster, number):
    return AuditEntry.decode((await cluster.client.get(cluster.keys.audit_entry(number))).value)


async def put_raw(cluster, place, changes):
    """Changes fields of an entry as somebody with an etcd client would."""
    fields = {**(await entry_of(cluster, place)).fields(), **changes}
    value = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    await cluster.client.put(cluster.keys.audit_entry(place), value)


async def test_a_sound_trail_is_told_with_its_head_which_is_an_anchor(trail, address, capsys):
    assert await audit("verify", "--target", address) == 0
    out = capsys.readouterr().out
    newest = (await trail.store.audit.next()).newest
    assert "entries: 7, all sound (1 drain, 3 move, 3 policy)" in out
    assert "policy revisions: 3, all as they were recorded" in out
    assert f"head: 7:{newest.hash}\n" in out
    assert await audit("verify", "--target", address, "--anchor", f"7:{newest.hash}", "-o", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["head"] == f"7:{newest.hash}"
    assert (told["entries"], told["policy_revisions"]) == (7, [1, 2, 3])


async def test_an_empty_trail_is_sound(address, capsys):
    assert await audit("verify", "--target", address) == 0
    assert f"head: 0:{'0' * 64}" in capsys.readouterr().out


CHANGES = {
    "number": 9,
    "time": "2020-01-01T00:00:00.000000Z",
    "kind": "rollout",
    "content": {"rows": 11},
    "previous_hash": "1" * 64,
    "hash": "2" * 64,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("number", [1, 4, 7])
async def test_a_changed_field_is_found(trail, address, capsys, name, number):
    await put_raw(trail, number, {name: CHANGES[name]})
    assert (await fault(capsys, address)).startswith(f"entry {number}: ")


@pytest.mark.parametrize("value", [b"", b"{", b"\xff\xfe", b'{"number":4}', b"null"])
async def test_an_entry_that_is_none_any_more_is_found(trail, address, capsys, value):
    await trail.client.put(trail.keys.audit_entry(4), value)
    assert (await fault(capsys, address)).startswith("entry 4: was changed")


@pytest.mark.parametrize("number", [1, 4, 7])
async def test_a_removed_entry_is_found(trail, address, capsys, number):
    await trail.client.delete(trail.keys.audit_entry(number))
    assert (await fault(capsys, address)).startswith(f"entry {number}: missing")


async def test_two_swapped_entries_are_found(trail, address, capsys):
    two, four = [await trail.client.get(trail.keys.audit_entry(number)) for number in (2, 4)]
    await trail.client.put(two.key, four.value)
    await trail.client.put(four.key, two.value)
    assert (await fault(capsys, address)).startswith("entry 2: ")


async def test_an_entry_that_was_added_behind_the_head_is_found(trail, address, capsys):
    head = (await trail.store.audit.next()).newest
    added = AuditEntry.after(head, Fact("move", {}))
    await trail.client.put(trail.keys.audit_entry(8), added.encode())
    assert "above what the head names" in await fault(capsys, address)


async def cut(cluster, length):
    for number in range(length + 1, 8):
        await cluster.client.delete(cluster.keys.audit_entry(number))


async def test_a_cut_end_is_found_by_the_head(trail, address, capsys):
    await cut(trail, 5)
    assert (await fault(capsys, address)).startswith("entry 6: missing: the trail ends, and its head names entry 7")


async def test_a_cut_end_with_a_head_to_match_is_found_by_an_anchor(trail, address, capsys):
    anchor = f"7:{(await trail.store.audit.next()).newest.hash}"
    await cut(trail, 6)
    await trail.client.put(trail.keys.audit_head, (await entry_of(trail, 6)).head.encode())
    assert await audit("verify", "--target", address) == 0
    capsys.readouterr()
    assert (await fault(capsys, address, "--anchor", anchor)).startswith("entry 7: missing")


async def test_a_cut_end_with_a_head_to_match_is_found_by_a_policy_revision_without_its_entry(trail, address, capsys):
    await cut(trail, 4)
    await trail.client.put(trail.keys.audit_head, (await entry_of(trail, 4)).head.encode())
    assert "policy revision 3 is current" in await fault(capsys, address)
    await cut(trail, 0)
    await trail.client.delete(trail.keys.audit_head)
    assert "policy revision 1 is current" in await fault(capsys, address)
    assert await audit("verify", "--target", address, "--recorded-from", "4") == 0


async def test_a_trail_that_was_rewritten_as_a_whole_is_found_by_an_anchor_only(trail, address, capsys):
    anchor = f"6:{(await entry_of(trail, 6)).hash}"
    head = AuditHead()
    for number in range(1, 8):
        old = await entry_of(trail, number)
        content = {**old.content, "author": "eve"} if old.kind == "drain" else {**old.content, "rows": 1}
        new = AuditEntry.after(head, Fact(old.kind, content, time=old.time))
        await trail.client.put(trail.keys.audit_entry(number), new.encode())
        head = new.head
    await trail.client.put(trail.keys.audit_head, head.encode())
    assert await audit("verify", "--target", address) == 0
    capsys.readouterr()
    assert (await fault(capsys, address, "--anchor", anchor)).startswith("entry 6: is not the one that was noted")


@pytest.mark.parametrize("head", [b"", b"{}", b'{"number":1000000000000,"hash":"00"}', b'{"number":7,"hash":"00"}'])
async def test_a_spoiled_head_is_found(trail, address, capsys, head):
    await trail.client.put(trail.keys.audit_head, head)
    assert await fault(capsys, address)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("document", POLICY),
        ("author", "eve"),
        ("message", ""),
        ("parent", 0),
        ("create_time", "2020-01-01T00:00:00+00:00"),
        ("rollout", "r00000009"),
        ("rules", {"version": 1}),
        ("revision", 1),
    ],
)
async def test_a_changed_policy_revision_is_found(trail, address, capsys, name, value):
    key = trail.keys.policy_revision(2)
    stored = json.loads((await trail.client.get(key)).value)
    await trail.client.put(key, json.dumps({**stored, name: value}).encode())
    assert "entry 3: records policy revision 2, which was changed since" in await fault(capsys, address)


@pytest.mark.parametrize("value", [None, b"{"])
async def test_a_policy_revision_that_has_gone_is_found(trail, address, capsys, value):
    key = trail.keys.policy_revision(2)
    await (trail.client.delete(key) if value is None else trail.client.put(key, value))
    assert "entry 3: records policy revision 2, which cannot be read any more" in await fault(capsys, address)


@pytest.mark.parametrize("number", [2, 77])
async def test_another_current_policy_than_the_newest_is_found(trail, address, capsys, number):
    await trail.client.put(trail.keys.policy_current, CurrentPolicy(number).encode())
    assert "records policy revision 3" in await fault(capsys, address)


async def test_an_export_is_checked_without_a_gateway(trail, address, capsys, tmp_path):
    assert await audit("export", "--target", address) == 0
    lines = capsys.readouterr().out.splitlines(keepends=True)
    assert [json.loads(line)["number"] for line in lines] == list(range(1, 8))
    file = tmp_path / "trail.jsonl"
    file.write_text("".join(lines))
    assert await audit("verify", "--file", str(file), "-o", "json") == 0
    head = json.loads(capsys.readouterr().out)["head"]
    file.write_text("".join(lines[:-1]))
    assert await audit("verify", "--file", str(file)) == 0
    assert await audit("verify", "--file", str(file), "--anchor", head) == 1
    file.write_text("".join(lines).replace("because", "by mistake", 1))
    capsys.readouterr()
    assert await audit("verify", "--file", str(file)) == 1
    assert "error: AUDIT_BROKEN: entry 1: was changed" in capsys.readouterr().err


async def test_an_export_begins_where_it_is_told_and_is_a_table_when_asked(trail, address, capsys):
    assert await audit("export", "--target", address, "--from", "6") == 0
    assert [json.loads(line)["number"] for line in capsys.readouterr().out.splitlines()] == [6, 7]
    assert await audit("export", "--target", address, "-o", "table") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["NUMBER", "TIME", "KIND", "CONTENT"]
    assert len(out.splitlines()) == 8


async def test_an_anchor_that_is_none_is_a_usage_error(address, capsys):
    assert await audit("verify", "--target", address, "--anchor", "7") == 2
    assert "NUMBER:HASH" in capsys.readouterr().err
