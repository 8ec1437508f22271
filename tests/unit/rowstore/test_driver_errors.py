"""What the driver says becomes what a caller may know."""

from __future__ import annotations

import asyncpg
import pytest

from policy.errors import DatabaseUnavailable, RegiongateError
from rowstore.driver_errors import is_connection_loss, translate


def refused(state: str) -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new({"C": state, "M": "value secret", "D": "Key (key)=(secret)", "S": "ERROR"})


@pytest.mark.parametrize(
    "state",
    ["08006", "25006", "28P01", "40001", "40P01", "42703", "42P01", "53300", "55P03", "57014", "57P01", "58030"],
)
def test_what_passes_is_worth_waiting_for(state: str) -> None:
    assert isinstance(translate(refused(state)), DatabaseUnavailable)


@pytest.mark.parametrize("state", ["22P02", "23505", "42601", "XX000", "0A000"])
def test_what_does_not_pass_is_a_fault_with_its_sqlstate(state: str) -> None:
    error = translate(refused(state))
    assert type(error) is RegiongateError
    assert state in error.message


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionRefusedError("secret"), asyncpg.InterfaceError("secret")])
def test_a_silent_or_absent_server_is_worth_waiting_for(error: BaseException) -> None:
    assert isinstance(translate(error), DatabaseUnavailable)


def test_law_l1_nothing_of_the_driver_s_text_is_passed_on() -> None:
    for error in (refused("22P02"), refused("40001"), OSError("secret"), asyncpg.InterfaceError("secret")):
        assert "secret" not in repr(translate(error))


def test_a_server_that_ends_takes_its_connections_along() -> None:
    assert is_connection_loss(refused("57P01"))
    assert is_connection_loss(ConnectionResetError())
    assert not is_connection_loss(refused("57014"))
    assert not is_connection_loss(TimeoutError())
