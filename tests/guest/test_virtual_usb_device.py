"""Virtual USB devices under the drivers of a real kernel, which asks more of them than we would think of."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_kvmlab.drivers.usb_models import LicenceDongle
from pytest_kvmlab.lab.build import ensure
from pytest_kvmlab.lab.launch import Launcher
from tests.guest.micro_by_hand import SECONDS, ByHand, booted
from tests.guest.usb_devices import Buttons, Converter, Modem

PORTS = ("first", "second")
DEVICES = "/sys/bus/usb/devices"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where QEMU listens; pytest's own folder is too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="kvl-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def guest(launcher: Launcher, folder: Path) -> Iterator[ByHand]:
    """A guest with two ports for devices that are not of its machine."""
    image = ensure("micro", launcher.images._store, progress=lambda _step, _share: None)
    ports = []
    for name in PORTS:
        ports += ["-chardev", f"socket,path={folder / name},server=on,wait=off,id={name}"]
        ports += ["-device", f"usb-redir,chardev={name}"]
    with booted(image, folder, "-device", "qemu-xhci", *ports) as guest:
        guest.ask("until test -e /run/settled; do sleep 0.1; done")
        yield guest


def wait_for(guest: ByHand, path: str) -> None:
    look = f"for i in $(seq {SECONDS * 5}); do test -e {path} && echo there && break; sleep 0.1; done"
    assert guest.ask(look) == "there"


def test_the_guest_reads_what_a_device_says_of_itself(guest: ByHand, folder: Path) -> None:
    dongle = LicenceDongle("0a5e:2110", serial="Nº 7")
    with dongle.serve(folder / "first"):
        dongle.wait_until_configured(timeout=SECONDS)
        facts = "idVendor idProduct bcdDevice serial manufacturer product speed bNumInterfaces"
        said = guest.ask(f"cd {DEVICES}/$(grep -l 0a5e {DEVICES}/*/idVendor | cut -d/ -f6) && cat {facts}")
    assert said.split("\n") == [
        *("0a5e", "2110", "0100", "Nº 7", "pytest-kvmlab", "Licence dongle", "12", " 1"),
    ]
    assert dongle.errors == ()


def test_a_device_that_is_pulled_out_is_gone_and_back_when_it_is_put_back(
    guest: ByHand, folder: Path
) -> None:
    dongle = LicenceDongle("0a5e:2110")
    with dongle.serve(folder / "first"):
        for _ in range(3):
            dongle.wait_until_configured(timeout=SECONDS)
            dongle.unplug()
            guest.ask(f"while grep -q 0a5e {DEVICES}/*/idVendor; do sleep 0.1; done")
            dongle.plug()
        dongle.wait_until_configured(timeout=SECONDS)
        assert guest.ask(f"cat {DEVICES}/*/idVendor").split().count("0a5e") == 1


def test_two_equal_devices_are_two(guest: ByHand, folder: Path) -> None:
    one, other = LicenceDongle("0a5e:2110", serial="A"), LicenceDongle("0a5e:2110", serial="B")
    with one.serve(folder / "first"), other.serve(folder / "second"):
        one.wait_until_configured(timeout=SECONDS)
        other.wait_until_configured(timeout=SECONDS)
        assert {"A", "B"} <= set(guest.ask(f"cat {DEVICES}/*/serial").split())


def test_a_serial_port_carries_bulk_data_both_ways(guest: ByHand, folder: Path) -> None:
    modem = Modem("0a5e:0001")
    with modem.serve(folder / "first"):
        wait_for(guest, "/dev/ttyACM0")
        guest.ask("stty -F /dev/ttyACM0 raw -echo 57600")
        talk = "{ seq 1000; echo ping; } >&3 & head -n 1001 <&3 | md5sum"
        said = guest.ask(f"exec 3<>/dev/ttyACM0; {talk}; exec 3>&-")
        assert said.split() == guest.ask("{ seq 1000; echo PING; } | md5sum").split()
        assert int.from_bytes(modem.line_coding[:4], "little") == 57600
    assert modem.errors == ()


def test_reports_come_and_go_on_interrupt_endpoints(guest: ByHand, folder: Path) -> None:
    buttons = Buttons("0a5e:0002")
    with buttons.serve(folder / "first"):
        wait_for(guest, "/dev/hidraw0")
        # the driver throws away what comes within 50 ms of being opened (usbhid_open)
        guest.ask("exec 3<>/dev/hidraw0; sleep 0.5")
        buttons.send(0x81, b"pressed!")
        assert guest.ask("head -c 8 <&3; exec 3>&-") == "pressed!"
        guest.ask(r"printf '\000lit up !' >/dev/hidraw0")
        assert buttons.lights.get(timeout=SECONDS) == b"lit up !"
    assert buttons.errors == ()


def test_a_driver_gets_answers_to_requests_of_the_vendor(guest: ByHand, folder: Path) -> None:
    converter = Converter("0403:6001")
    latency = "/sys/bus/usb-serial/devices/ttyUSB0/latency_timer"
    with converter.serve(folder / "first"):
        wait_for(guest, latency)
        assert guest.ask(f"cat {latency}") == "42"
        guest.ask(f"echo 7 >{latency}")
        assert converter.latency == 7
    assert converter.errors == ()
