"""pytest itself, with real guests: whatever dies, and whenever, nothing of a run is left."""

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.lab.waits import until
from tests.guest.started_run import SECONDS, StartedRun, is_gone, run_pytest

# Each test says that it is up, in which process, and ends when it is allowed to.
GUESTS = """
import os, time
from pathlib import Path
import pytest

@pytest.mark.kvm(image="micro")
@pytest.mark.parametrize("number", range({count}))
def test_guest(guest, number):
    assert guest.succeed("uname -s").strip() == "Linux"
    Path(f"up-{{number}}").write_text(str(os.getpid()))
    while not Path("go").exists():
        time.sleep(0.05)
    assert number == 0
"""

# It stops where it is to be killed.
STOPS = """
import time
from pathlib import Path
import pytest

def stop(*_):
    Path("up-here").touch()
    time.sleep(600)

pytest.MonkeyPatch().setattr("pytest_kvmlab.{moment}", stop)
"""
RESETS = """
import pytest

@pytest.mark.kvm(image="micro")
def test_reset(guest):
    guest.reset()
"""


@pytest.fixture
def runs() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kvl-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def one_guest(tmp_path: Path, runs: Path) -> Iterator[StartedRun]:
    """A run in the midst of a test with a guest."""
    with run_pytest(tmp_path, runs, GUESTS.format(count=1)) as run:
        yield run


def test_nothing_is_left_after_a_test_that_passed_and_one_that_failed(tmp_path: Path, runs: Path) -> None:
    with run_pytest(tmp_path, runs, GUESTS.format(count=2)) as run:
        (tmp_path / "go").touch()
        told = run.end()
    assert "1 failed, 1 passed" in told
    assert run.traces.left() == {}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_pytest_is_killed(one_guest: StartedRun, how: signal.Signals) -> None:
    assert one_guest.processes("guest")
    one_guest.owner.send_signal(how)
    assert one_guest.owner.wait(SECONDS) == -how
    assert one_guest.traces.left_at_last() == {}


def test_a_run_without_its_keeper_fails_and_nothing_is_left(one_guest: StartedRun, tmp_path: Path) -> None:
    (guest,) = one_guest.processes("guest")
    one_guest.kill("keeper")
    assert is_gone(guest)
    (tmp_path / "go").touch()
    told = one_guest.end()
    assert one_guest.owner.returncode == 1, told
    assert one_guest.traces.left() == {}


def test_the_guest_of_a_killed_worker_ends_at_once_and_the_run_goes_on(tmp_path: Path, runs: Path) -> None:
    with run_pytest(tmp_path, runs, GUESTS.format(count=2), "-n", "2") as run:
        both = until(lambda: len(list(tmp_path.glob("up-*"))) == 2 or run.owner.poll(), Deadline(SECONDS))
        assert both is True, run.end()
        before = run.processes("guest")
        os.kill(int((tmp_path / "up-1").read_text()), signal.SIGKILL)
        assert until(lambda: len(run.processes("guest")) == 1 or None, Deadline(SECONDS)), before
        (tmp_path / "go").touch()
        told = run.end()
    assert len(before) == 2
    assert re.search("1 failed, 1 passed", told), told
    assert "crashed" in told
    assert run.traces.left() == {}


@pytest.mark.parametrize(
    "moment",
    [
        "lab.freezing._frozen",  # guests are suspended, and their state is not written yet
        "lab.templates.write_record",  # all is written, but nobody could tell
        "lab.power.go_on",  # a clone runs, and nobody knows it yet
        "lab.usb.UsbPorts.renew",  # one is off, and swapped for another
    ],
)
def test_nothing_is_left_of_clones_whenever_pytest_is_killed(tmp_path: Path, runs: Path, moment: str) -> None:
    (tmp_path / "conftest.py").write_text(STOPS.format(moment=moment))
    with run_pytest(tmp_path, runs, RESETS, "--kvm-reset=clone") as run:
        assert (tmp_path / "up-here").exists(), run.end()
        assert len(run.traces.left()["file"]) == 2  # its folder, and the one in memory
        run.owner.kill()
        assert run.owner.wait(SECONDS) == -signal.SIGKILL
        assert run.traces.left_at_last() == {}
