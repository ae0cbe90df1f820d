"""Whose run a folder is, and what may be said on the keeper's socket."""

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper import protocol, run_folder
from pytest_kvmlab.keeper.reap import reap_dead_runs, sweep
from pytest_kvmlab.keeper.run_folder import (
    RunFolder,
    create_run_folder,
    is_alive,
    owning,
    run_folders,
    runs_root,
    tail_of,
)

LONG_AGO = 1_000_000_000


@pytest.fixture
def living() -> Iterator[RunFolder]:
    folder, lock = create_run_folder({})
    yield folder
    os.close(lock)


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def dead(runs: Path) -> RunFolder:
    folder, lock = create_run_folder({})
    os.close(lock)
    assert folder.path.parent == runs
    return folder


# Why a private host failed


def test_the_end_of_a_long_log_begins_with_a_whole_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number} of the log\n" for number in range(1000)))
    tail = tail_of(log).splitlines()
    assert tail == [f"line {number} of the log" for number in range(1000 - len(tail), 1000)]
    assert len(tail) > 50


@pytest.mark.parametrize("text", ["short", "x" * 5000])
def test_a_log_of_one_line_has_an_end_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "log").write_text(text)
    assert tail_of(tmp_path / "log") == text[-2000:]


def test_a_reason_keeps_its_beginning_however_long_the_log_is_that_it_quotes(living: RunFolder) -> None:
    assert living.told_failure() == ""
    why = "libvirtd was ended by signal 9; it said: " + "much\n" * 1000
    living.tell_failure(why)
    living.tell_failure("what came later")
    assert living.told_failure() == why


# The folder for runs


def test_the_folder_for_runs_is_made_for_its_owner_alone(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMLAB_RUNS", str(runs / "new"))
    assert stat.S_IMODE(runs_root().stat().st_mode) == 0o700


def test_a_relative_folder_for_runs_is_the_same_for_everyone(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setenv("KVMLAB_RUNS", "here")
    assert runs_root() == runs / "here"


def refuse(monkeypatch: pytest.MonkeyPatch, root: Path, why: str) -> None:
    monkeypatch.setenv("KVMLAB_RUNS", str(root))
    with pytest.raises(HostError, match=why) as refusal:
        runs_root()
    assert "KVMLAB_RUNS" in refusal.value.hint


def test_a_path_too_long_for_sockets_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "deep-inside-something-else"
    refuse(monkeypatch, root, "longer than 30 bytes")
    assert not root.exists()


@pytest.mark.parametrize("name", ["a b", 'a"b', "a,b", "a?b", "ä"])
def test_a_path_that_would_need_quoting_is_refused(
    name: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, runs / name, "other characters")


def test_a_folder_that_others_may_write_to_is_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.chmod(0o770)
    refuse(monkeypatch, runs, "others may write")


def test_a_folder_of_somebody_else_is_refused(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Path("/usr") if os.geteuid() else runs
    if theirs == runs:
        os.chown(runs, 65534, 65534)
    refuse(monkeypatch, theirs, "belongs to user")


def test_a_link_is_not_a_folder_for_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "link").symlink_to(runs)
    refuse(monkeypatch, runs / "link", "not a folder")


def test_a_folder_that_cannot_be_made_is_told_with_the_reason(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs / "file").touch()
    refuse(monkeypatch, runs / "file" / "runs", "Not a directory")


# Ownership


def test_a_run_is_alive_while_its_lock_is_held(runs: Path) -> None:
    folder, lock = create_run_folder({"owner": 1})
    assert is_alive(folder)
    assert run_folders() == [folder]
    os.close(lock)
    assert not is_alive(folder)
    assert folder.path.parent == runs


def test_a_run_that_cannot_be_recorded_leaves_neither_folder_nor_descriptor(runs: Path) -> None:
    before = open_descriptors()
    with pytest.raises(TypeError):
        create_run_folder({"owner": object()})
    assert list(runs.iterdir()) == []
    assert open_descriptors() == before


def test_a_dead_run_is_taken_away(dead: RunFolder) -> None:
    assert reap_dead_runs() == [dead]
    assert list(dead.path.parent.iterdir()) == []


@pytest.mark.usefixtures("runs")
def test_a_living_run_stays_with_everything_in_it(living: RunFolder) -> None:
    (living.guests / "web").mkdir()
    assert reap_dead_runs() == []
    assert (living.guests / "web").is_dir()


def test_a_maker_that_died_before_its_run_had_a_name_is_taken_away_later(runs: Path) -> None:
    unborn = runs / ".new-0123abcd"
    unborn.mkdir()
    assert reap_dead_runs() == []
    os.utime(unborn, (LONG_AGO, LONG_AGO))
    assert reap_dead_runs() == [RunFolder(unborn)]
    assert not unborn.exists()


def test_a_sweep_that_was_cut_short_is_completed(runs: Path) -> None:
    (runs / ".old-0123abcd" / "guests").mkdir(parents=True)
    assert reap_dead_runs() == []
    assert list(runs.iterdir()) == []


def test_a_link_is_never_followed_and_never_removed(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    for name in ("0123abcd", ".new-0123abcd", ".old-0123abcd"):
        (runs / name).symlink_to(tmp_path)
        os.utime(runs / name, (LONG_AGO, LONG_AGO), follow_symlinks=False)
    assert reap_dead_runs() == []
    assert len(list(runs.iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_link_inside_a_dead_run_is_removed_without_what_it_leads_to(
    dead: RunFolder, tmp_path: Path
) -> None:
    (tmp_path / "precious").touch()
    (dead.guests / "link").symlink_to(tmp_path)
    reap_dead_runs()
    assert not dead.path.exists()
    assert (tmp_path / "precious").exists()


def test_what_is_not_called_like_a_run_stays(runs: Path) -> None:
    (runs / "thesis").mkdir()
    (runs / "0123abcd.txt").touch()
    reap_dead_runs()
    assert len(list(runs.iterdir())) == 2


def test_a_lock_that_is_a_link_leaves_the_run_alone(dead: RunFolder, tmp_path: Path) -> None:
    dead.lock.unlink()
    dead.lock.symlink_to(tmp_path / "elsewhere")
    assert reap_dead_runs() == []
    assert dead.path.exists()
    assert not (tmp_path / "elsewhere").exists()


def test_a_reaper_that_comes_second_does_nothing(dead: RunFolder) -> None:
    with owning(dead) as first, owning(dead) as second:
        assert (first, second) == (True, False)


def test_a_lock_that_was_opened_before_the_run_was_swept_owns_nothing(
    dead: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_file = dead.lock.open()
    sweep(dead)
    monkeypatch.setattr(run_folder, "_open_lock", lambda _: os.dup(lock_file.fileno()))
    with lock_file, owning(dead) as ours:
        assert not ours


def test_many_reapers_at_once_take_each_run_away_once(runs: Path) -> None:
    for _ in range(20):
        os.close(create_run_folder({})[1])
    taken: list[RunFolder] = []
    reapers = [threading.Thread(target=lambda: taken.extend(reap_dead_runs())) for _ in range(4)]
    for reaper in reapers:
        reaper.start()
    for reaper in reapers:
        reaper.join()
    assert len({folder.run for folder in taken}) == len(taken) == 20
    assert list(runs.iterdir()) == []


def test_runs_that_start_while_others_reap_are_never_taken(runs: Path) -> None:
    stop = threading.Event()

    def reap() -> None:
        while not stop.is_set():
            reap_dead_runs()

    reaper = threading.Thread(target=reap)
    reaper.start()
    made = [create_run_folder({}) for _ in range(100)]
    stop.set()
    reaper.join()
    assert len(run_folders()) == len(made)
    for folder, lock in made:
        assert is_alive(folder)
        os.close(lock)
    assert runs.exists()


def test_a_half_written_record_reads_as_empty(dead: RunFolder) -> None:
    for text in ('{"owner": 1', "[1]", "\x00"):
        (dead.path / "run.json").write_text(text)
        assert dead.read("run.json") == {}


# The socket


def say(words: bytes, *, finish: bool = True) -> protocol.Dial | protocol.OpenLan:
    """What the keeper understands of some bytes."""
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        ours.sendall(words)
        if finish:
            ours.shutdown(socket.SHUT_WR)
        return protocol.receive(theirs)


def request(**changes: object) -> bytes:
    return json.dumps({"address": "127.0.0.1", "port": 22, "timeout": 1.5} | changes).encode() + b"\n"


def test_a_request_is_understood() -> None:
    assert say(request()) == protocol.Dial("127.0.0.1", 22, 1.5)


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"\n",
        b"\xff\xfe\n",
        b"[" * 400 + b"\n",
        b"x" * 100_000,
        b"[1]\n",
        request(port=0),
        request(port=65536),
        request(port="22"),
        request(address="example.org"),
        request(address="127.0.0.1\x00"),
        request(address=["127.0.0.1"]),
        request(timeout=0),
        request(timeout=1e9),
        request(timeout=float("nan")),
        request(timeout=None),
    ],
)
def test_anything_else_ends_the_conversation(words: bytes) -> None:
    with pytest.raises(ConnectionError):
        say(words)


def test_a_request_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_REQUEST_SECONDS", 0.1)
    with pytest.raises(OSError, match=r"timed out|does not end"):
        say(b'{"address"', finish=False)


def test_descriptors_that_come_with_a_request_are_not_kept() -> None:
    ours, theirs = socket.socketpair()
    before = open_descriptors()
    with closing(ours), closing(theirs):
        socket.send_fds(ours, [request()], [0, 1, 2])
        protocol.receive(theirs)
        assert open_descriptors() == before
