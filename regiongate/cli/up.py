"""`regiongate up`: the whole embedded stack in the foreground, on one data folder."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from policy.loading import load_policy_files
from regiongate.cli.context import DEFAULT_DATA_DIR, DataDirOption
from regiongate.cli.failures import CommandFailed
from regiongate.cli.gateway_calls import GatewayCalls
from regiongate.cli.output import say
from runtime.lifecycle import run
from runtime.stack_file import StackFile
from runtime.supervisor.errors import StackError
from runtime.supervisor.folder import DataFolder, Layout
from runtime.supervisor.ports import choose_ports
from runtime.supervisor.stack import Stack, StackOptions, port_uses
from runtime.telemetry.logs import setup_logging

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from policy.loading import LoadedPolicy

app = typer.Typer(add_completion=False)

_IDC_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
_THREADS = 32
"""Each server of the stack is waited for in a thread of its own."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the command was asked for."""

    data_dir: Path
    policy: Path | None
    idcs: tuple[str, ...]
    base_port: int
    trace_sample_ratio: float
    log_level: str
    can_restart: bool
    controllers: int = 1
    jobs: tuple[str, ...] = ()
    runners: int = 1


@app.command()
def up(
    *,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    policy: Annotated[
        Path | None, typer.Option(help="Policy file or folder to apply; the one that was applied last when absent.")
    ] = None,
    idcs: Annotated[str, typer.Option(help="IDCs to run, by comma; those of the policy when absent.")] = "",
    base_port: Annotated[int, typer.Option(min=0, max=65535, help="First of the ports to use; free ones when 0.")] = 0,
    trace_sample_ratio: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the calls without a trace of their own that are traced.")
    ] = 0.01,
    log_level: Annotated[str, typer.Option(help="Least level in the gateways' and the controller's logs.")] = "info",
    restart: Annotated[bool, typer.Option(help="Start a process again that has ended by itself.")] = True,
    controllers: Annotated[
        int, typer.Option(min=0, max=9, help="Controllers to run: one leads, the others stand by; 0 for none.")
    ] = 1,
    jobs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE",
            help="A module of jobs to run in each IDC, by dotted name or .py file; again for more. No runners without.",
            show_default=False,
        ),
    ] = None,
    runners: Annotated[int, typer.Option(min=1, max=9, help="Job runners in each IDC, when there are --jobs.")] = 1,
) -> None:
    """Run the whole embedded stack in the foreground; Ctrl-C ends it.

    One process for each role: etcd, a PostgreSQL and a gateway for each IDC, controllers, and with --jobs job runners.

    Data, logs and traces stay in the data folder, and a second start on it goes on with them.

    For demos and tests, not for production.
    """
    names = tuple(part.strip() for part in idcs.split(",") if part.strip())
    options = UpOptions(
        *(data_dir, policy, names, base_port, trace_sample_ratio, log_level, restart, controllers),
        jobs=tuple(jobs or ()),
        runners=runners,
    )
    setup_logging("up", log_format="console", level="warning")
    for module in options.jobs:
        if module.endswith(".py") and not Path(module).is_file():
            raise CommandFailed("NO_SUCH_MODULE", f"{module}: there is no such file", "see --jobs")
    try:
        with DataFolder.open(data_dir) as folder:
            # asyncio's own loop: uvloop cannot start a child as another user, as PostgreSQL needs under root.
            raise typer.Exit(run(lambda stop: _up(options, folder, stop), loop_factory=None))
    except StackError as error:
        raise CommandFailed(error.reason, error.message, error.hint) from error


async def _up(options: UpOptions, folder: DataFolder, stop: asyncio.Event) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="wait"))
    began = time.monotonic()
    loaded = await asyncio.to_thread(load_policy_files, options.policy) if options.policy else None
    # One that a killed stack has left would be taken for ours.
    StackFile.remove(folder.path)
    stack = Stack(_plan(options, folder, loaded), _tell)
    try:
        if not await _unless_stopped(_bring_up(stack, loaded, options), stop):
            return
        say(f"ready in {time.monotonic() - began:.1f} s", style="bold green")
        for idc, address in stack.gateways.items():
            say(f"  {idc}: {address}")
        say(f"  all addresses and process ids: {options.data_dir / 'stack.json'}; Ctrl-C stops, the data stays")
        await stop.wait()
    except ExceptionGroup as group:
        raise _first(group) from group
    finally:
        say("stopping")
        await stack.stop()
        say("stopped")


async def _bring_up(stack: Stack, loaded: LoadedPolicy | None, options: UpOptions) -> None:
    """Starts everything and applies the policy; a process that ends meanwhile ends the attempt."""
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(stack.fail_when_one_ends())
        await _make_ready(stack, loaded, options)
        watch.cancel()
    stack.publish()


async def _make_ready(stack: Stack, loaded: LoadedPolicy | None, options: UpOptions) -> None:
    await stack.start()
    await stack.wait_ready()
    async with GatewayCalls(list(stack.gateways.values())) as calls:
        if loaded is not None:
            # Without a controller nobody gives its shards an owner.
            await calls.apply(loaded.text, str(options.policy), _tell, can_wait=options.controllers > 0)
        has_policy = loaded is not None or await calls.has_policy()
    await stack.start_runners()
    if not has_policy:
        _tell("no policy yet: `regiongate policy apply FILE` comes next")
        return
    await stack.wait_runners_ready()


def _plan(options: UpOptions, folder: DataFolder, loaded: LoadedPolicy | None) -> StackOptions:
    """Decides which IDCs to run on which ports, and remembers it in the folder."""
    layout = folder.load_layout()
    wanted = options.idcs or (tuple(loaded.document.idcs) if loaded else ())
    for name in wanted:
        if not _IDC_NAME.fullmatch(name):
            raise CommandFailed("BAD_IDC_NAME", f"{name!r} is no name for an IDC", "use small letters, digits and -")
    # An IDC that has been run before stays: its database may hold rows.
    idcs = tuple(dict.fromkeys((*layout.idcs, *wanted)))
    if not idcs:
        raise CommandFailed("NO_IDCS", "nothing says which IDCs to run", "give --policy FILE, or --idcs a,b")
    runners = options.runners if options.jobs else 0
    ports = choose_ports(port_uses(idcs, options.controllers, runners), layout.ports, options.base_port)
    folder.save_layout(Layout(idcs, ports))
    return StackOptions(
        data_dir=options.data_dir,
        idcs=idcs,
        ports=ports,
        trace_sample_ratio=options.trace_sample_ratio,
        log_level=options.log_level,
        can_restart=options.can_restart,
        controllers=options.controllers,
        job_modules=options.jobs,
        runners=options.runners,
    )


async def _unless_stopped(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Does the work unless the stop event comes first; False when it came."""
    task = asyncio.create_task(work)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        await task
        return True
    finally:
        stopped.cancel()
        task.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """The first error that was not only the echo of another; a person can read one at a time."""
    for error in group.exceptions:
        return _first(error) if isinstance(error, ExceptionGroup) else error
    return group


def _tell(sentence: str) -> None:
    say(f"· {sentence}")
