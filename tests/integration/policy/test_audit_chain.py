"""The audit trail over a real etcd: many append at once, answers get lost, and every fact is there exactly once."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from policy.audit.chain import AuditChain, TrailDamaged
from policy.audit.entry import AuditHead, ChainCheck, Fact
from policy.errors import RevisionConflict
from policy.records import DrainRecord
from policy.store import GuardFailed
from runtime.etcd import EtcdClient, EtcdUnavailable, compare_create_revision, compare_mod_revision, put_op
from tests.support.cluster import POLICY, WITHOUT_SUPPORT, settings
from tests.support.tcp_proxy import TcpProxy

PATIENCE = 60


@pytest.fixture
async def proxy(etcd):
    async with TcpProxy(etcd.client_port) as proxy:
        yield proxy


@pytest.fixture
async def weak(proxy, cluster):
    """A chain whose way to etcd can be broken."""
    async with EtcdClient(settings(proxy.address)) as client:
        yield AuditChain(client, cluster.keys)


async def entries(cluster):
    """All entries, checked to be one sound chain."""
    check, found, number = ChainCheck(), [], 1
    head = AuditHead()
    while number:
        found_now, head, number = await cluster.store.audit.read(number, 100)
        for entry in found_now:
            check.take(entry)
        found += found_now
    check.end(head)
    return found


async def numbers(cluster):
    return Counter(entry.content["n"] for entry in await entries(cluster) if entry.kind == "move")


async def until_appended(chain, fact):
    """Appends a fact, again for as long as nobody can say whether it is there."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await chain.append(fact)
            except EtcdUnavailable:
                await asyncio.sleep(0)


async def test_many_writers_make_one_chain_without_a_gap_or_a_fork(etcd, cluster):
    async with AsyncExitStack() as stack:
        chains = [
            AuditChain(await stack.enter_async_context(EtcdClient(settings(etcd.endpoint))), cluster.keys)
            for _ in range(6)
        ]

        async def write(writer, chain):
            for number in range(15):
                await chain.append(Fact("move", {"n": 100 * writer + number}))

        await asyncio.gather(*(write(writer, chain) for writer, chain in enumerate(chains)), cluster.apply())
    assert await numbers(cluster) == {100 * writer + number: 1 for writer in range(6) for number in range(15)}
    assert len(await entries(cluster)) == 91


async def test_applying_is_no_conflict_only_because_others_append(cluster):
    async def append():
        for number in range(40):
            await cluster.store.audit.append(Fact("move", {"n": number}))

    appending = asyncio.create_task(append())
    for parent in range(6):
        await cluster.apply(WITHOUT_SUPPORT if parent % 2 else POLICY, parent=parent)
    await appending
    revisions = [entry.content["revision"] for entry in await entries(cluster) if entry.kind == "policy"]
    assert revisions == [1, 2, 3, 4, 5, 6]


class HasRead(AuditChain):
    """A chain that reads the head once: before the network fails, as the tests below need it."""

    head = None

    async def next(self):
        """The head as it was when this was asked first."""
        self.head = self.head or await super().next()
        return self.head


async def test_an_append_whose_answer_is_lost_appends_once(cluster, proxy, weak):
    await weak.append(Fact("move", {"n": 0}))
    async with EtcdClient(settings(proxy.address)) as client:
        chain = HasRead(client, cluster.keys)
        await chain.next()
        proxy.swallow_answers()
        appending = asyncio.create_task(chain.append(Fact("move", {"n": 1})))
        async with asyncio.timeout(PATIENCE):
            while len(await entries(cluster)) < 2:
                pass
        await proxy.cut_connections()
        proxy.resume()
        await appending
    assert await numbers(cluster) == {0: 1, 1: 1}


@pytest.mark.parametrize("late", ["never", "before the repeat", "after another's"])
async def test_a_fact_that_may_arrive_late_is_there_once_when_it_is_sent_again(cluster, proxy, weak, late):
    await weak.append(Fact("move", {"n": 0}))
    fact = Fact("move", {"n": 1})
    async with EtcdClient(settings(proxy.address)) as client:
        chain = HasRead(client, cluster.keys)
        on_its_way = chain.link(await chain.next(), fact)
        proxy.pause()
        with pytest.raises(EtcdUnavailable) as caught:
            await chain.append(fact)
        assert caught.value.may_have_applied
        assert not fact.is_settled
        if late == "after another's":
            await cluster.store.audit.append(Fact("move", {"n": 2}))
        if late != "never":
            await cluster.client.transact(on_its_way.compares, on_its_way.puts)
        proxy.resume()
        await until_appended(weak, fact)
    assert await numbers(cluster) == ({0: 1, 1: 1, 2: 1} if late == "after another's" else {0: 1, 1: 1})


async def test_a_fact_that_arrives_right_before_it_is_sent_again_is_there_once(cluster):
    chain, fact = HasRead(cluster.client, cluster.keys), Fact("move", {"n": 1})
    on_its_way = chain.link(await chain.next(), fact)
    await cluster.client.transact(on_its_way.compares, on_its_way.puts)
    await chain.append(fact)
    assert await numbers(cluster) == {1: 1}


async def test_while_connections_break_all_the_time_every_fact_is_there_once(etcd, cluster, proxy):
    total = 60
    async with AsyncExitStack() as stack:
        chains = [
            AuditChain(await stack.enter_async_context(EtcdClient(settings(proxy.address))), cluster.keys)
            for _ in range(3)
        ]

        async def write(writer):
            for number in range(writer, total, len(chains)):
                await until_appended(chains[writer], Fact("move", {"n": number}))

        writing = asyncio.gather(*map(write, range(len(chains))))
        broken = 0
        async with asyncio.timeout(PATIENCE):
            while not writing.done():
                # Throw away the answers to what goes in now, then break what would have carried them.
                proxy.swallow_answers()
                before = (await cluster.store.audit.next()).newest.number
                for _ in range(20):
                    if (await cluster.store.audit.next()).newest.number > before:
                        break
                await proxy.cut_connections()
                proxy.resume()
                broken += 1
                for _ in range(20):
                    await cluster.store.audit.next()
            await writing
    assert broken > 5
    assert await numbers(cluster) == dict.fromkeys(range(total), 1)


async def test_a_law_and_its_entry_are_stored_together_or_not_at_all(cluster):
    await cluster.apply(author="ada", message="first")
    base = await cluster.store.base()
    await cluster.apply(WITHOUT_SUPPORT, author="bob")
    with pytest.raises(RevisionConflict):
        await cluster.store.commit(base, base.current, None)
    first, second = await entries(cluster)
    assert (first.kind, first.content["revision"], first.content["author"]) == ("policy", 1, "ada")
    assert first.content["rollout"] == "r00000001"
    assert (second.content["author"], second.content["parent"]) == ("bob", 1)
    assert any(line.startswith("-") and "from: [SG]" in line for line in second.content["diff"].splitlines())


async def test_commit_tells_a_guard_of_its_caller_apart_from_another_policy_and_from_another_entry(cluster):
    await cluster.apply()
    base = await cluster.store.base()
    record = base.current.__class__(2, 1, WITHOUT_SUPPORT, "ada", "", base.current.create_time)
    other = cluster.keys.drain("fra")
    drain = put_op(other, DrainRecord("fra", "ada", "", "").encode())
    with pytest.raises(GuardFailed):
        await cluster.store.commit(base, record, None, compares=[compare_mod_revision(other, 7)], puts=[drain])
    assert await cluster.client.get(other) is None
    assert len(await entries(cluster)) == 1
    guard = compare_create_revision(other, 0)
    await asyncio.gather(
        cluster.store.commit(base, record, None, compares=[guard], puts=[drain]),
        *(cluster.store.audit.append(Fact("move", {"n": number})) for number in range(5)),
    )
    assert await cluster.client.get(other) is not None
    assert (await cluster.store.newest_revision(), len(await entries(cluster))) == (2, 7)
    with pytest.raises(RevisionConflict):
        await cluster.store.commit(base, record, None, compares=[compare_create_revision(other, 0)])


async def test_nothing_is_written_over_when_the_head_was_set_back_by_hand(cluster):
    for number in range(3):
        await cluster.store.audit.append(Fact("move", {"n": number}))
    before = await entries(cluster)
    await cluster.client.put(cluster.keys.audit_head, before[1].head.encode())
    with pytest.raises(TrailDamaged):
        await cluster.store.audit.append(Fact("move", {"n": 3}))
    found, _, _ = await cluster.store.audit.read(1, 100)
    assert found == before


async def test_a_page_ends_at_its_number_and_goes_on_behind_it(cluster):
    for number in range(70):
        await cluster.store.audit.append(Fact("move", {"n": number}))
    page = await cluster.store.audit.read(3, 40)
    assert [entry.number for entry in page.entries] == list(range(3, 43))
    assert page.next_number == 43
    rest = await cluster.store.audit.read(43, 40)
    assert [entry.number for entry in rest.entries] == list(range(43, 71))
    assert rest.next_number == 0
