"""Law L6 in every order of events: see `tests.support.law_of_freshness`."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from tests.support.law_of_freshness import TTL, Guards, Protocol, explore, may_cross, serves_its_own

GUARDS = [field.name for field in fields(Guards)]


def test_law_l6_holds_in_every_order_of_events():
    story, worlds = explore(Guards())
    assert not story, " -> ".join(story)
    # The law would hold in an empty world, too: what it is about has happened in some of these.
    protocol = Protocol(Guards())
    effective = [world for world in worlds if world.is_effective]
    assert any(world.is_registered and world.table == 2 and len(world.leases) == 1 for world in effective)
    assert any(world.table == 1 and world.deadline > 0 and not protocol.is_fresh(world) for world in effective)
    assert any(world.request == 1 and world.table == 2 for world in effective)
    assert any(protocol.is_fresh(world) and len(world.leases) == 2 for world in effective)
    assert any(world.now > TTL for world in effective)


@pytest.mark.parametrize("guard", GUARDS)
def test_law_l6_falls_without_each_of_its_guards(guard: str):
    story, _ = explore(replace(Guards(), **{guard: False}))
    assert story, f"nothing happens without: {guard}"
    assert "apply returns" in story


def test_law_l6_lets_a_gateway_that_cannot_know_serve_its_own_jurisdiction():
    for table in (1, 2):
        assert serves_its_own(table, is_fresh=False)
        assert not may_cross(1, table, is_fresh=False)
