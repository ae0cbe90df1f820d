"""Which way a clean guest takes, and what happens where one is closed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pytest_kvmlab import Guest
from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.libvirt import Domain
from pytest_kvmlab.errors import HostError
from pytest_kvmlab.lab import freezing, templates
from pytest_kvmlab.lab.capacity import Capacity
from pytest_kvmlab.lab.claims import Ledger
from pytest_kvmlab.lab.frozen import Frozen
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.spec.options import Reset
from tests.guest.own_launcher import frozen, own_launcher, started, ways

MIB = 2**20
Refuse = Callable[[str], None]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Makes QEMU refuse one command of its monitor, as one that was built without it does."""
    asked: dict[str, Callable[..., object]] = {"qmp": Domain.qmp, "monitor": Domain.monitor}

    def refuse(word: str) -> None:
        def answer(domain: Domain, command: str, **arguments: object) -> object:
            if word in f"{command} {arguments}":
                raise HostError(f"{domain.name} does not do '{command}'")
            return asked[how](domain, command, **arguments)

        how = "qmp" if "-" in word else "monitor"
        monkeypatch.setattr(Domain, how, answer)

    return refuse


@contextmanager
def up(launcher: Launcher, source: str, memory: str) -> Iterator[Guest]:
    """A guest with an amount of memory that no other test asks for: it has a template of its own."""
    with started(launcher, source=source, memory=memory) as guest:
        yield guest


def boots(guest: Guest) -> int:
    return [event.name for event in guest.machine.journal.of(guest.name, "phase")].count("create")


# Templates


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage",
    [lambda template: _cut(template.state), lambda template: _cut(template.memory)],
    ids=["state cut short", "memory cut short"],
)
def test_a_damaged_template_is_made_anew(launcher: Launcher, damage: Callable[[Frozen], None]) -> None:
    with own_launcher(launcher) as own:
        with up(own, "damaged", "193MiB") as first:
            damage(frozen(first))
        with up(own, "damaged", "193MiB") as second:
            assert frozen(second) != frozen(first)
            assert second.succeed("uname") == "Linux\n"


def test_without_room_in_memory_a_template_is_on_disk(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_ROOM_LEFT", 2**60)
    with own_launcher(launcher) as own, up(own, "on disk", "194MiB") as guest:
        assert frozen(guest).memory.is_relative_to(own.assembly.host.folder.path)
        assert guest.succeed("uname") == "Linux\n"


# Where a way is closed


def test_without_clones_guests_are_set_back(launcher: Launcher, refuse: Refuse) -> None:
    refuse("x-ignore-shared")
    with own_launcher(launcher, "auto") as own:
        for _ in range(2):
            with up(own, "no clones", "195MiB") as guest:
                assert guest.machine.frozen is None
                guest.succeed("test ! -e /tmp/spoilt && touch /tmp/spoilt")
        assert boots(guest) == 1
    (reason, way), *later = [ways(own, "no clones")[at : at + 2] for at in (0, 2)]
    assert (reason[0], way) == ("no clone", ("rewind", ""))
    assert "cannot be frozen: " in reason[1]
    assert "does not do 'migrate-set-capabilities'" in reason[1]
    assert later == [[reason, way]]


def test_without_snapshots_either_they_boot(launcher: Launcher, refuse: Refuse) -> None:
    refuse("x-ignore-shared")
    refuse("savevm")
    with own_launcher(launcher, "auto") as own:
        for _ in range(2):
            with up(own, "boots", "195MiB") as guest:
                guest.succeed("test ! -e /tmp/spoilt && touch /tmp/spoilt")
                assert boots(guest) == 1
    told = [way for way in ways(own, "boots") if way[0] != "no clone"]
    assert [name for name, _ in told] == ["boot", "boot"]
    assert all("does not do 'savevm" in why for _, why in told)


def test_clones_that_are_no_machines_of_their_own_are_not_used(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezing, "_asked", lambda *_: "1")
    with own_launcher(launcher, "auto") as own, up(own, "twins", "196MiB") as guest:
        assert guest.machine.frozen is None
    assert ways(own, "twins")[0] == (
        "no clone",
        "clones of guest are no good: two clones have the same random numbers",
    )
    folder = launcher.assembly.host.folder
    refused = {each.parent.name for each in folder.path.glob("templates/*/refused.txt")}
    assert refused
    assert not refused & {each.name.partition("-")[0] for each in folder.memory.glob("*")}, "its memory stays"


@pytest.mark.parametrize(("reset", "word"), [("clone", "x-ignore-shared"), ("rewind", "savevm")])
def test_a_way_that_was_asked_for_and_is_closed_is_an_error(
    launcher: Launcher, refuse: Refuse, reset: Reset, word: str
) -> None:
    refuse(word)
    with (
        own_launcher(launcher, reset) as own,
        pytest.raises(HostError, match=rf"closed: --kvm-reset={reset}: .*does not do"),
        up(own, "closed", "197MiB"),
    ):
        pass


def test_for_one_guest_no_template_is_made(launcher: Launcher) -> None:
    with own_launcher(launcher, "auto") as own:
        own.to_come = 1
        with up(own, "once", "198MiB") as guest:
            assert guest.machine.frozen is None
    assert [name for name, _ in ways(own, "once")] == ["no clone", "boot"]


# Set back in place


def test_a_guest_is_set_back_unless_the_last_test_broke_it(launcher: Launcher) -> None:
    with own_launcher(launcher, "rewind") as own:
        for _ in range(3):
            with started(own, source="rewind", disks=[{"size": "1MiB"}]) as guest:
                guest.succeed("test ! -e /tmp/x && touch /tmp/x; test ! -e /data/x && touch /data/x; sync")
                guest.succeed("echo spoilt >/dev/vdb; sync")
        assert boots(guest) == 1
        guest.crash()
        with started(own, source="rewind", disks=[{"size": "1MiB"}]) as fresh:
            assert fresh is not guest
            assert boots(fresh) == 1
            fresh.fail("ls /tmp/x")


# Started ahead of time, and within bounds


def test_the_next_clone_is_started_while_a_test_has_the_last(launcher: Launcher) -> None:
    with own_launcher(launcher, pool=1) as own:
        with up(own, "first", "199MiB") as first:
            waiting = own._cloning.pool._next[0].result()
        with up(own, "second", "199MiB") as second:
            assert second is waiting.clones.guests["guest"]
            assert second is not first
            assert second.serial.run("echo at once").stdout == "at once\n"


def test_what_waits_is_logged_in_to_where_the_last_test_used_ssh(launcher: Launcher) -> None:
    with own_launcher(launcher, pool=1) as own:
        with up(own, "serial", "198MiB") as first:
            first.serial.run("true")
        with up(own, "over SSH", "198MiB") as second:
            assert not second.connected
            second.succeed("true")
            assert not next_one(own).connected
        with up(own, "again", "198MiB") as third:
            third.serial.run("true")
            assert next_one(own).connected
        with up(own, "fourth", "198MiB") as fourth:
            assert fourth.succeed("echo at once") == "at once\n"
            assert not next_one(own).connected


def next_one(own: Launcher) -> Guest:
    """The guest that waits for the next test."""
    return own._cloning.pool._next[0].result().clones.guests["guest"]


def test_what_was_started_ahead_of_time_makes_room_for_others(launcher: Launcher, tmp_path: Path) -> None:
    capacity = replace(launcher.capacity, limit=500 * MIB, folder=tmp_path / "claims")
    with own_launcher(replace_capacity(launcher, capacity), pool=1) as own:
        with up(own, "small", "150MiB"):
            own._cloning.pool._next[0].result()
        with up(own, "large", "249MiB") as large:
            assert frozen(large).state.exists()


def test_where_memory_is_short_nothing_is_started_ahead_of_time(launcher: Launcher, tmp_path: Path) -> None:
    # Enough for two guests, but not for a third one beside that of the pool.
    capacity = replace(launcher.capacity, limit=400 * MIB, folder=tmp_path / "claims")
    with own_launcher(replace_capacity(launcher, capacity), pool=1) as own, up(own, "first", "150MiB"):
        assert isinstance(own._cloning.pool._next[0].exception(), HostError)


def test_others_are_told_for_which_test_a_clone_is_that_waited(launcher: Launcher, tmp_path: Path) -> None:
    capacity = replace(launcher.capacity, folder=tmp_path / "claims")
    with own_launcher(replace_capacity(launcher, capacity), pool=1) as own:
        for test in ("first", "second"):
            with up(own, test, "199MiB"):
                next_one(own)
                # The one before ends in the background, and gives its memory back then.
                assert until(
                    partial(are_holders, capacity.folder, {test, "the pool of clones"}), Deadline(30)
                )


def holders(folder: Path) -> set[str]:
    """For what there are claims on memory."""
    (memory,) = folder.glob("memory-*")
    with Ledger(memory).claims() as claims:
        return {claim.who.partition(" (run ")[0] for claim in claims}


def are_holders(folder: Path, wanted: set[str]) -> bool | None:
    return holders(folder) == wanted or None


def replace_capacity(launcher: Launcher, capacity: Capacity) -> Launcher:
    return replace(launcher, capacity=capacity)
