"""Guests that break: each says what failed, what was looked at and what to do, as soon as that is known."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pytest_kvmlab import Guest
from pytest_kvmlab.drivers.ssh_keys import generate_key_pair
from pytest_kvmlab.errors import GuestError, HostError, ImageError, WaitTimeout
from pytest_kvmlab.lab.images import Images
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.validation import validate

pytestmark = pytest.mark.kvm(image="micro")

SOON = 20.0  # with the timeout scale, a command could take several minutes


def cmdline(launcher: Launcher, more: str) -> str:
    with launcher.images.use("micro") as image:
        return f"{image.boot.cmdline} {more}"


@contextmanager
def broken(
    launcher: Launcher, *, seconds: float | None = None, **keys: object
) -> Iterator[pytest.ExceptionInfo[GuestError]]:
    """The error of a guest that does not get ready, of which nothing is left."""
    before = left_over(launcher)
    asked = validate(GuestKeys, {"image": "micro", **keys}, source="here")
    with (
        pytest.raises(GuestError) as failure,
        launcher.guest("bad", asked, source="here", witness=lambda *_: False, timeout=seconds),
    ):
        pass
    yield failure
    assert left_over(launcher) == before


def left_over(launcher: Launcher) -> tuple[list[str], list[str]]:
    """Folders and domains of this worker's guests, once those that are over have ended."""
    assert launcher.failures() == []
    domains = launcher.assembly.host.connection._connection.listAllDomains()
    folders = launcher.assembly.host.folder.guests.glob(f"*-{launcher.assembly.worker}-*")
    names = [domain.name() for domain in domains if f"-{launcher.assembly.worker}-" in domain.name()]
    return sorted(folder.name for folder in folders), sorted(names)


# While it boots


def test_a_kernel_that_panics_while_it_boots_is_noticed_at_once(launcher: Launcher) -> None:
    started = time.monotonic()
    with broken(launcher, cmdline=cmdline(launcher, "rdinit=/nonexistent")) as failure:
        assert "the kernel of bad panicked" in str(failure.value)
        assert "Kernel panic - not syncing: VFS: Unable to mount root fs" in str(failure.value)
        assert failure.value.phase == "boot"
    assert time.monotonic() - started < SOON


def test_a_guest_that_reboots_in_a_loop_is_noticed(launcher: Launcher) -> None:
    with broken(launcher, cmdline=cmdline(launcher, "rdinit=/bin/busybox -- reboot -f")) as failure:
        assert "bad reboots in a loop" in str(failure.value)
        assert "reboot: Restarting system" in str(failure.value)
        assert failure.value.phase == "boot"


def test_a_guest_without_a_shell_on_its_serial_line_is_told_so(launcher: Launcher) -> None:
    silent = cmdline(launcher, "rdinit=/bin/sleep -- 1000")
    with broken(launcher, cmdline=silent, login={"channel": "serial"}, seconds=1) as failure:
        assert "bad showed no shell on its serial line within" in str(failure.value)
        assert "does its kernel have console=ttyS0" in failure.value.hint
        assert failure.value.phase == "serial"


def test_a_guest_without_ssh_is_told_so(launcher: Launcher) -> None:
    cut_off = cmdline(launcher, "module_blacklist=virtio_net")
    with broken(launcher, cmdline=cut_off, seconds=3) as failure:
        assert "bad let nobody in over SSH within" in str(failure.value)
        assert "last try: " in failure.value.looked_at[0]
        assert "micro: ready" in str(failure.value)
        assert failure.value.phase == "ssh"


def test_another_host_key_than_the_pinned_one_is_refused(launcher: Launcher) -> None:
    pinned = generate_key_pair().public
    with broken(launcher, host_key=pinned) as failure:
        assert "bad proved another host key than the one expected" in str(failure.value)
        assert len(failure.value.looked_at) == 2


def test_a_user_whom_the_guest_does_not_know_is_refused(launcher: Launcher) -> None:
    with broken(launcher, login={"user": "stranger"}) as failure:
        assert "bad does not let 'stranger' log in" in str(failure.value)


def test_a_guest_that_never_gets_ready_in_its_own_time_says_what_it_waited_for(launcher: Launcher) -> None:
    with broken(launcher, ready="echo still starting; false", boot_timeout=2) as failure:
        told = re.search(r"bad did not get ready: within ([0-9.]+) s", str(failure.value))
        assert told
        assert float(told[1]) <= 2 * launcher.assembly.timeout_scale
        assert "still starting" in str(failure.value)
        assert failure.value.phase == "ready"


def test_a_guest_that_libvirt_refuses_was_not_created(launcher: Launcher, tmp_path: Path) -> None:
    with broken(launcher, cdrom=str(tmp_path / "missing.iso")) as failure:
        assert "bad cannot be created: libvirt cannot start the guest: " in str(failure.value)
        assert "missing.iso" in str(failure.value)
        assert failure.value.phase == "create"


# While a test runs


@pytest.mark.kvm(expect_kernel=["panic"])
def test_a_panic_ends_a_command_at_once_and_the_screen_can_be_looked_at(guest: Guest, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(GuestError, match=r"(?s)the kernel of guest panicked.*sysrq triggered crash"):
        guest.run("echo c >/proc/sysrq-trigger")
    assert time.monotonic() - started < SOON
    assert guest.machine.domain.state() == "crashed"
    assert guest.screenshot(tmp_path / "panic.png").stat().st_size > 100
    guest.reset()
    assert guest.succeed("uname") == "Linux\n"


@pytest.mark.kvm(login={"channel": "serial"}, expect_kernel=["panic"])
def test_a_panic_ends_a_command_over_the_serial_line_at_once(guest: Guest) -> None:
    started = time.monotonic()
    with pytest.raises(GuestError, match=r"(?s)the kernel of guest panicked.*sysrq triggered crash"):
        guest.run("echo c >/proc/sysrq-trigger")
    assert time.monotonic() - started < SOON


@pytest.mark.kvm(expect_kernel=["panic"])
def test_a_revert_brings_a_guest_back_whose_kernel_panicked(guest: Guest) -> None:
    guest.succeed("echo before >/run/file")
    guest.snapshot("before")
    for _ in range(2):
        with pytest.raises(GuestError, match="panicked"):
            guest.run("echo c >/proc/sysrq-trigger")
        guest.revert("before")
        assert guest.machine.domain.state() == "running"
        assert guest.succeed("cat /run/file") == "before\n"
        assert guest.serial.run("cat /run/file").stdout == "before\n"


def test_a_hung_qemu_and_its_death_are_told(guest: Guest) -> None:
    guest.run("true")
    with stopped(guest):
        with pytest.raises(WaitTimeout, match=r"'true' .*within"):
            guest.run("true", timeout=0.2)
        with pytest.raises(
            HostError, match=r"the monitor of .* does not answer 'info status': no answer within 1 s"
        ):
            guest.machine.domain.monitor("info status", seconds=1)
    os.kill(qemu(guest), signal.SIGKILL)
    with pytest.raises(GuestError, match=r"guest is off: .* its QEMU ended"):
        guest.run("sleep 100")


@contextmanager
def stopped(guest: Guest) -> Iterator[None]:
    os.kill(qemu(guest), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(qemu(guest), signal.SIGCONT)


def qemu(guest: Guest) -> int:
    """The process that runs a guest."""
    mark = f"guest={guest.machine.plan.name}".encode()
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and mark in (process / "cmdline").read_bytes():
                return int(process.name)
    raise AssertionError(f"no process runs {guest}")


# Images


def test_an_image_that_lies_is_refused_before_anything_starts(launcher: Launcher, tmp_path: Path) -> None:
    with launcher.images.use("micro") as image:
        assert image.boot.disk
        disk = image.boot.disk.path.read_bytes()
    cut, lying = tmp_path / "cut.qcow2", tmp_path / "lying.qcow2"
    cut.write_bytes(disk[:200])
    lying.write_bytes(bytes(1024))
    for path, reason in {cut: "is truncated", lying: "has no qcow2 header"}.items():
        images = Images(launcher.images._store, {"micro": path}, launcher.images._progress)
        with pytest.raises(ImageError, match=reason), images.use("micro"):
            pass


# The host's disk

FILLS_ITS_DISK = """
import pytest

@pytest.mark.kvm(image="micro")
def test_a_guest_whose_overlay_cannot_grow(guest):
    with pytest.raises(pytest_kvmlab.GuestError, match="QEMU stopped guest because") as failure:
        guest.run("dd if=/dev/urandom of=/data/big bs=1M count=50; sync; sleep 1000")
    assert "point KVMLAB_RUNS at a larger disk" in failure.value.hint
"""


def test_an_overlay_on_a_full_disk_stops_the_guest_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(f"import pytest_kvmlab{FILLS_ITS_DISK}")
    with tempfile.TemporaryDirectory(prefix="full-", dir="/var/tmp") as runs:
        inside = f"mount -t tmpfs -o size=12m,mode=0700 none {runs} && KVMLAB_RUNS={runs} exec "
        inside += f"{sys.executable} -m pytest --kvm-lab -p no:cacheprovider -x {tmp_path}/test_inner.py"
        ran = subprocess.run(
            ["unshare", "--mount", "sh", "-c", inside],
            cwd=tmp_path,
            timeout=250,
            check=False,
            capture_output=True,
            text=True,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
