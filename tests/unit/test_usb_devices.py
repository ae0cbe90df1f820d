"""The USB devices of a machine: which there are, and which it cannot do without."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_kvmlab.keeper.borrowed import call_back
from tests.unit.fake_usb import ID, FakeHost


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@contextmanager
def program_with(file: Path) -> Iterator[int]:
    """A program that has a file open; gives its process."""
    code = f"import sys; f = open({str(file)!r}); print('open', flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        assert process.stdout.readline() == b"open\n"
        yield process.pid


def test_devices_are_listed_in_the_order_of_their_ports(host: FakeHost) -> None:
    for port in ("2-1", "1-10", "1-2.4.1", "1-2.10", "1-2.4"):
        host.plug(port)
    assert [device.port for device in host.usb.bus.devices()] == ["1-2.4", "1-2.4.1", "1-2.10", "1-10", "2-1"]


def test_a_device_is_known_by_what_it_says(host: FakeHost) -> None:
    device = host.plug("1-1.4", "0A5E:2110", serial="A\x1b[2J1", driver="usbhid")
    assert (device.id, device.serial, device.label) == (ID, "A?[2J1", "Dongle")
    assert (device.bus, device.drivers) == (1, frozenset({"usbhid"}))
    assert host.usb.bus.node(device) == host.root / "dev/bus/usb/001/002"
    assert host.usb.bus.needed(device) == ""
    assert host.usb.bus.holder(device) == ""


@pytest.mark.parametrize("port", ["../../x", "1-1/../..", "", "1-1:1.0"])
def test_what_is_no_port_is_no_device(host: FakeHost, port: str) -> None:
    host.plug("1-1")
    assert host.usb.bus.at(port) is None


def test_a_device_that_says_too_little_is_none(host: FakeHost) -> None:
    host.plug("1-1")
    (host.usb.bus.sysfs / "1-1/devnum").write_text("")
    assert host.usb.bus.devices() == []


def test_a_hub_is_never_given_away(host: FakeHost) -> None:
    assert "it is a hub" in host.usb.bus.needed(host.plug("1-1", kind="09"))


@pytest.mark.parametrize(("protocol", "name"), [("01", "keyboard"), ("02", "mouse")])
def test_a_keyboard_and_a_mouse_are_needed_while_the_kernel_has_them(
    host: FakeHost, protocol: str, name: str
) -> None:
    device = host.plug("1-1", interface=("03", "01", protocol), driver="usbhid")
    assert host.usb.bus.needed(device) == f"it is a {name} of this machine"
    host.bind("1-1", None)
    free = host.usb.bus.at("1-1")
    assert free
    assert host.usb.bus.needed(free) == ""


def test_a_network_card_is_needed_while_it_is_up(host: FakeHost) -> None:
    device = host.plug("1-1")
    host.add("1-1", "net/eth1", flags="0x1003")
    assert host.usb.bus.needed(device) == "it is the network card eth1, which is up"
    host.add("1-1", "net/eth1", flags="0x1002")
    assert host.usb.bus.needed(device) == ""


def mounted_disk() -> tuple[str, str]:
    """The number of a file system that is mounted, and where."""
    words = Path("/proc/self/mountinfo").read_text().splitlines()[0].split()
    return words[2], words[4]


def test_a_disk_is_needed_while_it_is_mounted(host: FakeHost) -> None:
    device = host.plug("1-1", driver="usb-storage")
    (major, minor), place = mounted_disk()[0].split(":"), mounted_disk()[1]
    host.add("1-1", "host0/block/sdb", uevent="MAJOR=8\nMINOR=250\nDEVNAME=sdb\nDEVTYPE=disk")
    assert host.usb.bus.needed(device) == ""
    partition = f"MAJOR={major}\nMINOR={minor}\nDEVNAME=sdb1\nDEVTYPE=partition"
    host.add("1-1", "host0/block/sdb/sdb1", uevent=partition)
    assert host.usb.bus.needed(device) == f"its disk is mounted on {place}"


def test_a_disk_is_needed_while_another_device_stands_on_it(host: FakeHost) -> None:
    device = host.plug("1-1", driver="usb-storage")
    host.add("1-1", "host0/block/sdb/sdb1", uevent="MAJOR=8\nMINOR=250\nDEVNAME=sdb1\nDEVTYPE=partition")
    host.add("1-1", "host0/block/sdb/sdb1/holders", **{"dm-0": ""})
    assert host.usb.bus.needed(device) == "sdb1 is a part of dm-0 (LVM, RAID or encryption)"


def test_a_disk_is_needed_while_this_machine_swaps_to_it(host: FakeHost, tmp_path: Path) -> None:
    device = host.plug("1-1", driver="usb-storage")
    host.add("1-1", "host0/block/sdb", uevent="MAJOR=8\nMINOR=250\nDEVNAME=sdb\nDEVTYPE=disk")
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "swaps").write_text("Filename Type Size Used Priority\n/dev/sdb partition 1 0 -2\n")
    bus = type(host.usb.bus)(host.usb.bus.sysfs, host.usb.bus.dev, proc)
    assert bus.needed(device) == "this machine swaps to /dev/sdb"


def test_a_program_that_has_the_device_open_is_named(host: FakeHost) -> None:
    device = host.plug("1-1")
    with program_with(host.usb.bus.node(device)) as process:
        assert host.usb.bus.holder(device).endswith(f" (process {process})")
    assert host.usb.bus.holder(device) == ""


def test_a_program_that_has_the_serial_port_of_the_device_open_is_named(host: FakeHost) -> None:
    device = host.plug("1-1", driver="ftdi_sio")
    host.add("1-1", "ttyUSB0/tty/ttyUSB0", uevent="MAJOR=188\nMINOR=0\nDEVNAME=ttyUSB0")
    (host.usb.bus.dev / "ttyUSB0").touch()
    with program_with(host.usb.bus.dev / "ttyUSB0") as process:
        assert f"(process {process})" in host.usb.bus.holder(device)


def test_a_device_that_a_program_talks_to_is_held_even_if_nobody_sees_which(host: FakeHost) -> None:
    assert host.usb.bus.holder(host.plug("1-1", driver="usbfs")) == "a program of another user"


def test_the_same_device_in_the_same_port_is_known_again(host: FakeHost) -> None:
    before = host.plug("1-1", serial="A1")
    again = host.plug("1-1", serial="A1")
    assert before.is_same(again)
    assert before.number != again.number
    assert not before.is_same(host.plug("1-1", serial="A2"))
    assert not before.is_same(None)


@pytest.mark.parametrize("port", ["1-1", "1-2", "../1-1", "", "usb1"])
def test_calling_drivers_back_to_what_is_gone_or_no_device_does_nothing(host: FakeHost, port: str) -> None:
    device = host.plug("1-1")
    call_back(port, host.usb.bus.sysfs, host.usb.bus.dev)
    host.usb.bus.node(device).unlink()
    call_back(port, host.usb.bus.sysfs, host.usb.bus.dev)


def test_a_machine_without_usb_has_no_devices(tmp_path: Path) -> None:
    bus = FakeHost(tmp_path).usb.bus
    bus.sysfs.rmdir()
    assert (bus.is_there, bus.devices()) == (False, [])
