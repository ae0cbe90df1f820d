"""A dongle of the host on its way into a guest and back.

libvirt is a stand-in here, because the machine of a test run need not have a dongle that could be passed on.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import HostError, TeardownError, UsbError
from pytest_kvmlab.lab import usb
from pytest_kvmlab.lab.dongles import Lease, Supply
from pytest_kvmlab.lab.usb import HostDongle, UsbPorts
from pytest_kvmlab.lab.usb_seen import prove_plugged
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.spec.usb import UsbKeys
from tests.unit.fake_usb import ID, FakeHost

KEYS = UsbKeys.model_validate(ID)


class FakeDomain:
    """What libvirt and QEMU do with a device that is plugged into port 1-1 of the host."""

    name = "kvl-web"

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.devices: dict[str, tuple[str | None, str | None]] = {}
        self.refuses = self.hides = self.leaves_driver = False

    def attach(self, xml: str, name: str) -> None:
        if self.refuses:
            raise HostError(f"{name} cannot be plugged into {self.name}")
        device = ET.fromstring(xml)  # noqa: S314  our own
        alias, address = device.find("alias"), device.find("source/address")
        assert alias is not None
        assert address is not None
        self.devices[alias.get("name", "")] = address.get("bus"), address.get("device")
        if not self.leaves_driver:
            self.host.bind("1-1", None)

    def detach(self, alias: str) -> None:
        self.devices.pop(alias, None)
        self.host.bind("1-1", "usbhid")

    def aliases(self) -> frozenset[str]:
        return frozenset(self.devices)

    def monitor(self, _command: str) -> str:
        return "" if self.hides else "".join(f"  Device 0.1, ID: {alias}\n" for alias in self.devices)


class Bench:
    """A guest's ports with one dongle of the host, and what is written down of it."""

    def __init__(self, host: FakeHost, folder: Path) -> None:
        self.host = host
        self.device = host.plug("1-1", serial="A1", driver="usbhid")
        self.notes: list[str] = []
        self.domain = FakeDomain(host)
        self.ports = UsbPorts("web", folder, self._note)
        self.dongle = HostDongle(self.ports, KEYS, Supply(host.usb.bus, {}, self._lease, "a test"))
        self.ports.dongles.append(self.dongle)
        self.ports.first.append(self.dongle)

    def _note(self, what: str, outcome: str) -> None:
        self.notes.append(f"{what} {outcome}".strip())

    def _lease(self, _source: str, _keys: UsbKeys) -> Lease:
        return self.host.lease(self.device, "web")

    def on(self) -> None:
        self.ports.power_on(self.domain)  # type: ignore[arg-type] # the stand-in

    def off(self) -> None:
        """The guest's end; the kernel's driver takes the device back."""
        self.domain.devices.clear()
        self.host.bind("1-1", "usbhid")
        self.ports.power_off()

    def noted(self, pattern: str) -> bool:
        """Whether something is written down soon."""
        return bool(until(lambda: any(re.search(pattern, each) for each in self.notes) or None, Deadline(10)))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(usb, "_BACK_SECONDS", 0.2)
    monkeypatch.setattr(usb, "_LOOK_SECONDS", 0.02)
    bench = Bench(FakeHost(tmp_path), tmp_path)
    yield bench
    bench.off()


def test_a_guest_gets_the_device_by_the_number_that_it_has_now(bench: Bench) -> None:
    now = bench.host.plug("1-1", serial="A1")
    bench.on()
    assert bench.domain.devices == {"ua-usb0": ("1", str(now.number))}
    assert (bench.dongle.is_plugged, bench.dongle.port, bench.dongle.serial) == (True, "1-1", "A1")


def test_a_device_that_started_over_is_given_to_the_guest_again_and_written_down(bench: Bench) -> None:
    bench.on()
    again = bench.host.plug("1-1", serial="A1")
    assert bench.noted("0a5e:2110 started over on the host, and is in the guest again")
    assert bench.domain.devices == {"ua-usb0": ("1", str(again.number))}
    assert bench.dongle.is_plugged


def test_a_device_that_is_being_reset_stays_in_the_guest(bench: Bench) -> None:
    bench.on()
    before = dict(bench.domain.devices)
    with bench.host.reset("1-1"):
        until(lambda: None, Deadline(0.2))  # ten looks
        assert bench.domain.devices == before
    assert bench.dongle.is_plugged
    assert bench.notes == []


def test_a_device_that_is_being_reset_is_given_when_it_has_a_number_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usb, "_BACK_SECONDS", 10.0)
    with ThreadPoolExecutor() as threads:
        with bench.host.reset("1-1"):
            on = threads.submit(bench.on)
            until(lambda: None, Deadline(0.2))
            assert bench.domain.devices == {}
        on.result()
    assert bench.domain.devices == {"ua-usb0": ("1", str(bench.device.number))}


def test_a_device_that_is_being_reset_at_the_end_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usb, "_BACK_SECONDS", 10.0)
    bench.on()
    with ThreadPoolExecutor() as threads:
        with bench.host.reset("1-1"):
            off = threads.submit(bench.off)
            until(lambda: None, Deadline(0.2))
            assert not off.done()
        off.result()


def test_a_device_that_is_pulled_out_is_missed_and_given_back_when_it_is_put_back(bench: Bench) -> None:
    bench.on()
    bench.host.pull("1-1")
    assert bench.noted("0a5e:2110 was pulled out of the host's port 1-1")
    assert not bench.dongle.is_plugged
    assert until(lambda: not bench.domain.devices or None, Deadline(10)), "the guest sees it still"
    bench.host.plug("1-1", serial="A1")
    assert bench.noted("is in the guest again")
    assert len(bench.notes) == 2


def test_another_device_in_its_port_is_not_given_to_the_guest(bench: Bench) -> None:
    bench.on()
    bench.host.plug("1-1", serial="B2")
    assert bench.noted("0a5e:2110 is in the host's port 1-1 in place of 0a5e:2110")
    assert until(lambda: not bench.domain.devices or None, Deadline(10)), "the guest sees the first one still"


def test_a_device_that_qemu_does_not_take_again_is_written_down_and_tried_again(bench: Bench) -> None:
    bench.on()
    bench.domain.refuses = True
    bench.host.plug("1-1", serial="A1")
    assert bench.noted("0a5e:2110 is back, but not in the guest 0a5e:2110 cannot be plugged into kvl-web")
    bench.domain.refuses = False
    assert bench.noted("is in the guest again")
    assert len(bench.notes) == 2


def test_a_device_that_was_pulled_out_before_the_start_is_told(bench: Bench) -> None:
    bench.host.pull("1-1")
    with pytest.raises(UsbError, match="0a5e:2110 is not in the host's port 1-1 any more"):
        bench.on()


def test_a_device_that_is_pulled_out_while_the_guest_starts_is_told(bench: Bench) -> None:
    bench.on()
    machine = SimpleNamespace(usb=bench.ports, phase=lambda _name: nullcontext())
    spec = SimpleNamespace(login=SimpleNamespace(channel="none"))
    guest: Any = SimpleNamespace(name="web", machine=machine, spec=spec)
    prove_plugged(guest, Deadline(0))
    bench.host.pull("1-1")
    with pytest.raises(UsbError, match="web has lost 0a5e:2110, which was plugged in when it started"):
        prove_plugged(guest, Deadline(0))


def test_what_qemu_does_not_show_is_not_there(bench: Bench) -> None:
    bench.domain.hides = True
    with pytest.raises(UsbError, match="QEMU took 0a5e:2110, but does not show it to web"):
        bench.on()


def test_what_the_hosts_driver_still_has_is_not_the_guests(bench: Bench) -> None:
    bench.domain.leaves_driver = True
    with pytest.raises(UsbError, match="the host keeps 0a5e:2110: its driver usbhid still has it"):
        bench.on()


def test_a_device_that_the_host_does_not_get_back_is_an_error_at_the_end(bench: Bench) -> None:
    bench.on()
    with pytest.raises(TeardownError, match="the host does not have 0a5e:2110 back"):
        bench.ports.power_off()


def test_a_device_that_is_pulled_out_during_the_end_is_no_error(bench: Bench) -> None:
    bench.on()
    bench.host.pull("1-1")
    bench.ports.power_off()


def test_a_device_that_was_taken_from_the_guest_stays_out_until_it_is_plugged_in(bench: Bench) -> None:
    bench.on()
    bench.dongle.unplug()
    assert (bench.domain.devices, bench.dongle.is_plugged) == ({}, False)
    bench.dongle.plug()
    assert bench.dongle.is_plugged


def test_a_dongle_that_was_given_away_is_leased_again_by_a_reset(bench: Bench) -> None:
    bench.on()
    bench.ports.remove(bench.dongle)
    assert bench.host.usb.holder(bench.device) is None
    bench.off()
    bench.ports.renew()
    assert bench.host.usb.holder(bench.device)
    bench.on()
    assert bench.dongle.is_plugged


def test_a_dongle_that_was_taken_out_for_good_is_leased_when_it_is_attached_again(bench: Bench) -> None:
    lease = bench.dongle.lease
    supply = Supply(bench.host.usb.bus, {KEYS: lease}, bench._lease, "a test")
    assert supply.first(KEYS) is lease
    bench.dongle.leave()
    again = supply.first(KEYS)
    assert again.is_held
    assert bench.host.usb.holder(bench.device)
    again.release()


def test_a_device_that_another_program_uses_by_now_is_not_taken_from_it(bench: Bench) -> None:
    bench.on()
    bench.dongle.unplug()
    with bench.host.usb.bus.node(bench.device).open("rb"):
        with pytest.raises(UsbError, match=r"0a5e:2110 is held by \S+ \(process \d+\)"):
            bench.dongle.plug()
        assert bench.domain.devices == {}
    bench.dongle.plug()
    assert bench.dongle.is_plugged


def test_a_device_that_the_host_uses_by_now_is_not_taken_from_it(bench: Bench) -> None:
    bench.on()
    bench.dongle.unplug()
    bench.host.add("1-1", "net/enx0", flags="0x1003")
    with pytest.raises(UsbError, match="0a5e:2110 is not given to web: "):
        bench.dongle.plug()
    assert bench.domain.devices == {}


@pytest.mark.parametrize("fault", ["hides", "leaves_driver"])
def test_a_device_that_is_attached_in_vain_is_the_hosts_again(bench: Bench, fault: str) -> None:
    bench.on()
    bench.ports.remove(bench.dongle)
    setattr(bench.domain, fault, True)
    supply = Supply(bench.host.usb.bus, {}, bench._lease, "a test")
    with pytest.raises(UsbError):
        bench.ports.add(HostDongle(bench.ports, KEYS, supply))
    assert (bench.domain.devices, bench.ports.dongles) == ({}, [])
    assert bench.host.usb.holder(bench.device) is None
