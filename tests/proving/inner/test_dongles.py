"""USB devices of this host given to guests: the kernel's own drivers let go of them, and get them back."""

import fcntl
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from pytest_kvmlab import Guest
from pytest_kvmlab.drivers.usb_devices import HostDevice
from pytest_kvmlab.errors import UsbError
from pytest_kvmlab.lab.dongles import HostUsb
from tests.proving.inner.outside import Outside, eventually

DONGLE, CONVERTER, STICK = "0a5e:2110", "0403:6001", "46f4:0001"
NUMBERED = f"{DONGLE}#A1"
SEEN = "cat /sys/bus/usb/devices/*/idVendor | grep"

RUN_SECONDS, HANDOVERS = 300.0, 20
USBDEVFS_RESET = 0x5514  # linux/usbdevice_fs.h: _IO('U', 20)
# To configure a device asks it for its descriptors; a driver of a controller resets what is plugged into it.
CONFIGURED_ANEW = (
    "cd $(dirname $(grep -l 0a5e /sys/bus/usb/devices/*/idVendor))"
    " && echo 0 >authorized && echo 1 >authorized && test $(cat bConfigurationValue) = 1"
)
RESET_IN_THE_GUEST = (
    "cd /sys/bus/pci/drivers/xhci_hcd && for each in 0000:*; do echo $each >unbind; echo $each >bind; done"
)

MakeGuest = Callable[..., Guest]
Find = Callable[..., HostDevice]

# A clone is quicker, and its kernel notices what is plugged in later.
pytestmark = pytest.mark.kvm(image="micro", cpu="kvm64", hotplug=True)


def state(device: HostDevice) -> tuple[str, str]:
    found = HostUsb().state(device)
    return found.name, found.why


def disk_of(device: HostDevice) -> Path:
    """The block device that this host makes of a stick, some time after its driver has it."""

    def blocks() -> list[Path]:
        return list(Path("/sys/bus/usb/devices", device.port).resolve().rglob("block/sd?"))

    assert eventually(lambda: len(blocks()) == 1)
    return Path("/dev", blocks()[0].name)


@pytest.mark.kvm(usb=[NUMBERED])
def test_a_dongle_is_had_by_its_serial_number(guest: Guest, find: Find) -> None:
    device = find(DONGLE, "A1")
    assert guest.succeed("cat /sys/bus/usb/devices/*/serial").split().count("A1") == 1
    assert guest.usb[NUMBERED].port == device.port
    assert [each.driver for each in device.interfaces] == ["usbfs"]
    name, who = state(device)
    assert name == "leased"
    assert "guest of " in who


def test_equal_dongles_are_had_by_their_ports_and_told_apart(make_guest: MakeGuest, find: Find) -> None:
    device = find(DONGLE)
    first = make_guest(usb=[f"{DONGLE}@{device.port}"])
    assert first.usb[f"{DONGLE}@{device.port}"].port == device.port
    second = make_guest(usb=[DONGLE])
    assert second.usb[DONGLE].port != device.port
    for guest in (first, second):
        assert guest.succeed(f"{SEEN} -c 0a5e") == "1\n"
    with pytest.raises(UsbError, match=rf"waited .* in vain .*{device.port} is held by guest of "):
        second.usb.attach(f"{DONGLE}@{device.port}")


@pytest.mark.kvm(usb=[CONVERTER])
def test_the_driver_of_the_host_has_a_converter_whenever_no_guest_has_it(guest: Guest, find: Find) -> None:
    converter = guest.usb[CONVERTER]
    guest.wait_for_file("/dev/ttyUSB0")
    assert find(CONVERTER, converter.serial).drivers == frozenset()
    converter.unplug()
    assert find(CONVERTER, converter.serial).drivers == {"ftdi_sio"}
    converter.plug()
    guest.wait_for_file("/dev/ttyUSB0")
    guest.crash()
    assert find(CONVERTER, converter.serial).drivers == {"ftdi_sio"}


def test_a_stick_is_a_disk_of_the_guest_and_then_of_the_host_again(guest: Guest, find: Find) -> None:
    stick = next(each for each in HostUsb().bus.devices() if each.id == STICK)
    assert disk_of(stick).read_bytes()[:5] == b"stick"
    guest.usb.attach(STICK)
    guest.wait_until_succeeds("head -c 5 /dev/sda | grep stick")
    guest.succeed("echo guest >/dev/sda && sync")
    guest.usb.detach(STICK)
    assert find(STICK, stick.serial).drivers == stick.drivers
    assert disk_of(stick).read_bytes()[:5] == b"guest"


@pytest.fixture
def mounted() -> Iterator[Path]:
    """Where this host has mounted the stick."""
    stick = next(each for each in HostUsb().bus.devices() if each.id == STICK)
    place = Path("/mnt")
    subprocess.run(["mke2fs", "-q", disk_of(stick)], check=True)
    subprocess.run(["mount", disk_of(stick), place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_stick_that_the_host_has_mounted_stays_there(guest: Guest, mounted: Path) -> None:
    with pytest.raises(UsbError, match=f"its disk is mounted on {mounted}"):
        guest.usb.attach(STICK)


@contextmanager
def another_run(folder: Path, usb: str, body: str, **settings: str) -> Iterator[tuple[Popen[bytes], Path]]:
    """A run with one test, whose guest asks for a dongle; and the file in which it tells what it does."""
    (folder / "test_another.py").write_text(ANOTHER.format(usb=usb, body=body))
    command = [sys.executable, "-m", "pytest", "--kvm-lab", "-p", "no:cacheprovider", "test_another.py"]
    output = folder / "output"  # no pipe: who survives pytest would hold it open
    with (
        output.open("w") as told,
        Popen(command, cwd=folder, stdout=told, stderr=told, env=os.environ | settings) as run,
    ):
        try:
            yield run, output
        finally:
            run.kill()


ANOTHER = """
import os, signal, pytest

@pytest.mark.kvm(image="micro", cpu="kvm64", hotplug=True, usb=["{usb}"])
def test_another(guest):
    {body}
"""


def test_the_driver_of_the_host_has_a_converter_back_even_if_the_run_is_killed(
    tmp_path: Path, find: Find
) -> None:
    (device,) = [each for each in HostUsb().bus.devices() if each.id == CONVERTER]
    with another_run(tmp_path, CONVERTER, "os.kill(os.getpid(), signal.SIGKILL)") as (run, output):
        assert run.wait(RUN_SECONDS) == -signal.SIGKILL, output.read_text()
    assert eventually(lambda: find(CONVERTER, device.serial).drivers == {"ftdi_sio"})
    assert state(device) == ("free", "")


def test_a_second_run_waits_for_a_dongle_and_has_it_as_soon_as_it_is_free(
    guest: Guest, tmp_path: Path, find: Find, request: pytest.FixtureRequest
) -> None:
    guest.usb.attach(NUMBERED)
    body = f'assert guest.succeed("{SEEN} -c 0a5e") == "1\\n"'
    with another_run(tmp_path, NUMBERED, body, KVMLAB_WAIT="300") as (run, output):
        assert eventually(lambda: "waiting for dongle" in output.read_text()), output.read_text()
        assert f"{find(DONGLE, 'A1').port} is held by guest of {request.node.nodeid}" in output.read_text()
        assert run.poll() is None
        guest.usb.detach(NUMBERED)
        guest.crash()  # two that are busy at one time are too much for this host
        assert run.wait(RUN_SECONDS) == 0, output.read_text()
    assert state(find(DONGLE, "A1")) == ("free", "")


VIRSH = ["virsh", "--quiet", "--connect=qemu:///system"]
PRODUCTION = """
<domain type='kvm'>
  <name>production</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <controller type='usb' model='qemu-xhci'/>
    <hostdev mode='subsystem' type='usb' managed='yes'>
      <source><address bus='{bus}' device='{number}'/></source>
    </hostdev>
  </devices>
</domain>
"""


@pytest.fixture
def production(tmp_path: Path, find: Find) -> Iterator[HostDevice]:
    """A dongle that a guest of the machine's own libvirt has, which nobody here started."""
    device, file = find(DONGLE, "A1"), tmp_path / "production.xml"
    file.write_text(PRODUCTION.format(bus=device.bus, number=device.number))
    subprocess.run([*VIRSH, "create", file], check=True)
    yield device
    subprocess.run([*VIRSH, "destroy", "production"], check=True)


def test_the_dongle_of_somebody_elses_guest_stays_there(guest: Guest, production: HostDevice) -> None:
    name, who = state(production)
    assert name == "held"
    assert who.startswith("qemu-system-x86 (process ")
    with pytest.raises(UsbError, match=f"{NUMBERED}.*held by qemu-system-x86"):
        guest.usb.attach(NUMBERED)
    running = subprocess.run([*VIRSH, "domstate", "production"], check=True, capture_output=True, text=True)
    assert running.stdout.strip() == "running"


@pytest.mark.kvm(usb=[NUMBERED])
def test_a_dongle_that_is_pulled_out_and_put_back_is_the_guests_again(
    guest: Guest, outside: Outside, find: Find
) -> None:
    dongle, number = guest.usb[NUMBERED], find(DONGLE, "A1").number
    outside.pull("numbered")
    guest.wait_until_succeeds(f"! {SEEN} 0a5e")
    assert not dongle.is_plugged
    outside.put_back("numbered")
    guest.wait_until_succeeds(f"{SEEN} 0a5e")
    assert dongle.is_plugged
    assert find(DONGLE, "A1").number != number
    told = [event.name for event in guest.machine.journal.of(guest.machine.name, "usb")]
    assert told == [
        f"{NUMBERED} was pulled out of the host's port {dongle.port}",
        f"{NUMBERED} started over on the host, and is in the guest again",
    ]


def test_no_handover_of_many_loses_a_dongle(
    guest: Guest, find: Find, record_testsuite_property: Callable[[str, object], None]
) -> None:
    given, back = [], []
    for _ in range(HANDOVERS):
        given.append(seconds(lambda: guest.usb.attach(NUMBERED)))
        assert state(find(DONGLE, "A1"))[0] == "leased"
        back.append(seconds(lambda: guest.usb.detach(NUMBERED)))
        assert state(find(DONGLE, "A1")) == ("free", "")
    record_testsuite_property("seconds from the host to the guest", statistics.median(given))
    record_testsuite_property("seconds from the guest to the host", statistics.median(back))


def seconds(act: Callable[[], object]) -> float:
    started = time.monotonic()
    act()
    return time.monotonic() - started


@pytest.mark.kvm(usb=[NUMBERED])
def test_a_dongle_that_is_reset_stays_in_the_guest(guest: Guest, find: Find) -> None:
    device = find(DONGLE, "A1")
    with Path(f"/dev/bus/usb/{device.bus:03}/{device.number:03}").open("wb") as node:
        fcntl.ioctl(node, USBDEVFS_RESET)
    guest.succeed(CONFIGURED_ANEW)
    guest.succeed(RESET_IN_THE_GUEST)
    guest.wait_until_succeeds(f"{SEEN} 0a5e")
    guest.succeed(CONFIGURED_ANEW)
    assert guest.usb[NUMBERED].is_plugged
    assert state(find(DONGLE, "A1"))[0] == "leased"


@pytest.mark.kvm(usb=[NUMBERED])
def test_a_dongle_that_is_pulled_out_as_the_guest_ends_is_no_failure(guest: Guest, outside: Outside) -> None:
    outside.pull("numbered")
    guest.crash()
    outside.put_back("numbered")
    assert guest.usb[NUMBERED].port
