"""What the commands around policies, rollouts, shards and IDCs share: the stub, findings, plain data, a trace."""

from __future__ import annotations

import getpass
import secrets
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from policy.findings import Finding, Severity
from regiongate.cli.calls import gateway_channel
from regiongate.cli.context import DEFAULT_DATA_DIR
from regiongate.cli.output import say

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterable

    from policy.loading import LoadedPolicy
    from regiongate.cli.entry import Entry
    from regiongate.v1 import policy_service_pb2 as pb
    from regiongate.v1.policy_service_pb2_grpc import PolicyServiceAsyncStub

PathArgument = Annotated[Path, typer.Argument(exists=True, help="A policy file, or a folder of them.")]
MessageOption = Annotated[str, typer.Option("--message", "-m", help="Why; kept in the history.")]
AuthorOption = Annotated[str, typer.Option(help="Who; your login name when empty.", show_default=False)]
RebalanceOption = Annotated[
    bool, typer.Option("--rebalance", help="Spread every RegionCode by its weights anew, also under unchanged rules.")
]
APPLY_SECONDS = 45.0
STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "dim"}
_NUMBERS = frozenset({
    "revision", "parent", "policy_revision", "attempt", "rows", "bytes", "rows_copied", "bytes_copied", "remaining",
    "epoch", "seq", "last_seq", "token", "lag_rows", "rows_handled", "rows_set_aside", "batches", "failures", "total",
})  # fmt: skip
"""64-bit fields, which JSON's mapping of protobuf writes as strings."""


@asynccontextmanager
async def policy_stub(entry: Entry) -> AsyncGenerator[PolicyServiceAsyncStub]:
    """The policy service of a gateway."""
    from regiongate.v1.policy_service_pb2_grpc import PolicyServiceStub  # noqa: PLC0415 (grpc takes 100 ms to load)

    async with gateway_channel(entry) as channel:
        yield cast("PolicyServiceAsyncStub", PolicyServiceStub(channel))


@contextmanager
def traced(entry: Entry, name: str) -> Generator[str]:
    """A new trace; gives its `traceparent`, and tells how to look at it.

    The command's own span goes to the stack's folder of traces, where there is one.
    """
    from runtime.telemetry.tracing import Tracing, set_failed, trace_id_of, traceparent_of  # noqa: PLC0415

    folder = entry.data_dir / "traces"
    tracing = Tracing("cli", "", 1.0, folder if folder.is_dir() else None, f"cli-{secrets.token_hex(3)}")
    span = tracing.start(name, root=True)
    traceparent = traceparent_of(span, f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01")
    where = "" if entry.data_dir == DEFAULT_DATA_DIR else f" --data-dir {entry.data_dir}"
    say(f"trace: regiongate trace show {trace_id_of(traceparent)}{where}", "dim")
    try:
        yield traceparent
    except BaseException as error:
        set_failed(span, getattr(error, "reason", type(error).__name__.upper()))
        raise
    finally:
        if span is not None:
            span.end()
        tracing.shutdown()


def trace_metadata(traceparent: str) -> tuple[tuple[str, str], ...]:
    """What a call carries of the trace."""
    return (("traceparent", traceparent),)


def author_or_login(author: str) -> str:
    """Who gives an order."""
    return author or getpass.getuser()


def load_document(path: Path) -> LoadedPolicy:
    """Reads and checks a document; tells its warnings, and leaves its notes to `validate` and `plan`."""
    from policy.loading import load_policy_files  # noqa: PLC0415

    loaded = load_policy_files(path)
    for finding in loaded.findings:
        if finding.severity is Severity.WARNING:
            say(str(finding), STYLES[finding.severity])
    return loaded


def findings_of(messages: Iterable[pb.Finding]) -> list[Finding]:
    """The findings that a gateway has sent."""
    from gateway.status import from_finding_message  # noqa: PLC0415

    return [from_finding_message(message) for message in messages]


def say_findings(messages: Iterable[pb.Finding]) -> None:
    """Tells what the gateway has found beyond what `load_document` has told already."""
    for finding in findings_of(messages):
        is_of_the_plan = finding.code == "DRAINED"
        if finding.severity is Severity.ERROR or not finding.line or is_of_the_plan:
            say(str(finding), STYLES[finding.severity])


def plain(message: Any) -> dict[str, Any]:  # noqa: ANN401 (any protobuf message)
    """The message as plain data, for printing; an absent optional field stays absent."""
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415

    return cast(
        "dict[str, Any]",
        _with_numbers(
            MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        ),
    )


def _with_numbers(value: object) -> object:
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {name: int(it) if name in _NUMBERS and isinstance(it, str) else _with_numbers(it) for name, it in items}
    if isinstance(value, list):
        return [_with_numbers(item) for item in cast("list[object]", value)]
    return value


def time_text(record: pb.PolicyRevision | pb.Rollout) -> str:
    """When it was made."""
    return record.create_time.ToJsonString()


def counted(count: int, what: str = "shard") -> str:
    """A number with its noun."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
