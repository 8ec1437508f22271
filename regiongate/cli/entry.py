"""Where and how a command that uses the SDK enters the cluster: options that all such commands share."""

from __future__ import annotations

import inspect
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer

from regiongate.cli.context import DEFAULT_DATA_DIR, DataDirOption, IdcOption, TargetOption, resolve_target
from regiongate.cli.failures import CommandFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from gateway.client import Client

_P = ParamSpec("_P")


@dataclass(frozen=True, slots=True)
class Entry:
    """The options; each field is one."""

    purpose: Annotated[str, typer.Option(help="Purpose stated to access rules.")] = ""
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for the call with all its retries.")] = 10.0
    target: TargetOption = ""
    idc: IdcOption = ""
    data_dir: DataDirOption = DEFAULT_DATA_DIR
    ca_file: Annotated[
        Path | None, typer.Option(envvar="REGIONGATE_CA_FILE", help="CA certificates of the gateways: speak TLS.")
    ] = None
    cert_file: Annotated[
        Path | None, typer.Option(envvar="REGIONGATE_CERT_FILE", help="Client certificate, for mutual TLS.")
    ] = None
    key_file: Annotated[Path | None, typer.Option(envvar="REGIONGATE_KEY_FILE", help="Its private key.")] = None

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Client]:
        """A connected client."""
        from gateway.client import TlsFiles, connect  # noqa: PLC0415 (grpc takes 100 ms to load; --help needs none)

        if (self.cert_file is None) != (self.key_file is None) or (self.cert_file and not self.ca_file):
            raise CommandFailed("BAD_TLS_FILES", "--cert-file, --key-file and --ca-file go together")
        tls = TlsFiles(self.ca_file, self.cert_file, self.key_file) if self.ca_file else None
        target = resolve_target(self.target, self.data_dir, self.idc)
        async with connect(target, purpose=self.purpose, tls=tls, timeout=self.timeout) as client:
            yield client


def with_entry(command: Callable[Concatenate[Entry, _P], None]) -> Callable[_P, None]:
    """Gives a command the options of `Entry`, and the entry made of them as its first argument."""
    hints = get_type_hints(command, include_extras=True)
    own = [each.replace(annotation=hints[name]) for name, each in inspect.signature(command).parameters.items()][1:]
    entry_hints = get_type_hints(Entry, include_extras=True)
    shared = [
        inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=entry_hints[each.name]
        )
        for each in fields(Entry)
    ]

    @wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        words: dict[str, Any] = {each.name: kwargs.pop(each.name) for each in shared}
        command(Entry(**words), *args, **kwargs)

    parameters = sorted([*own, *shared], key=lambda each: each.kind)
    # What typer reads.
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue] (any function has it)
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run
