"""A listing that differs from what a watch has told."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.etcd import Event, KeyValue, Listing, WatchBatch
from runtime.etcd.follow import Audit

KEYS = ("/a", "/b", "/c")


def item(key: str, revision: int) -> KeyValue:
    return KeyValue(key, b"", revision, revision, 1, 0)


def event(kind: str, key: str, revision: int) -> Event:
    return Event("put" if kind == "put" else "delete", item(key, revision), None)


def listing(state: dict[str, int], revision: int) -> Listing:
    return Listing(tuple(item(key, number) for key, number in sorted(state.items())), revision)


@given(
    st.lists(st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from(KEYS)), max_size=20),
    st.data(),
)
def test_a_watch_that_lags_owes_nothing_after_it_has_caught_up_and_one_that_loses_an_effect_does(changes, data):
    events, states, state = [], [{}], {}
    for revision, (wanted, key) in enumerate(changes, start=2):
        kind = wanted if key in state else "put"
        state = {name: number for name, number in state.items() if name != key}
        if kind == "put":
            state[key] = revision
        events.append(event(kind, key, revision))
        states.append(state)
    seen = data.draw(st.integers(0, len(events)))
    lost = data.draw(st.one_of(st.none(), st.integers(seen, len(events) - 1)) if seen < len(events) else st.none())

    audit = Audit(listing({}, 1), ("/",))
    for change in events[:seen]:
        audit.note(WatchBatch(change.item.mod_revision, (change,)))
    audit.compare(listing(state, len(events) + 1))
    for number, change in enumerate(events[seen:], start=seen):
        if number != lost:
            audit.note(WatchBatch(change.item.mod_revision, (change,)))

    last_of_its_key = lost is not None and all(e.item.key != events[lost].item.key for e in events[lost + 1 :])
    came_and_went = lost is not None and events[lost].item.key not in states[-1] | states[seen]
    assert bool(audit.owed) == (last_of_its_key and not came_and_went)


def test_keys_outside_the_sections_are_not_audited():
    audit = Audit(listing({}, 1), ("/shards/",))
    audit.note(WatchBatch(2, (event("put", "/audit/1", 2),)))
    audit.compare(listing({}, 2))
    assert audit.owed == 0
