"""The SDK loads nothing of the server's side, and the package nothing at all before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import regiongate
import regiongate.errors
from policy.errors import ERRORS_BY_REASON

SERVER_SIDE = ("asyncpg", "sqlalchemy", "pydantic", "structlog", "starlette", "opentelemetry.sdk", "rowstore")
CLIENT_ONLY = ("gateway", "gateway.client")


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_client_loads_nothing_of_the_servers_side():
    loaded = loaded_by("import regiongate; regiongate.connect; import regiongate.blocking, regiongate.errors")
    assert not [name for name in loaded if name.startswith(SERVER_SIDE)]
    ours = [name for name in loaded if name.startswith("gateway")]
    assert "gateway.client.client" in ours
    assert all(name in CLIENT_ONLY or name.startswith("gateway.client.") for name in ours)


def test_stubs_alone_do_not_load_the_client():
    assert "gateway" not in loaded_by("from regiongate.v1 import types_pb2")


def test_the_public_names_are_there_and_others_are_not():
    for name in regiongate.__all__:
        assert getattr(regiongate, name) is not None
    assert set(regiongate.__all__) <= set(dir(regiongate))
    with pytest.raises(AttributeError, match="nothing"):
        _ = regiongate.nothing


def test_every_error_can_be_imported_from_one_place():
    public = {kind.__name__ for kind in ERRORS_BY_REASON.values()} | {"RegiongateError"}
    assert set(regiongate.errors.__all__) == public
