"""The keeper: a run ends with its owner, however that ends, and takes along what is its own, nothing else."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import GuestError, HostError
from pytest_kvmlab.keeper.client import Keeper, dial, end_run, hand_over_locks
from pytest_kvmlab.keeper.reap import reap_dead_runs, run_processes
from pytest_kvmlab.keeper.run_folder import KEPT, RunFolder, create_run_folder, is_alive
from pytest_kvmlab.lab import kept
from pytest_kvmlab.lab.hosts import HostChoice, open_host
from pytest_kvmlab.lab.kept import hand_over
from pytest_kvmlab.lab.waits import until
from tests.guest.started_run import StartedRun, in_role, is_gone, own_a_run

SECONDS = 30.0
_ROOT = Path(__file__).parents[2]


@pytest.fixture
def dead(runs: Path) -> RunFolder:
    folder, lock = create_run_folder({})
    os.close(lock)
    assert folder.path.parent == runs
    return folder


@pytest.fixture
def owned_run(runs: Path) -> Iterator[Callable[[], StartedRun]]:
    """Starts a process that owns a run with one guest, on a private host."""
    with ExitStack() as owners:
        yield lambda: owners.enter_context(own_a_run([sys.executable], runs, "private", dict(os.environ)))


# Ends, on a private host


def test_what_a_run_makes_is_found_while_it_lives(owned_run: Callable[[], StartedRun]) -> None:
    traces = owned_run().traces
    assert {"process", "file", "lock", "namespace"} <= traces.left().keys()


def test_a_lock_of_somebody_else_is_not_taken_for_one_of_a_run(
    owned_run: Callable[[], StartedRun], tmp_path: Path
) -> None:
    """The kernel names locked files by inode, and gives the number of one that is gone to the next."""
    run = owned_run()
    (lock,) = run.traces.runs.glob("*/owner.lock")
    same_inode = tmp_path / "lock"
    same_inode.hardlink_to(lock)
    run.end()
    with same_inode.open() as foreign:
        fcntl.flock(foreign, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert run.traces.left() == {}


def test_nothing_is_left_after_an_ordinary_end(owned_run: Callable[[], StartedRun]) -> None:
    run = owned_run()
    run.end()
    assert run.owner.returncode == 0
    assert run.traces.left() == {}


def test_nothing_is_left_when_the_owner_is_killed(owned_run: Callable[[], StartedRun]) -> None:
    run = owned_run()
    run.owner.kill()
    assert run.traces.left_at_last() == {}


@pytest.mark.parametrize("victim", ["keeper", "PID 1", "libvirt"])
def test_guests_end_with_what_keeps_them_and_the_owner_takes_the_rest_away(
    owned_run: Callable[[], StartedRun], victim: str
) -> None:
    run = owned_run()
    inside = run.processes("guest") + run.processes("libvirt")
    run.kill(victim)
    assert len(inside) == 2
    assert all(is_gone(process) for process in inside)
    run.end()
    assert run.traces.left_at_last() == {}


def test_the_next_run_takes_away_what_is_left_when_everybody_is_killed(
    owned_run: Callable[[], StartedRun],
) -> None:
    run = owned_run()
    run.kill_keeper_and_owner()
    reap_dead_runs()
    assert run.traces.left_at_last() == {}


def test_a_private_host_that_hangs_is_ended_by_the_next_run(owned_run: Callable[[], StartedRun]) -> None:
    run = owned_run()
    run.kill("PID 1", signal.SIGSTOP)
    run.kill_keeper_and_owner()
    reap_dead_runs()
    assert run.traces.left_at_last() == {}


def test_a_keeper_that_is_told_to_end_cleans_up_however_often_it_is_told(
    owned_run: Callable[[], StartedRun],
) -> None:
    run = owned_run()
    (keeper,) = run.processes("keeper")
    for _ in range(5):
        os.kill(keeper, signal.SIGTERM)
    assert is_gone(keeper)
    run.end()
    assert run.traces.left() == {}


def test_the_keeper_holds_the_locks_of_a_guest_that_was_left_until_the_run_ends(
    runs: Path, tmp_path: Path
) -> None:
    """From a worker, which ends before the run is handed over."""
    lock = tmp_path / "image.lock"
    with closing(Keeper({}, capabilities=None)) as keeper, lock.open("w") as ours:
        assert keeper.folder.path.parent == runs
        guest = keeper.folder.guests / "web"
        guest.mkdir()
        (guest / KEPT).write_text(json.dumps({"locks": [str(lock), str(tmp_path / "gone.lock")]}))
        fcntl.flock(ours, fcntl.LOCK_SH)
        until(lambda: keeper.folder.handover_socket.exists() or None, Deadline(SECONDS))
        hand_over_locks(keeper.folder)
        with pytest.raises(BlockingIOError):
            fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with lock.open() as ours:
        fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_keeper_that_does_not_say_that_it_keeps_is_told_of(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_HAND_OVER_SECONDS", 0.5)
    keeper = Keeper({}, capabilities=None)
    assert keeper.folder.path.parent == runs
    assert until(lambda: keeper.folder.handover_socket.exists() or None, Deadline(SECONDS))
    process = int(keeper.folder.read("keeper.json")["pid"])
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(HostError, match=r"(?s)did not say .* looked at:.*kept\.json.*kvmlab ps"):
            hand_over(keeper, 60.0)
    finally:
        os.kill(process, signal.SIGCONT)
        assert end_run(keeper.folder)


def test_a_guest_cannot_be_left_to_a_keeper_that_is_gone(dead: RunFolder) -> None:
    with pytest.raises(HostError, match=r"nothing is kept: the keeper of run .* is gone"):
        hand_over_locks(dead)


# What the owner is told


def test_a_run_whose_private_host_cannot_start_says_why(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "libvirtd"
    program.write_text("#!/bin/sh\necho the reason; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    keeper = Keeper({}, capabilities=tmp_path / "capabilities")
    with pytest.raises(HostError, match="the reason"):
        open_host(HostChoice("private", ""), keeper.folder, worker="main", capabilities=tmp_path)
    keeper.close()
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize(
    ("victim", "how", "reason"),
    [
        ("libvirt", signal.SIGKILL, "libvirtd was ended by signal 9; it said: "),
        ("PID 1", signal.SIGKILL, "its PID 1 ended; it said: "),
        ("keeper", signal.SIGKILL, r"its keeper \(process \d+\) was killed"),
        ("keeper", signal.SIGTERM, "the run was ended from outside"),
    ],
)
def test_a_host_that_ends_says_why_whatever_is_asked_of_it(
    runs: Path, tmp_path: Path, victim: str, how: signal.Signals, reason: str
) -> None:
    with closing(Keeper({}, capabilities=tmp_path)) as keeper:
        host = open_host(HostChoice("private", ""), keeper.folder, worker="main", capabilities=tmp_path)
        (process,) = in_role(victim, [str(keeper.folder.path)])
        os.kill(process, how)
        assert is_gone(process)
        with closing(host):
            for ask in (host.connection.versions, lambda: host.dial("127.0.0.1", 1, 5)):
                with pytest.raises(GuestError, match=reason) as told:
                    ask()
                assert told.value.phase == "host"
    assert list(runs.iterdir()) == []


def test_a_keeper_that_dies_before_it_takes_over_is_noticed_at_once(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "false")
    keeper = Keeper({}, capabilities=tmp_path)
    deadline = Deadline(SECONDS)
    with pytest.raises(HostError, match="its keeper ended without a word"):
        open_host(HostChoice("private", ""), keeper.folder, worker="main", capabilities=tmp_path)
    assert deadline.elapsed < 5
    with pytest.raises(HostError, match="nothing is kept"):
        keeper.keep(60)
    keeper.close()
    assert list(runs.iterdir()) == []


def test_a_keeper_that_cannot_be_started_leaves_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(HostError, match="cannot be started"):
        Keeper({}, capabilities=None)
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("nr_inodes=2", r"the run's folder .* cannot be made: .*No space left"),
        ("size=20k", r"there is no private libvirt host[^\0]*\(0 MiB free\)"),
    ],
)
def test_a_full_disk_is_told_and_nothing_stays_on_it(runs: Path, size: str, message: str) -> None:
    script = 'mount -t tmpfs -o mode=700,"$1" tmpfs "$2"; "$3" -m tests.guest.owned_run private; ls -A "$2"'
    namespace = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    told = subprocess.run(
        [*namespace, "sh", "-c", script, "sh", size, runs, sys.executable],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert told.stdout == ""
    assert re.search(message, told.stderr), told.stderr


# Keeping


def test_a_kept_run_outlives_its_owner_until_it_is_ended(runs: Path) -> None:
    keeper = Keeper({}, capabilities=None)
    keeper.keep(60)
    keeper.close()
    assert until(lambda: keeper.folder.read("kept.json") or None, Deadline(SECONDS))
    assert reap_dead_runs() == []
    assert is_alive(keeper.folder)
    assert end_run(keeper.folder)
    assert list(runs.iterdir()) == []
    assert not end_run(keeper.folder)


def test_a_kept_run_ends_when_its_time_is_up(runs: Path) -> None:
    keeper = Keeper({}, capabilities=None)
    keeper.keep(1)
    assert until(lambda: not list(runs.iterdir()) or None, Deadline(SECONDS))


def test_a_process_that_took_the_number_of_a_dead_keeper_is_not_ended(dead: RunFolder) -> None:
    with sleeping(str(dead.path)) as decoy:
        dead.write("keeper.json", {"pid": decoy.pid})
        assert not end_run(dead)
        assert decoy.poll() is None
        decoy.kill()


# A child of the owner that still holds the lifeline


@pytest.mark.usefixtures("runs")
def test_a_run_ends_although_a_child_of_the_owner_holds_the_line_open() -> None:
    keeper = Keeper({}, capabilities=None)
    with subprocess.Popen(["sleep", "60"], pass_fds=[keeper._lifeline.fileno()]) as child:
        keeper.close()
        child.kill()
    assert not keeper.folder.path.exists()


_OWNER_WITH_A_CHILD = """
import subprocess, sys
from pytest_kvmlab.keeper.client import Keeper
keeper = Keeper({}, capabilities=None)
child = subprocess.Popen(["sleep", "60"], pass_fds=[keeper._lifeline.fileno()], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_run_ends_with_its_owner_although_a_child_lives_on(runs: Path) -> None:
    command = [sys.executable, "-c", _OWNER_WITH_A_CHILD]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=_ROOT, stdin=pipe, stdout=pipe, text=True) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        owner.kill()
    assert until(lambda: not list(runs.iterdir()) or None, Deadline(SECONDS))
    os.kill(child, signal.SIGKILL)


# What is not ours


def sleeping(*words: str, user: str = "") -> "subprocess.Popen[bytes]":
    """A process that sleeps and has these words on its command line, by now as that user."""
    other = ["setpriv", f"--reuid={user}", "--clear-groups", "--"] if user else []
    program = [*other, "/usr/bin/python3", "-c", "import time; print(flush=True); time.sleep(60)", *words]
    process = subprocess.Popen(program, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline()
    return process


def test_a_guest_of_a_dead_run_is_ended(dead: RunFolder) -> None:
    with sleeping("-name", f"guest=kvl-{dead.run}-web,debug-threads=on") as guest:
        assert until(lambda: run_processes(dead) or None, Deadline(SECONDS)) == [guest.pid]
        reap_dead_runs()
        assert guest.wait(SECONDS) == -signal.SIGKILL
    assert not dead.path.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("-name", "guest=kvl-00000000-web"),
        ("-name", "guest=web"),
        ("guest=kvl-{run}-web",),
        ("--config", "{path}/etc/libvirtd.conf"),
        ("pytest_kvmlab.keeper.private_host", "{path}0"),
    ],
)
def test_a_process_that_is_not_of_the_run_survives(dead: RunFolder, words: tuple[str, ...]) -> None:
    with sleeping(*(word.format(run=dead.run, path=dead.path) for word in words)) as decoy:
        pid_file = dead.path / "embed-main" / "run" / "qemu" / f"kvl-{dead.run}-web.pid"
        pid_file.parent.mkdir(parents=True)
        pid_file.write_text(str(decoy.pid))
        reap_dead_runs()
        assert decoy.poll() is None
        decoy.kill()
    assert not dead.path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start another user's process")
def test_a_process_of_another_user_survives(dead: RunFolder) -> None:
    with sleeping("-name", f"guest=kvl-{dead.run}-web", user="nobody") as decoy:
        reap_dead_runs()
        assert decoy.poll() is None
        decoy.kill()
    assert not dead.path.exists()


# The keeper's socket


def test_the_keeper_dials_inside_for_us_and_survives_rubbish(
    owned_run: Callable[[], StartedRun], runs: Path
) -> None:
    run = owned_run()
    folder = RunFolder(next(runs.glob("????????")))
    for rubbish in (b"", b"\0\xff\n", b"[" * 10_000, b'{"address": "localhost", "port": 1, "timeout": 1}\n'):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(folder.keeper_socket))
            line.sendall(rubbish)
    with pytest.raises(ConnectionRefusedError):
        dial(folder, "127.0.0.1", 1, timeout=5)
    assert folder.keeper_log.read_text() == folder.host_log.read_text() == ""
    run.end()
