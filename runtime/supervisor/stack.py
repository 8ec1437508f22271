"""The embedded stack: etcd, a PostgreSQL and a gateway for each IDC, controllers and job runners, each a process.

Servers start side by side, since a machine with two cores is all that a laptop may have: gateways load their modules
while the databases are being made, and wait for them by themselves. The stack is ready when each gateway says
that it is. Runners come after that, once there may be a policy for their jobs to fit, and go before the gateways.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.embedded import EmbeddedServerError
from runtime.embedded.etcd import EmbeddedEtcd
from runtime.embedded.postgres import EmbeddedPostgres
from runtime.stack_file import IdcEntry, ProcessEntry, StackFile
from runtime.supervisor.errors import StackError
from runtime.supervisor.keeper import Keeper, Member
from runtime.supervisor.ports import HOST
from runtime.supervisor.probe import read_health
from runtime.supervisor.process import Child, read_tail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_POLL_SECONDS = 0.05

ETCD_STAGE, DATABASE_STAGE, GATEWAY_STAGE, CONTROLLER_STAGE, RUNNER_STAGE = range(5)


def controller_names(controllers: int) -> list[str]:
    """Names of so many controllers: `controller`, `controller-2` and so on."""
    return ["controller", *(f"controller-{number}" for number in range(2, controllers + 1))][:controllers]


def runner_names(idc: str, runners: int) -> list[str]:
    """Names of so many runners of an IDC: `runner-fra-1` and so on; the last part is always a number."""
    return [f"runner-{idc}-{number}" for number in range(1, runners + 1)]


def port_uses(idcs: tuple[str, ...], controllers: int = 1, runners: int = 0) -> list[str]:
    """What a stack needs ports for, in the order in which `--base-port` hands them out.

    The first controller has its place also where none runs, and further ones come last, with so many runners of each
    IDC after them: their number moves no port of a gateway or a database.
    """
    gateways, *inner = ([f"{use} of {idc}" for idc in idcs] for use in ("gateway", "peer", "database", "metrics"))
    further = [f"{name} metrics" for name in controller_names(controllers)[1:]]
    further += [f"{name} metrics" for idc in idcs for name in runner_names(idc, runners)]
    return [*gateways, "etcd", "etcd peer", "controller metrics", *(use for uses in inner for use in uses), *further]


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What is to be run."""

    data_dir: Path
    idcs: tuple[str, ...]
    ports: Mapping[str, int]
    """A port for each of `port_uses`."""
    cluster: str = "default"
    trace_sample_ratio: float = 0.01
    log_level: str = "info"
    can_restart: bool = True
    ready_timeout: float = 60.0
    controllers: int = 1
    """One leads, the others stand by."""
    job_modules: tuple[str, ...] = ()
    """What `regiongate jobs run` is given in each IDC; without any, no runner is started."""
    runners: int = 1
    """In each IDC."""


class Stack:
    """A running stack."""

    def __init__(self, options: StackOptions, tell: Callable[[str], None]) -> None:
        self._options = options
        self._tell = tell
        self._is_published = False
        self._began = time.monotonic()
        self._keeper = Keeper(tell, self._save, can_restart=options.can_restart)
        self._etcd = EmbeddedEtcd(options.data_dir / "etcd", options.ports["etcd"], options.ports["etcd peer"])
        self._databases = self._describe_databases()

    @property
    def gateways(self) -> dict[str, str]:
        """Client address of each IDC's gateway."""
        return {idc: f"{HOST}:{self._options.ports[f'gateway of {idc}']}" for idc in self._options.idcs}

    async def start(self) -> None:
        """Starts everything side by side; returns when etcd and the databases answer.

        Raises `StackError`, alone or in a group; then call `stop`.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._start_etcd())
            for idc in self._options.idcs:
                group.create_task(self._start_own(f"gateway-{idc}", idc, f"metrics of {idc}"))
            for name in controller_names(self._options.controllers):
                group.create_task(self._start_own(name, "", f"{name} metrics"))
            group.create_task(self._start_databases())

    async def fail_when_one_ends(self) -> None:
        """Waits for ever, until a process of the stack ends by itself: then raises `StackError` with its last words."""
        raise self._ended(await self._keeper.wait_ended())

    async def wait_ready(self) -> None:
        """Waits until every gateway says that it is ready: registered, its database connected, its schema there."""
        await self._wait_ready("gateway")

    async def start_runners(self) -> None:
        """Starts the job runners, if there are modules for them; when gateways are ready. Raises `StackError`."""
        if not self._options.job_modules:
            return
        async with asyncio.TaskGroup() as group:
            for idc in self._options.idcs:
                for name in runner_names(idc, self._options.runners):
                    group.create_task(self._start_runner(name, idc))

    async def wait_runners_ready(self) -> None:
        """Waits until every runner has a session, its database, and a policy that its jobs fit."""
        await self._wait_ready("runner")

    async def _wait_ready(self, role: str) -> None:
        async with asyncio.TaskGroup() as group:
            for member in self._keeper.members:
                if member.role == role:
                    group.create_task(self._poll_ready(member))

    def publish(self) -> None:
        """Writes `stack.json`, and from now on again whenever a process is started anew."""
        self._is_published = True
        self._keeper.establish()
        self._save()

    async def stop(self) -> None:
        """Stops everything in order and removes `stack.json`."""
        self._is_published = False
        StackFile.remove(self._options.data_dir)
        await self._keeper.stop()

    async def _start_etcd(self) -> None:
        began = time.monotonic()
        await self._add(Member("etcd", "etcd", "", self._etcd, ETCD_STAGE))
        self._tell(f"etcd answers on {self._etcd.endpoint} ({time.monotonic() - began:.1f} s)")

    def _describe_databases(self) -> dict[str, EmbeddedPostgres]:
        """One database for each IDC; the first of those to be made is the template of the others.

        A folder is a template only in the run that makes it and before its server has ever been started: what an IDC
        has stored must never be copied to another (law L1).
        """
        root, ports = self._options.data_dir / "postgres", self._options.ports
        missing = [idc for idc in self._options.idcs if not (root / idc / "data").exists()]
        # The template comes first, so that it is made first.
        idcs = sorted(self._options.idcs, key=lambda idc: idc in missing[1:])
        databases = {
            idc: EmbeddedPostgres(
                root / idc,
                ports[f"database of {idc}"],
                template=root / missing[0] if idc in missing[1:] else None,
            )
            for idc in idcs
        }
        password = secrets.token_urlsafe(24)
        for idc in missing:
            # Gateways are told the URL, and load their modules, while the database is being made.
            databases[idc].choose_password(password)
        return databases

    async def _start_databases(self) -> None:
        began = time.monotonic()
        first, *others = self._databases.values()
        await first.prepare()
        async with asyncio.TaskGroup() as group:
            for database in others:
                group.create_task(database.prepare())
        self._tell(f"database folders are made ({time.monotonic() - began:.1f} s)")
        async with asyncio.TaskGroup() as group:
            for idc in self._options.idcs:
                group.create_task(self._start_database(idc))

    async def _start_database(self, idc: str) -> None:
        began = time.monotonic()
        await self._add(Member(f"postgres-{idc}", "postgres", idc, self._databases[idc], DATABASE_STAGE))
        port = self._options.ports[f"database of {idc}"]
        self._tell(f"database of {idc} answers on {HOST}:{port} ({time.monotonic() - began:.1f} s)")

    async def _start_own(self, name: str, idc: str, use: str) -> None:
        """Starts the gateway of an IDC, or a controller, whose metrics have the port of that use."""
        role, stage = ("gateway", GATEWAY_STAGE) if idc else ("controller", CONTROLLER_STAGE)
        settings: dict[str, object] = {}
        if idc:
            settings = {
                "idc": idc,
                "listen": self.gateways[idc],
                "peer_listen": f"{HOST}:{self._options.ports[f'peer of {idc}']}",
                "database_url": self._databases[idc].url,
            }
        port = self._options.ports[use]
        child = self._child(name, [role], port, settings)
        await self._add(Member(name, role, idc, child, stage, f"http://{HOST}:{port}"))

    async def _start_runner(self, name: str, idc: str) -> None:
        """Starts a job runner; it finds the gateway of its IDC through etcd."""
        settings = {"idc": idc, "runner": name.removeprefix("runner-"), "database_url": self._databases[idc].url}
        port = self._options.ports[f"{name} metrics"]
        child = self._child(name, ["jobs", "run", *self._options.job_modules], port, settings)
        await self._add(Member(name, "runner", idc, child, RUNNER_STAGE, f"http://{HOST}:{port}"))

    def _child(self, name: str, words: Sequence[str], metrics_port: int, settings: Mapping[str, object]) -> Child:
        """One of our processes: a command, and its settings beside those that all of them have."""
        return Child(
            [sys.executable, "-m", "regiongate.cli.main", *words],
            self._environment(settings, metrics_port),
            self._options.data_dir / "logs" / f"{name}.log",
        )

    def _environment(self, settings: Mapping[str, object], metrics_port: int) -> dict[str, str]:
        """Settings of one of our processes; by variables, since a command line can be seen by everyone."""
        options = self._options
        common = {
            "cluster": options.cluster,
            "etcd_endpoints": self._etcd.endpoint,
            "metrics_host": HOST,
            "metrics_port": metrics_port,
            "trace_directory": (options.data_dir / "traces").resolve(),
            "trace_sample_ratio": options.trace_sample_ratio,
            "log_level": options.log_level,
        }
        return {f"REGIONGATE_{name.upper()}": str(value) for name, value in {**common, **settings}.items()}

    async def _add(self, member: Member) -> None:
        try:
            await self._keeper.add(member)
        except EmbeddedServerError as error:
            raise StackError("CANNOT_START", f"{member.name}: {error}") from error

    async def _poll_ready(self, member: Member) -> None:
        """Asks one process until it is ready; gives up at the deadline."""
        began = time.monotonic()
        while not (health := await read_health(member.metrics)).is_ready:
            if time.monotonic() - began > self._options.ready_timeout:
                raise StackError(
                    "NOT_READY",
                    f"{member.name} {health} after {self._options.ready_timeout:g} s",
                    f"see {self._options.data_dir / 'logs' / f'{member.name}.log'}",
                )
            await asyncio.sleep(_POLL_SECONDS)
        self._tell(f"{member.name} is ready ({time.monotonic() - self._began:.1f} s after the start)")

    def _ended(self, member: Member) -> StackError:
        log = self._options.data_dir / "logs" / f"{member.name}.log"
        return StackError("CANNOT_START", f"{member.name} {member.endings[-1]}; its last words:\n{read_tail(log)}")

    def _save(self) -> None:
        if not self._is_published:
            return
        options = self._options
        StackFile(
            cluster=options.cluster,
            etcd_endpoints=(self._etcd.endpoint,),
            idcs={
                idc: IdcEntry(
                    gateway=address,
                    peer=f"{HOST}:{options.ports[f'peer of {idc}']}",
                    database=self._databases[idc].url,
                    metrics=f"http://{HOST}:{options.ports[f'metrics of {idc}']}",
                )
                for idc, address in self.gateways.items()
            },
            processes=tuple(
                ProcessEntry(member.name, member.role, member.idc, member.server.pid, member.metrics)
                for member in sorted(self._keeper.members, key=lambda member: (member.stage, member.name))
            ),
        ).save(options.data_dir)
