"""`kvmlab lab`, as a person uses it: up, look inside, down."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.lab.waits import until
from tests.guest.leftovers import processes_of

KVMLAB = Path(sys.executable).with_name("kvmlab")


def kvmlab(*arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [KVMLAB, *arguments], input=typed, capture_output=True, text=True, timeout=120, check=False
    )


@contextmanager
def place_for_runs() -> Iterator[Path]:
    """A place for runs of our own; short, because sockets lie below it."""
    with (
        tempfile.TemporaryDirectory(prefix="kvl-", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("KVMLAB_RUNS", folder)
        yield Path(folder)


@pytest.fixture(scope="module")
def runs() -> Iterator[Path]:
    with place_for_runs() as folder:
        yield folder


@pytest.fixture
def own_runs() -> Iterator[Path]:
    """A place for the runs of one test: none of another's is there."""
    with place_for_runs() as folder:
        yield folder


CAMPUS = """
[network.campus]
mode = "nat"
subnet = "10.77.0.0/24"
[network.lan]
mode = "bridge"
bridge = "br0"
simulated = true
[guest.web]
image = "micro"
networks = [{ name = "campus", address = "10.77.0.10" }]
after = ["db"]
[guest.db]
image = "micro"
networks = [{ name = "campus", address = "10.77.0.20" }]
"""


@pytest.fixture(scope="module")
def lab(runs: Path) -> Iterator[str]:
    """The demonstration lab, up."""
    up = kvmlab("lab", "up", "demo", "--hours", "1")
    assert up.returncode == 0, up.stderr
    yield "demo"
    assert kvmlab("lab", "down", "demo").returncode == 0
    assert not list(runs.iterdir())


def test_a_lab_that_is_up_is_listed_with_its_guests(lab: str) -> None:
    (run,) = json.loads(kvmlab("ps", "--json").stdout)
    assert (run["alive"], len(run["guests"]), Path(run["lab"]).name) == (True, 1, f"{lab}.lab.toml")
    assert run["kept_until"] is not None


def test_a_shell_passes_on_what_is_typed_and_its_exit_status(lab: str) -> None:
    shell = kvmlab("lab", "shell", lab, "micro", typed="uname -n; exit 3\n")
    assert (shell.stdout.strip(), shell.returncode) == ("micro", 3)


def test_the_console_leads_to_the_serial_shell(lab: str) -> None:
    with pexpect.spawn(
        str(KVMLAB), ["lab", "console", lab, "micro"], encoding="utf-8", timeout=30
    ) as console:
        console.sendline()
        console.expect("# ")
        console.sendline("echo $((6*7))")
        console.expect("42")
        console.sendcontrol("]")
        console.expect(pexpect.EOF)


def test_a_guest_that_is_not_there_is_named_with_the_nearest(lab: str) -> None:
    assert "did you mean 'micro'" in kvmlab("lab", "shell", lab, "mikro").stderr


def test_a_lab_is_brought_up_only_once(lab: str) -> None:
    again = kvmlab("lab", "up", lab)
    assert again.returncode == 1
    assert "is up already" in again.stderr


def test_a_virtual_dongle_is_played_as_long_as_its_guest_is_up(own_runs: Path, tmp_path: Path) -> None:
    lab = tmp_path / "dongle.lab.toml"
    lab.write_text('[guest.web]\nimage = "micro"\nusb = [{ virtual = "licence", id = "0a5e:2110" }]\n')
    assert kvmlab("lab", "up", str(lab), "--hours", "1").returncode == 0
    wanted = "until grep -q 0a5e /sys/bus/usb/devices/*/idVendor; do sleep 0.2; done; exit 7"
    try:
        assert kvmlab("lab", "shell", str(lab), "web", typed=f"{wanted}\n").returncode == 7
        assert [words for words in processes_of([str(own_runs)]).values() if "usb_left" in words]
    finally:
        assert kvmlab("lab", "down", str(lab)).returncode == 0
    until(lambda: not processes_of([str(own_runs)]) or None, Deadline(10))
    assert processes_of([str(own_runs)]) == {}


def test_guests_in_a_network_stay_reachable_by_their_host_and_each_other(tmp_path: Path) -> None:
    campus = tmp_path / "campus.lab.toml"
    campus.write_text(CAMPUS)
    up = kvmlab("lab", "up", str(campus), "--hours", "1")
    try:
        assert up.returncode == 0, up.stderr
        assert "network lan: simulated: a bridge of the lab's own stands for br0\n" in up.stdout
        for guest, address, other in (("web", "10.77.0.10", "db"), ("db", "10.77.0.20", "web")):
            typed = f"ip address; ping -c 1 {other}\n"
            shell = kvmlab("lab", "shell", str(campus), guest, typed=typed)
            assert (shell.returncode, f"inet {address}/24" in shell.stdout) == (0, True), shell.stderr
    finally:
        assert kvmlab("lab", "down", str(campus)).returncode == 0
