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
    """What libvirt and QEMU do with a device of the host."""

    name = "kvl-web"

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.devices: dict[str, tuple[str | None, str | None]] = {}
        self._port = "1-1"
        self.refuses = self.hides = self.leaves_driver = False

    def attach(self, xml: str, name: str) -> None:
        if self.refuses:
            raise HostError(f"{name} cannot be plugged into {self.name}")
        device = ET.fromstring(xml)  # noqa: S314  our own
        alias, address = device.find("alias"), device.find("source/address")
        assert alias is not None
        assert address is not None
        bus, number = address.get("bus"), address.get("device")
        self.devices[alias.get("name", "")] = bus, number
        found = (each.port for each in self.host.usb.bus.devices() if str(each.number) == number)
        self._port = next(found, self._port)
        if not self.leaves_driver:
            self.host.bind(self._port, None)

    def detach(self, alias: str) -> None:
        self.devices.pop(alias, None)
        self.host.bind(self._port, "usbhid")

    def aliases(self) -> frozenset[str]:
        return frozenset(self.devices)

    def monitor(self, _command: str) -> str:
        return "" if self.hides else "".join(f"  Device 0.1, ID: {alias}\n" for alias in self.devices)


class Bench:
    """A guest's ports with one dongle of the host, and what is written down of it."""

    def __init__(self, host: FakeHost, folder: Path, keys: UsbKeys = KEYS) -> None:
        self.host = host
        self.folder = folder
        self.keys = keys
        self.device = host.plug("1-1", serial="A1", driver="usbhid")
        self.notes: list[str] = []
        self.domain = FakeDomain(host)
        self.ports = UsbPorts("web", folder, self._note)
        self.dongle = HostDongle(self.ports, keys, Supply(host.usb, {}, self._lease, "a test"))
        self.ports.dongles.append(self.dongle)
        self.ports.first.append(self.dongle)

    def _note(self, what: str, outcome: str) -> None:
        self.notes.append(f"{what} {outcome}".strip())

    def _lease(self, _source: str, _keys: UsbKeys) -> Lease:
        return self.host.lease(self.device, "web", self.keys)

    def has_leases_of(self, *ports: str) -> bool:
        """Whether these ports are the guest's soon, and no other port is."""
        return bool(until(lambda: self._leased() == set(ports) or None, Deadline(10)))

    def _leased(self) -> set[str]:
        return {port for port in ("1-1", "1-2", "1-3") if self.host.is_leased(port)}

    def on(self) -> None:
        self.ports.power_on(self.domain)  # type: ignore[arg-type] # the stand-in

    def off(self) -> None:
        """The guest's end; the kernel's driver takes the device back."""
        self.domain.detach("ua-usb0")
        self.ports.power_off()

    def noted(self, pattern: str) -> bool:
        """Whether something is written down soon."""
        return bool(until(lambda: any(re.search(pattern, each) for each in self.notes) or None, Deadline(10)))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Bench]:
    monkeypatch.setattr(usb, "_BACK_SECONDS", 0.2)
    monkeypatch.setattr(usb, "_LOOK_SECONDS", 0.02)
    bench = Bench(FakeHost(tmp_path), tmp_path, UsbKeys.model_validate(getattr(request, "param", ID)))
    yield bench
    bench.off()
    bench.ports.leave()


anywhere = pytest.mark.parametrize("bench", [ID, f"{ID}#A1"], indirect=True)


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


def test_a_device_that_is_being_reset_stays_in_the_guest_and_is_written_down(bench: Bench) -> None:
    bench.on()
    before = dict(bench.domain.devices)
    for number in (1, 2):
        with bench.host.reset("1-1"):
            until(lambda: None, Deadline(0.2))  # ten looks
            assert bench.domain.devices == before
        until(lambda: None, Deadline(0.1))
        assert bench.dongle.is_plugged
        assert bench.notes == ["0a5e:2110 is being reset, and stays in the guest"] * number


def test_a_device_that_a_reset_gave_to_the_hosts_driver_is_the_guests_again(bench: Bench) -> None:
    bench.on()
    bench.host.bind("1-1", "usbhid")
    assert bench.noted("0a5e:2110 was taken by the host's driver usbhid, and is in the guest again")
    now = bench.host.usb.bus.at("1-1")
    assert now
    assert (now.drivers, bench.dongle.is_plugged) == (frozenset(), True)


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


@anywhere
def test_a_device_that_is_put_into_another_port_is_given_back_and_is_this_guests_alone(bench: Bench) -> None:
    bench.on()
    bench.host.pull("1-1")
    assert bench.noted("0a5e:2110.* was pulled out of the host's port 1-1")
    again = bench.host.plug("1-2", serial="A1", driver="usbhid")
    assert bench.noted("was put into the host's port 1-2, and is in the guest again")
    assert bench.domain.devices == {"ua-usb0": ("1", str(again.number))}
    assert (bench.dongle.is_plugged, bench.dongle.port) == (True, "1-2")
    assert [file.name for file in bench.folder.glob("*.borrowed")] == ["1-2.borrowed"]
    assert bench.has_leases_of("1-2")
    bench.host.pull("1-2")
    bench.host.plug("1-1", serial="A1", driver="usbhid")
    assert bench.noted("was put into the host's port 1-1, and is in the guest again")
    assert bench.has_leases_of("1-1")


@pytest.mark.parametrize("bench", [f"{ID}@1-1", f"{ID}@1-1#A1"], indirect=True)
def test_a_device_that_was_asked_for_by_its_port_is_not_looked_for_elsewhere(bench: Bench) -> None:
    bench.on()
    bench.host.pull("1-1")
    assert bench.noted("was pulled out")
    bench.host.plug("1-2", serial="A1")
    until(lambda: None, Deadline(0.2))  # ten looks
    assert bench.domain.devices == {}
    assert bench.has_leases_of("1-1")


def test_an_equal_device_that_was_there_before_is_not_the_one_that_was_pulled_out(bench: Bench) -> None:
    bench.on()
    bench.host.plug("1-2", serial="A1")
    until(lambda: None, Deadline(0.2))
    bench.host.pull("1-1")
    assert bench.noted("was pulled out")
    bench.host.plug("1-3", serial="B2")
    until(lambda: None, Deadline(0.2))
    assert bench.domain.devices == {}
    assert bench.has_leases_of("1-1")


def test_a_device_that_somebody_else_took_in_its_new_port_stays_theirs(bench: Bench) -> None:
    bench.on()
    bench.host.pull("1-1")
    assert bench.noted("was pulled out")
    with bench.host.usb.looking() as first:
        assert first
        device = bench.host.plug("1-2", serial="A1")
        other = bench.host.lease(device, "another lab")
    assert bench.noted("0a5e:2110 in the host's port 1-2 is not given to the guest leased: another lab since")
    assert bench.domain.devices == {}
    other.release()
    assert bench.noted("is in the guest again")
    assert bench.has_leases_of("1-2")


def test_a_device_that_another_program_has_in_its_new_port_is_not_taken_from_it(bench: Bench) -> None:
    bench.on()
    bench.host.pull("1-1")
    assert bench.noted("was pulled out")
    with bench.host.usb.looking():
        device = bench.host.plug("1-2", serial="A1")
        reader = bench.host.usb.bus.node(device).open("rb")
    with reader:
        assert bench.noted(r"1-2 is not given to the guest held: \S+ \(process \d+\)")
        assert bench.domain.devices == {}
    assert bench.noted("is in the guest again")


def test_a_device_that_the_guest_did_not_have_just_then_is_found_in_its_new_port(bench: Bench) -> None:
    bench.on()
    bench.dongle.unplug()
    bench.host.pull("1-1")
    bench.host.plug("1-2", serial="A1")
    bench.dongle.plug()
    assert (bench.dongle.is_plugged, bench.dongle.port) == (True, "1-2")


def test_a_device_that_is_in_another_port_at_the_end_is_the_hosts_again(bench: Bench) -> None:
    bench.on()
    bench.host.pull("1-1")
    bench.host.plug("1-2", serial="A1", driver="usbhid")
    assert bench.noted("is in the guest again")
    bench.off()
    now = bench.host.usb.bus.at("1-2")
    assert now
    assert now.drivers == {"usbhid"}
    assert list(bench.folder.glob("*.borrowed")) == []


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
    supply = Supply(bench.host.usb, {KEYS: lease}, bench._lease, "a test")
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
    supply = Supply(bench.host.usb, {}, bench._lease, "a test")
    with pytest.raises(UsbError):
        bench.ports.add(HostDongle(bench.ports, KEYS, supply))
    assert (bench.domain.devices, bench.ports.dongles) == ({}, [])
    assert bench.host.usb.holder(bench.device) is None
