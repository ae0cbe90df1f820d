"""The hosts that guests can run on, and who may use which."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.keeper.client import Keeper
from pytest_kvmlab.lab.hosts import Host, HostChoice, choose_host, open_host
from pytest_kvmlab.lab.run import capabilities_folder
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.spec.options import resolve_options
from tests.guest.leftovers import Traces
from tests.guest.started_run import ROOT, SECONDS, StartedRun, in_role, is_gone, own_a_run
from tests.guest.unprivileged import Unprivileged

TEST = """
import pytest

@pytest.mark.kvm(image="micro", usb=[{"virtual": "licence", "id": "0a5e:2110"}])
def test_guest(guest):
    assert guest.succeed("uname -s").strip() == "Linux"
    assert "0a5e" in guest.succeed("cat /sys/bus/usb/devices/*/idVendor")
"""
PYTEST = ("-m", "pytest", "--kvm-lab", "-p", "no:cacheprovider")
KVMLAB = ("-c", "from pytest_kvmlab.cli import app; app()")
REAP = (*KVMLAB, "reap")


@pytest.fixture(scope="module")
def nobody() -> Iterator[Unprivileged]:
    with tempfile.TemporaryDirectory(prefix="kvl-", dir="/tmp") as folder:
        user = Unprivileged.prepare(Path(folder))
        (user.home / "test_guest.py").write_text(TEST)
        yield user


# A user without rights


@pytest.mark.parametrize("wish", ["auto", "embed"])
def test_an_unprivileged_user_runs_guests_and_nothing_is_left(nobody: Unprivileged, wish: str) -> None:
    host = "private" if wish == "auto" and nobody.may_make_namespaces() else "embed"
    traces = Traces.of(nobody.runs)
    told = subprocess.run(
        [*nobody.python, *PYTEST, f"--kvm-host={wish}", "test_guest.py"],
        check=False,
        cwd=nobody.home,
        env=nobody.environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "1 passed" in told.stdout, told.stdout + told.stderr
    assert f"host {host}" in told.stdout
    assert traces.left() == {}


@pytest.fixture
def embedded(nobody: Unprivileged) -> Iterator[StartedRun]:
    """A run of an unprivileged user on the embedded driver, whose guests do not end with anybody."""
    with own_a_run(nobody.python, nobody.runs, "embed", nobody.environment) as run:
        yield run


def test_nothing_is_left_of_the_embedded_driver_when_its_owner_is_killed(embedded: StartedRun) -> None:
    assert len(embedded.processes("guest")) == 1
    embedded.owner.kill()
    assert embedded.traces.left_at_last() == {}


def test_embedded_guests_that_outlive_everybody_are_reaped(
    embedded: StartedRun, nobody: Unprivileged
) -> None:
    (guest,) = embedded.processes("guest")
    embedded.kill("keeper")
    embedded.owner.kill()
    embedded.owner.wait()
    assert Path(f"/proc/{guest}").exists()
    subprocess.run([*nobody.python, *REAP], check=True, env=nobody.environment, cwd=nobody.home, timeout=60)
    assert is_gone(guest)
    assert embedded.traces.left() == {}


def test_a_guest_of_the_embedded_driver_is_kept_reached_and_taken_away(nobody: Unprivileged) -> None:
    traces = Traces.of(nobody.runs)
    kept = [*nobody.python, *PYTEST, "--kvm-host=embed", "--kvm-keep=always", "test_guest.py"]
    subprocess.run(kept, check=True, env=nobody.environment, cwd=nobody.home, timeout=240)
    (run,) = nobody.runs.iterdir()
    lab = [*nobody.python, *KVMLAB, "lab"]
    enter = [*lab[1:], "shell", run.name, "guest"]
    with pexpect.spawn(lab[0], enter, 60, cwd=nobody.home, env=nobody.environment) as shell:
        shell.sendline("echo it is $(uname -s)")
        shell.expect("it is Linux\r")
        shell.sendline("exit")
        shell.expect(pexpect.EOF)
    subprocess.run([*lab, "down", run.name], check=True, env=nobody.environment, cwd=nobody.home, timeout=60)
    assert traces.left_at_last() == {}


# A libvirt that is there already

FOREIGN = """
<domain type='qemu'>
  <name>production</name><memory unit='MiB'>16</memory>
  <os><type machine='microvm'>hvm</type></os>
  <devices><controller type='usb' model='none'/><memballoon model='none'/></devices>
</domain>
"""


@pytest.fixture
def system_libvirt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    """A libvirt that some run of ours did not start, in namespaces where it disturbs nobody."""
    with tempfile.TemporaryDirectory(prefix="kvl-", dir="/tmp") as folder:
        monkeypatch.setenv("KVMLAB_RUNS", folder)
        keeper = Keeper({}, capabilities=tmp_path)
        try:
            host = open_host(HostChoice("private", ""), keeper.folder, worker="main", capabilities=tmp_path)
            yield host
            host.close()
        finally:
            keeper.close()


def test_guests_run_beside_those_of_others_on_a_libvirt_that_is_there(
    system_libvirt: Host, tmp_path: Path
) -> None:
    (tmp_path / "test_guest.py").write_text(TEST)
    foreign = system_libvirt.connection.create(FOREIGN, autodestroy=False)
    foreign.resume()
    # QEMU may write nowhere else than below the folder that its libvirt was started with.
    runs = system_libvirt.folder.path / "r"
    (init,) = in_role("PID 1", [str(system_libvirt.folder.path)])
    uri = system_libvirt.connection.uri
    told = subprocess.run(
        [*_inside(init), sys.executable, *PYTEST, f"--kvm-host={uri}", "test_guest.py"],
        check=False,
        cwd=tmp_path,
        env=os.environ | {"KVMLAB_RUNS": str(runs)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "1 passed" in told.stdout, told.stdout + told.stderr
    assert list(runs.iterdir()) == []
    assert foreign.state() == "running"


@pytest.fixture(scope="module")
def libvirt_of_the_machine() -> Iterator[tuple[str, int]]:
    """Its URI, and a process in its namespaces."""
    isolated = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with tempfile.TemporaryDirectory(prefix="kvl-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        cache = capabilities_folder(resolve_options({"lab": True}, os.environ, {}))
        server = [*isolated, sys.executable, "-m", "tests.guest.system_libvirt", folder, str(cache)]
        with subprocess.Popen(server, cwd=ROOT) as process:
            address = Path(folder, "sock", "libvirt-sock")
            try:
                assert until(lambda: address.exists() or process.poll(), Deadline(SECONDS)) is True
                init = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                yield f"qemu+unix:///system?socket={address}", int(init)
            finally:
                process.kill()  # unshare does not hear SIGTERM; what it started is killed with it


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_guests_run_where_qemu_has_a_user_of_its_own(
    libvirt_of_the_machine: tuple[str, int], nobody: Unprivileged, runs: Path, user: str
) -> None:
    uri, init = libvirt_of_the_machine
    python, environment, runs = (
        (nobody.python, nobody.environment, nobody.runs)
        if user == "nobody"
        else ([sys.executable], dict(os.environ), runs)
    )
    told = subprocess.run(
        [*_inside(init), *python, *PYTEST, f"--kvm-host={uri}", "test_guest.py"],
        check=False,
        cwd=nobody.home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "1 passed" in told.stdout, told.stdout + told.stderr
    assert list(runs.iterdir()) == []


def _inside(process: int) -> list[str]:
    """The beginning of a command line that runs a program in the network namespace of a process."""
    user = ["--user", "--preserve-credentials"] if os.geteuid() else []
    return ["nsenter", f"--target={process}", *user, "--net"]


def test_guests_of_a_libvirt_that_is_there_cannot_be_kept() -> None:
    assert choose_host("qemu:///system").kind == "qemu:///system"
    with pytest.raises(ConfigError, match="qemu:///system cannot be kept"):
        choose_host("qemu:///system", keep=True)
