"""One guest after the other, and after all of them this process and this machine are as before."""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_kvmlab.lab.launch import Launcher
from tests.guest.own_launcher import frozen, own_launcher, started

# `tox -e resets` says 200, which takes minutes where other tests run beside it.
TIMES = int(os.environ.get("MANY_RESETS", "20"))
_WARM = 5
_MOST_THREADS = 4  # that end guests; they are started as they are needed
_MIB = 2**20


@dataclass(frozen=True)
class Held:
    """What this process holds: the other workers of its run have guests, too."""

    descriptors: int
    threads: int
    folders: int
    domains: int
    memory: int

    @classmethod
    def now(cls, launcher: Launcher) -> "Held":
        host, ours = launcher.assembly.host, f"-{launcher.assembly.worker}-"
        domains = [domain.name() for domain in host.connection._connection.listAllDomains()]
        return cls(
            len(list(Path("/proc/self/fd").iterdir())),
            threading.active_count(),
            len(list(host.folder.guests.glob(f"*{ours}*"))),
            len([name for name in domains if ours in name]),
            int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        )


@pytest.fixture
def clones(launcher: Launcher) -> Iterator[Launcher]:
    with own_launcher(launcher, pool=1) as own:
        yield own


def one(launcher: Launcher) -> None:
    """A test with a clean guest that is spoilt."""
    with started(launcher) as guest:
        assert frozen(guest).state.exists()
        assert guest.serial.run("test ! -e /data/x && touch /data/x && sync", timeout=60).ok
        assert guest.serial.run("ls /data/x").ok


def settled(launcher: Launcher) -> Held:
    """What is held once nothing ends in the background, and the pool is empty."""
    launcher._cloning.pool.drain()
    assert launcher._background.failures() == []
    return Held.now(launcher)


def test_resets_leave_nothing_behind(clones: Launcher) -> None:
    for _ in range(_WARM):
        one(clones)
    before = settled(clones)
    for _ in range(TIMES):
        one(clones)
    after = settled(clones)
    assert (after.descriptors, after.folders, after.domains) == (
        before.descriptors,
        before.folders,
        before.domains,
    )
    assert after.threads <= before.threads + _MOST_THREADS
    assert after.memory < before.memory + 10 * _MIB + TIMES * _MIB // 20


def test_one_guest_is_reset_many_times(clones: Launcher) -> None:
    with started(clones) as guest:
        before = settled(clones)
        for _ in range(TIMES):
            guest.serial.run("touch /data/x; sync")
            guest.reset()
            assert not guest.serial.run("ls /data/x").ok
        after = settled(clones)
    assert (after.descriptors, after.folders, after.domains, after.threads) == (
        before.descriptors,
        before.folders,
        before.domains,
        before.threads,
    )
