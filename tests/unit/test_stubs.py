"""The committed stubs are what the pinned generator makes of the protos."""

from __future__ import annotations

import subprocess

import pytest

from tests.support import stubs


def test_committed_stubs_are_what_the_generator_makes():
    try:
        stale = stubs.differences()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the generator's environment cannot be made here: {error.cmd[:4]}")
    assert stale == []
