"""Trace context: the application's own, one that is given, and the client's spans."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider

import regiongate
from regiongate.errors import RowNotFound
from runtime.telemetry.spans import read_spans
from runtime.telemetry.tracing import Tracing
from tests.integration.client.cluster import running

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_the_applications_own_span_travels_with_every_kind_of_call():
    tracer = TracerProvider().get_tracer("test")
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        with tracer.start_as_current_span("checkout") as span:
            await client.put("customers", "SG", "k", {"spend": 1})
            await client.batch_get("customers", [("SG", "k")])
            await client.list_page("customers", "SG")
        await client.get("customers", "SG", "k")
        trace_id = f"{span.get_span_context().trace_id:032x}"
    traceparents = [asked.traceparent for asked in sites["sin"].world.asked]
    assert [traceparent[3:35] for traceparent in traceparents] == [trace_id] * 3 + [""]


async def test_client_spans_are_parents_of_what_gateways_see_and_hold_nothing_of_a_row_law_l1(tmp_path):
    tracing = Tracing("client", "", 1.0, tmp_path)
    async with running() as sites, regiongate.connect(sites["sin"].address, tracing=tracing) as client:
        await client.put("customers", "SG", "marker-key", {"name": "marker-value"}, traceparent=PARENT)
        with pytest.raises(RowNotFound):
            await client.get("customers", "SG", "marker-other")
        await client.batch_write("customers", [regiongate.Put("SG", "marker-key", {"name": "marker-value"})])
    tracing.shutdown()
    spans = {span.name: span for span in read_spans(tmp_path)}
    assert set(spans) == {"client.put", "client.get", "client.batch_write"}
    assert spans["client.put"].trace_id == PARENT[3:35]
    assert spans["client.get"].status == "ROW_NOT_FOUND"
    for span, asked in zip(("client.put", "client.get", "client.batch_write"), sites["sin"].world.asked, strict=True):
        assert asked.traceparent[36:52] == spans[span].span_id
    assert "marker" not in "".join(path.read_text() for path in tmp_path.iterdir())


async def test_without_sampling_no_span_is_made_and_nothing_travels(tmp_path):
    tracing = Tracing("client", "", 0.0, tmp_path)
    async with running() as sites, regiongate.connect(sites["sin"].address, tracing=tracing) as client:
        await client.put("customers", "SG", "k", {"spend": 1})
    tracing.shutdown()
    assert [asked.traceparent for asked in sites["sin"].world.asked] == [""]
    assert not list(read_spans(tmp_path))
