"""`regiongate audit`: read the audit trail, and check it.

The trail is checked here, from what a gateway sends, and every hash is computed anew; `--file` needs no gateway at all.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from regiongate.cli.calls import gateway_channel
from regiongate.cli.context import run_async
from regiongate.cli.entry import Entry, with_entry
from regiongate.cli.failures import CommandFailed, error_from_call
from regiongate.cli.output import Output, OutputOption, emit_json, emit_rows, say

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from policy.audit.entry import AuditEntry, AuditHead, ChainCheck
    from regiongate.v1 import policy_service_pb2 as pb
    from regiongate.v1.policy_service_pb2_grpc import PolicyServiceAsyncStub

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Read the audit trail, and check it.")

_PAGE: Final = 500
_ANCHOR: Final = re.compile(r"(\d{1,18}):([0-9a-f]{64})")
_SHOWN_CHARACTERS: Final = 100


@app.command()
@with_entry
def export(
    entry: Entry,
    *,
    first: Annotated[int, typer.Option("--from", min=1, help="Number of the first entry.")] = 1,
    output: OutputOption = Output.JSON,
) -> None:
    """Print the entries in order: as JSON lines that `verify --file` checks, or as a table."""
    rows: list[dict[str, object]] = []

    async def perform() -> None:
        async with _stub(entry) as stub:
            async for page, _ in _pages(stub, entry.timeout, first):
                for each in page:
                    if output is Output.JSON:
                        typer.echo(each.encode().decode())
                    else:
                        rows.append(_row(each))

    run_async(perform())
    if output is Output.TABLE:
        emit_rows(rows, ("number", "time", "kind", "content"), output)


@app.command()
@with_entry
def verify(
    entry: Entry,
    *,
    anchor: Annotated[
        list[str] | None,
        typer.Option(metavar="NUMBER:HASH", help="A head noted earlier: proves that nothing up to it was rewritten."),
    ] = None,
    file: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Check an export instead.")] = None,
    recorded_from: Annotated[
        int, typer.Option(min=1, help="First policy revision that must be recorded; above 1 after an upgrade only.")
    ] = 1,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check every entry, the policy revisions that they record, and the head; exit code 1 when anything is wrong."""
    from policy.audit.entry import ChainBroken, ChainCheck  # noqa: PLC0415 (keeps --help lean)

    check = ChainCheck(_anchors(anchor or []))
    kinds = Counter[str]()
    try:
        revisions = _verify_file(file, check, kinds) if file else run_async(_verify(entry, check, kinds, recorded_from))
    except ChainBroken as error:
        sound = f"{check.head.number} entries before it are sound" if check.head.number else "no entry is sound"
        raise CommandFailed("AUDIT_BROKEN", str(error), sound if error.number > check.head.number else "") from None
    head = f"{check.head.number}:{check.head.hash}"
    if output is Output.JSON:
        emit_json({"entries": check.head.number, "kinds": dict(kinds), "policy_revisions": revisions, "head": head})
        return
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    typer.echo(f"entries: {check.head.number}, all sound" + (f" ({counts})" if counts else ""))
    if file:
        typer.echo("policy revisions and the end of the trail: not checked, since only the policy store can tell")
    else:
        typer.echo(f"policy revisions: {len(revisions)}, all as they were recorded")
    if anchor:
        typer.echo(f"anchors: {len(anchor)}, all met")
    typer.echo(f"head: {head}")
    say("note the head where nobody can change it, and give it to a later check as --anchor", "dim")


async def _verify(entry: Entry, check: ChainCheck, kinds: Counter[str], recorded_from: int) -> list[int]:
    """Checks the trail of a cluster; returns the policy revisions that were compared."""
    from gateway.audit_service import hash_of_revision  # noqa: PLC0415
    from policy.audit.entry import AuditHead  # noqa: PLC0415
    from policy.audit.recorded import RecordedRevisions  # noqa: PLC0415

    recorded = RecordedRevisions()
    head = AuditHead()
    async with _stub(entry) as stub:
        before = await _current(stub, entry.timeout)
        async for page, head in _pages(stub, entry.timeout, 1):  # noqa: B007 (the last page's head is used)
            for each in page:
                check.take(each)
                recorded.take(each)
                kinds[each.kind] += 1
        check.end(head)
        for revision in recorded.numbers:
            message = await _revision(stub, entry.timeout, revision)
            recorded.check(revision, hash_of_revision(message) if message else "")
        recorded.check_complete(recorded_from, before, await _current(stub, entry.timeout))
    return recorded.numbers


def _verify_file(file: Path, check: ChainCheck, kinds: Counter[str]) -> list[int]:
    """Checks an export: the entries from the first one on."""
    from policy.audit.entry import AuditEntry, ChainBroken  # noqa: PLC0415

    with file.open("rb") as lines:
        for line in lines:
            try:
                each = AuditEntry.decode(line.rstrip(b"\r\n"))
            except ValueError:
                raise ChainBroken(check.head.number + 1, "is not in the form that it was exported in") from None
            check.take(each)
            kinds[each.kind] += 1
    check.end(None)
    return []


async def _pages(
    stub: PolicyServiceAsyncStub, timeout: float, first: int
) -> AsyncGenerator[tuple[list[AuditEntry], AuditHead]]:
    """The entries from one on, page by page, with the head at each page's time."""
    from gateway.audit_service import from_entry_message  # noqa: PLC0415
    from policy.audit.entry import AuditHead  # noqa: PLC0415
    from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415 (grpc takes 100 ms to load; --help needs none)

    request = pb.ListAuditEntriesRequest(page_size=_PAGE, first_number=first)
    while True:
        answer = await stub.ListAuditEntries(request, timeout=timeout)
        yield (
            [from_entry_message(message) for message in answer.entries],
            AuditHead(answer.head_number, answer.head_hash),
        )
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token


async def _current(stub: PolicyServiceAsyncStub, timeout: float) -> int:
    """The current revision; 0 when there is none, or none that can be read."""
    message = await _revision(stub, timeout, 0)
    return message.revision if message else 0


async def _revision(stub: PolicyServiceAsyncStub, timeout: float, revision: int) -> pb.PolicyRevision | None:
    """A policy revision; None when the policy store has none that can be read."""
    import grpc.aio  # noqa: PLC0415

    from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

    try:
        return (await stub.GetPolicy(pb.GetPolicyRequest(revision=revision), timeout=timeout)).policy
    except grpc.aio.AioRpcError as error:
        known = error_from_call(error)
        if known is not None and known.reason in {"NO_POLICY", "REVISION_NOT_FOUND", "INTERNAL"}:
            return None
        raise


@asynccontextmanager
async def _stub(entry: Entry) -> AsyncGenerator[PolicyServiceAsyncStub]:
    from regiongate.v1.policy_service_pb2_grpc import PolicyServiceStub  # noqa: PLC0415

    async with gateway_channel(entry) as channel:
        yield cast("PolicyServiceAsyncStub", PolicyServiceStub(channel))


def _anchors(texts: list[str]) -> Mapping[int, str]:
    anchors: dict[int, str] = {}
    for text in texts:
        match = _ANCHOR.fullmatch(text)
        if match is None:
            raise typer.BadParameter(f"an anchor is NUMBER:HASH, as `verify` tells it; not {text}")
        anchors[int(match[1])] = match[2]
    return anchors


def _row(entry: AuditEntry) -> dict[str, object]:
    from policy.audit.entry import canonical  # noqa: PLC0415

    content = canonical({name: value for name, value in entry.content.items() if name != "diff"})
    if len(content) > _SHOWN_CHARACTERS:
        content = content[:_SHOWN_CHARACTERS] + "..."
    return {"number": entry.number, "time": entry.time, "kind": entry.kind, "content": content}
