from __future__ import annotations

import pytest

from policy.errors import InvalidJob
from regionjobs.definition import forget_registered, job
from regionjobs.loading import load
from regionjobs.triggers import After
from rowstore.jobs.registry import follows_itself


@pytest.mark.parametrize(
    ("after", "ends"),
    [
        ({"a": None}, True),
        ({"a": "a"}, False),
        ({"a": "b", "b": "c", "c": None}, True),
        ({"a": "b", "b": "c", "c": "a"}, False),
        ({"a": "b", "b": "c", "c": "b"}, True),
        ({"a": "unknown"}, True),
    ],
)
def test_a_chain_that_leads_back_to_its_beginning_is_seen(after, ends):
    assert follows_itself("a", after) is not ends


@pytest.fixture
def _no_jobs():
    forget_registered()
    yield
    forget_registered()


@pytest.mark.usefixtures("_no_jobs")
def test_jobs_that_trigger_each_other_are_refused_when_they_are_loaded():
    for name, before in (("first", "second"), ("second", "first")):

        @job(dataset="customers", trigger=After(before), name=name)
        async def handler(batch):
            pass

    with pytest.raises(InvalidJob, match="first: trigger: it would come after itself"):
        load([])
