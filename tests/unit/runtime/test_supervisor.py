"""The supervisor's parts: folder, ports, children, and who is started again."""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from runtime.stack_file import IdcEntry, ProcessEntry, StackFile, StackFileInvalid
from runtime.supervisor import keeper as keeper_module
from runtime.supervisor.errors import StackError
from runtime.supervisor.folder import DataFolder, Layout
from runtime.supervisor.keeper import Keeper, Member
from runtime.supervisor.ports import choose_ports
from runtime.supervisor.process import Child, describe_exit, read_tail
from runtime.supervisor.stack import controller_names, port_uses, runner_names

SLEEPER = "import signal, time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def child(tmp_path: Path, code: str, **options: float) -> Child:
    return Child([sys.executable, "-c", code], {}, tmp_path / "logs" / "child.log", **options)


async def until(condition, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (what is awaited happens in another process)
            await asyncio.sleep(0.01)


def test_a_second_stack_on_a_folder_is_refused_by_name_of_the_first(tmp_path: Path) -> None:
    with DataFolder.open(tmp_path):
        with pytest.raises(StackError, match=rf"in use by another stack \(process {os.getpid()}\)") as caught:
            DataFolder.open(tmp_path)
        assert caught.value.reason == "FOLDER_IN_USE"
    DataFolder.open(tmp_path).close()


def test_a_layout_is_remembered(tmp_path: Path) -> None:
    with DataFolder.open(tmp_path) as folder:
        assert folder.load_layout() == Layout()
        folder.save_layout(Layout(("fra",), {"etcd": 1}))
        assert folder.load_layout() == Layout(("fra",), {"etcd": 1})


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("layout.json", json.dumps({"format": 99, "idcs": [], "ports": {}}), "FOLDER_OF_ANOTHER_VERSION"),
        ("layout.json", "{", "FOLDER_UNREADABLE"),
        ("thesis.doc", "", "FOLDER_NOT_EMPTY"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    with DataFolder.open(tmp_path) as folder, pytest.raises(StackError) as caught:
        folder.load_layout()
    assert caught.value.reason == reason


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match="cannot write"):
        DataFolder.open(tmp_path / "file" / "data")


def test_known_ports_are_kept_and_taken_ones_replaced() -> None:
    known = choose_ports(["a", "b"], {})
    with socket.create_server(("127.0.0.1", known["a"])):
        again = choose_ports(["a", "b", "c"], known)
    assert again["b"] == known["b"]
    assert len({*again.values(), known["a"]}) == 4


def test_a_demanded_port_that_is_taken_is_named_with_its_use_and_holder() -> None:
    base = choose_ports(["a"], {})["a"]
    with socket.create_server(("127.0.0.1", base)), pytest.raises(StackError) as caught:
        choose_ports(["gateway of fra"], {}, base)
    assert caught.value.reason == "PORT_TAKEN"
    assert f"port {base}, wanted for gateway of fra, is taken by process {os.getpid()}" in caught.value.message


def test_controllers_are_counted_from_the_second_and_none_runs_when_none_is_wanted() -> None:
    assert controller_names(0) == []
    assert controller_names(1) == ["controller"]
    assert controller_names(3) == ["controller", "controller-2", "controller-3"]


def test_the_number_of_controllers_moves_no_other_port() -> None:
    one = port_uses(("fra", "ams"))
    assert port_uses(("fra", "ams"), 0) == one
    assert port_uses(("fra", "ams"), 3) == [*one, "controller-2 metrics", "controller-3 metrics"]


def test_runners_come_last_so_that_no_port_of_a_folder_moves() -> None:
    for controllers in (1, 3):
        others = port_uses(("fra", "ams"), controllers)
        uses = port_uses(("fra", "ams"), controllers, 2)
        assert uses[: len(others)] == others
        assert uses[len(others) :] == [f"runner-{idc}-{number} metrics" for idc in ("fra", "ams") for number in (1, 2)]


def test_runners_of_one_idc_are_never_called_like_those_of_another() -> None:
    assert set(runner_names("fra", 9)).isdisjoint(runner_names("fra-1", 9))


async def test_a_child_is_stopped_in_order_and_by_force_when_it_will_not(tmp_path: Path) -> None:
    for code, expected in ((SLEEPER, -signal.SIGTERM), (STUBBORN, -signal.SIGKILL)):
        server = child(tmp_path, code, grace_seconds=0.2)
        (tmp_path / "logs" / "child.log").unlink(missing_ok=True)
        await server.start()
        await until(lambda server=server: read_tail(server.log_path) == "up")
        await server.stop()
        assert await server.wait() == expected


async def test_a_binary_that_cannot_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="cannot run /no/such/thing: No such file"):
        await Child(["/no/such/thing"], {}, tmp_path / "log").start()


async def test_a_member_that_is_killed_comes_back_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "_BACKOFF_SECONDS", (0.01,))
    said: list[str] = []
    changes: list[int] = []
    keeper = Keeper(said.append, lambda: changes.append(1), can_restart=True)
    server = child(tmp_path, SLEEPER)
    await keeper.add(Member("gateway-fra", "gateway", "fra", server, 0))
    keeper.establish()
    first = server.pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: changes)
    assert server.pid != first
    assert said == ["gateway-fra was ended by SIGKILL; starting it again in 0.01 s"]
    await keeper.stop()
    assert changes == [1]


async def test_without_restart_a_member_stays_down(tmp_path: Path) -> None:
    said: list[str] = []
    keeper = Keeper(said.append, lambda: None, can_restart=False)
    await keeper.add(Member("gateway-fra", "gateway", "fra", child(tmp_path, "raise SystemExit(3)"), 0))
    keeper.establish()
    await until(lambda: said)
    assert said == ["gateway-fra ended with exit code 3; it stays down, as asked"]
    await keeper.stop()


async def test_a_member_that_ends_before_the_stack_is_up_is_not_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    keeper = Keeper(said.append, lambda: None, can_restart=True)
    member = Member("gateway-fra", "gateway", "fra", child(tmp_path, "raise SystemExit(3)"), 0)
    await keeper.add(member)
    await until(lambda: member.endings)
    await keeper.stop()
    assert (member.endings, said) == (["ended with exit code 3"], [])


async def test_what_depends_on_others_stops_first(tmp_path: Path) -> None:
    order: list[str] = []

    class Recorded(Child):
        name = ""

        async def stop(self) -> None:
            if self._process and self._process.returncode is None:
                order.append(self.name)
            await super().stop()

    keeper = Keeper(lambda _: None, lambda: None, can_restart=True)
    for stage, name in enumerate(("etcd", "postgres", "gateway")):
        server = Recorded([sys.executable, "-c", SLEEPER], {}, tmp_path / f"{name}.log")
        server.name = name
        await keeper.add(Member(name, name, "", server, stage))
    await keeper.stop()
    assert order == ["gateway", "postgres", "etcd"]


def test_an_end_is_told_in_words() -> None:
    assert describe_exit(-9) == "was ended by SIGKILL"
    assert describe_exit(1) == "ended with exit code 1"


def test_a_stack_file_is_private_and_reads_back(tmp_path: Path) -> None:
    stack = StackFile(
        "default",
        ("http://127.0.0.1:1",),
        {"fra": IdcEntry("127.0.0.1:2", "127.0.0.1:3", "postgresql://u:p@h/d", "http://127.0.0.1:4")},
        (ProcessEntry("gateway-fra", "gateway", "fra", 7),),
    )
    stack.save(tmp_path)
    assert StackFile.load(tmp_path) == stack
    assert (tmp_path / "stack.json").stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["stack.json"]
    StackFile.remove(tmp_path)
    with pytest.raises(FileNotFoundError):
        StackFile.load(tmp_path)


def test_a_broken_stack_file_is_said_to_be_broken(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text('{"cluster": "x"}')
    with pytest.raises(StackFileInvalid, match="not a stack file"):
        StackFile.load(tmp_path)
