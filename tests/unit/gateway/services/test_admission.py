"""What is in flight is bounded, and every call has a deadline."""

from __future__ import annotations

import asyncio

import pytest

from gateway.admission import Admission
from gateway.settings import GatewaySettings
from policy.errors import LimitReached, Unavailable


class Call:
    """As much of gRPC's context as admission looks at."""

    def __init__(self, remaining: float | None) -> None:
        self._remaining = remaining

    def time_remaining(self) -> float | None:
        return self._remaining


@pytest.fixture
async def admission() -> Admission:
    limits = {"max_operations": 10, "max_streams": 1, "default_timeout": 10, "max_timeout": 60}
    return Admission(GatewaySettings(idc="fra", database_url="postgresql://x", **limits))


async def test_nothing_is_taken_before_the_gateway_has_registered(admission: Admission):
    with pytest.raises(Unavailable):
        admission.admit()
    with pytest.raises(Unavailable):
        admission.admit_stream()


async def test_operations_beyond_the_limit_are_refused_and_not_counted(admission: Admission):
    admission.open()
    admission.admit(9)
    with pytest.raises(LimitReached) as caught:
        admission.admit(2)
    assert caught.value.limit == "max_operations"
    admission.admit(1)
    admission.release(10)
    assert admission.operations == 0


async def test_streams_beyond_the_limit_are_refused(admission: Admission):
    admission.open()
    admission.admit_stream()
    with pytest.raises(LimitReached):
        admission.admit_stream()
    admission.release_stream()
    admission.admit_stream()


async def test_a_gateway_that_stops_takes_nothing_more_whatever_happens(admission: Admission):
    admission.open()
    admission.close()
    admission.open()
    with pytest.raises(Unavailable):
        admission.admit()
    assert admission.draining.is_set()


@pytest.mark.parametrize(("stated", "seconds"), [(None, 10), (3, 3), (1000, 60)])
async def test_a_call_has_the_deadline_it_states_within_the_gateways_bounds(
    admission: Admission, stated: float | None, seconds: float
):
    now = asyncio.get_running_loop().time()
    assert admission.deadline(Call(stated)) - now == pytest.approx(seconds, abs=0.1)
    assert admission.deadline_in(int(stated * 1000) if stated else 0) - now == pytest.approx(seconds, abs=0.1)
