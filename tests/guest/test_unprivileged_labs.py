"""Labs of a user without rights: in namespaces, and, where none can be made, between QEMUs alone."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.leftovers import Traces, network_of_this_machine
from tests.guest.unprivileged import Unprivileged
from tests.plugin.pair_lab import MODES, PAIR

SAME = """
import pytest

BOOT = "cat /proc/sys/kernel/random/boot_id"

@pytest.mark.parametrize("number", range(2))
def test_each_lab_has_its_own_database(lab, number):
    lab["db"].succeed(f"mkdir /srv; {BOOT} >/srv/id; httpd -p 80 -h /srv")
    assert lab["web"].succeed("wget -qO- http://db/id") == lab["db"].succeed(BOOT)
"""

KILLED = """
import os, signal

def test_that_is_killed(lab):
    lab["web"].succeed("ping -c 1 -W 5 db")
    print("both are up", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
FILES = {"pair.lab.toml": PAIR, "test_modes.py": MODES, "test_same.py": SAME, "test_killed.py": KILLED}


@pytest.fixture(scope="module")
def nobody() -> Iterator[Unprivileged]:
    with tempfile.TemporaryDirectory(prefix="kvl-", dir="/tmp") as folder:
        user = Unprivileged.prepare(Path(folder))
        for name, text in FILES.items():
            (user.home / name).write_text(text)
        yield user


def ran(user: Unprivileged, host: str, *arguments: str) -> str:
    """What pytest says, run by that user; nothing of it is left."""
    traces, before = Traces.of(user.runs), network_of_this_machine()
    python = user.python_with_tun if host == "private" and os.geteuid() == 0 else user.python
    told = subprocess.run(
        [*python, "-m", "pytest", "--kvm-lab", "-p", "no:cacheprovider", f"--kvm-host={host}", *arguments],
        check=False,
        cwd=user.home,
        env=user.environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert traces.left_at_last() == {}
    assert network_of_this_machine() == before
    return told.stdout + told.stderr


@pytest.mark.parametrize("host", ["private", "embed"])
def test_guests_of_a_lab_reach_each_other_and_are_reached(nobody: Unprivileged, host: str) -> None:
    assert "9 passed" in ran(nobody, host, "test_modes.py")


def test_a_lab_without_namespaces_is_cloned_and_two_of_it_never_meet(nobody: Unprivileged) -> None:
    told = ran(nobody, "embed", "--kvm-reset=clone", "test_same.py")
    assert "2 passed" in told


def test_nothing_is_left_of_a_lab_without_namespaces_when_its_process_is_killed(
    nobody: Unprivileged,
) -> None:
    assert "both are up" in ran(nobody, "embed", "-s", "test_killed.py")
