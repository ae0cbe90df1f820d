"""Templates of a run: made once, checked before each use, made anew if they are damaged."""

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_kvmlab.errors import GuestError, ImageError
from pytest_kvmlab.keeper import run_folder
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.lab import templates
from pytest_kvmlab.lab.frozen import Frozen, Rest, read_record, write_record
from pytest_kvmlab.lab.place import Place
from pytest_kvmlab.lab.templates import NoClones, Templates

MEMORY = 2**20
KEY = "what it depends on"


class Maker:
    """Makes templates of a few files, and counts them."""

    def __init__(self) -> None:
        self.made = 0
        self.found: list[str] = []

    def __call__(self, place: Place) -> list[Frozen]:
        self.made += 1
        folder, memory = place.of_guest(0), place.memory_of(0)
        self.found += [path.name for path in (*folder.iterdir(), memory) if path.exists()]
        state = b"state %d" % self.made
        (folder / "state").write_bytes(state)
        (folder / "disk.qcow2").write_bytes(b"a disk")
        memory.write_bytes(bytes(MEMORY))
        rest = Rest(None, "date -s @{}", "ssh", agent=True)
        return [Frozen(folder, memory, hashlib.sha256(state).hexdigest(), rest, (folder / "disk.qcow2",))]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The folder of a run, whose part in memory is in a folder, too."""
    (tmp_path / "shm").mkdir()
    (tmp_path / "0123abcd").mkdir()
    monkeypatch.setattr(run_folder, "_MEMORY", tmp_path / "shm")
    return RunFolder(tmp_path / "0123abcd")


@pytest.fixture
def maker() -> Maker:
    return Maker()


def unchecked(_guests: object) -> None:
    """Nothing here was kept by an earlier run."""


def one_of(run: RunFolder, maker: Callable[[Place], list[Frozen]]) -> Frozen:
    """The guest of a template, as a process that has just begun gets it."""
    (guest,) = Templates(run).get(KEY, MEMORY, maker, unchecked)
    return guest


def test_a_template_is_made_once_for_all_processes_of_a_run(run: RunFolder, maker: Maker) -> None:
    assert not Templates(run).has(KEY)
    first, second = one_of(run, maker), one_of(run, maker)
    assert Templates(run).has(KEY)
    assert (first, maker.made) == (second, 1)


def test_who_comes_while_a_template_is_made_waits_for_it(run: RunFolder, maker: Maker) -> None:
    at_it, go_on = threading.Event(), threading.Event()

    def slowly(place: Place) -> list[Frozen]:
        at_it.set()
        assert go_on.wait(20)
        return maker(place)

    first = threading.Thread(target=one_of, args=(run, slowly))
    second = threading.Thread(target=one_of, args=(run, maker))
    first.start()
    assert at_it.wait(20)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    go_on.set()
    first.join()
    second.join()
    assert maker.made == 1


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGE: dict[str, Callable[[Frozen], object]] = {
    "its state is cut short": lambda guest: _cut(guest.state),
    "its state is another one": lambda guest: guest.state.write_bytes(b"state X"),
    "its state is gone": lambda guest: guest.state.unlink(),
    "its memory is cut short": lambda guest: _cut(guest.memory),
    "its memory was written to": lambda guest: guest.memory.write_bytes(b"x" * MEMORY),
    "its memory is gone": lambda guest: guest.memory.unlink(),
    "its disk is gone": lambda guest: guest.disks[0].unlink(),
    "its disk was written to": lambda guest: guest.disks[0].write_bytes(b"A DISK"),
    "its record is cut short": lambda guest: _cut(guest.folder.parent / "template.json"),
    "its record is of something else": lambda guest: _record(guest).write_text('{"guests": [7]}'),
    "its record is gone": lambda guest: _record(guest).unlink(),
    "its record is no text": lambda guest: _record(guest).write_bytes(b"\xff\xfe"),
}


def _record(guest: Frozen) -> Path:
    return guest.folder.parent / "template.json"


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_template_is_made_anew(run: RunFolder, maker: Maker, what: str) -> None:
    known = Templates(run)
    (guest,) = known.get(KEY, MEMORY, maker, unchecked)
    DAMAGE[what](guest)
    (fresh,) = known.get(KEY, MEMORY, maker, unchecked)
    assert maker.made == 2
    assert fresh.state.read_bytes() == b"state 2"
    assert one_of(run, maker) == fresh
    assert maker.made == 2


def test_a_new_template_finds_nothing_of_an_old_one(run: RunFolder, maker: Maker) -> None:
    _record(one_of(run, maker)).unlink()
    one_of(run, maker)
    assert maker.found == []


def test_half_a_template_is_none(run: RunFolder, maker: Maker) -> None:
    def killed(place: Place) -> list[Frozen]:
        maker(place)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one_of(run, killed)
    assert not Templates(run).has(KEY)
    assert one_of(run, maker).state.read_bytes() == b"state 2"


def test_why_there_is_no_template_is_told_to_all_processes(run: RunFolder) -> None:
    def refused(place: Place) -> list[Frozen]:
        place.memory_of(0).write_bytes(bytes(MEMORY))
        raise NoClones("clones of web are no good: they have the same random numbers")

    for _ in range(2):
        with pytest.raises(NoClones, match="the same random numbers"):
            one_of(run, refused)
        refused = pytest.fail  # type: ignore[assignment]  # nobody tries again
    assert not list(run.memory.iterdir()), "a template that is no good takes up memory"


def test_a_guest_that_does_not_get_ready_speaks_against_no_template(run: RunFolder, maker: Maker) -> None:
    def broken(_place: Place) -> list[Frozen]:
        raise GuestError("web does not get ready", phase="boot")

    with pytest.raises(GuestError):
        one_of(run, broken)
    assert one_of(run, maker).state.exists()


def test_a_full_disk_speaks_against_clones(run: RunFolder) -> None:
    def full(_place: Place) -> list[Frozen]:
        raise OSError(28, "No space left on device")

    with pytest.raises(NoClones, match=r"cannot be written down: .*No space left"):
        one_of(run, full)


# Where the memory is


def test_memory_is_in_memory_where_there_is_room(run: RunFolder, maker: Maker) -> None:
    assert one_of(run, maker).memory.parent == run.memory
    assert run.memory.stat().st_mode & 0o777 == 0o700


def test_without_room_in_memory_it_is_on_disk(
    run: RunFolder, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_ROOM_LEFT", 2**60)
    assert one_of(run, maker).memory.is_relative_to(run.path)


def test_without_a_file_system_in_memory_it_is_on_disk(
    run: RunFolder, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "_MEMORY", Path("/proc/nobody-may"))
    assert one_of(run, maker).memory.is_relative_to(run.path)


# The record


def test_a_record_gives_back_what_was_written(run: RunFolder, maker: Maker) -> None:
    guest = one_of(run, maker)
    write_record(run.path / "record", [guest])
    assert read_record(run.path / "record") == [guest]


def test_a_record_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="record is damaged"):
        read_record(tmp_path / "none")


def test_no_lock_is_left_behind(run: RunFolder, maker: Maker) -> None:
    one_of(run, maker)
    (lock,) = (run.path / "templates").glob("*.lock")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
