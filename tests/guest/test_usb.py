"""USB devices in guests: virtual ones, which need nothing of this machine, and what is said of others."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_kvmlab import Guest, VirtualUsbDevice
from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import ConfigError, GuestError, HostError, UsbError
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.spec.guest import GuestKeys
from tests.guest.own_launcher import own_launcher, started
from tests.unit.fake_usb import FakeHost

ID = "0a5e:2110"
LICENCE = {"virtual": "licence", "id": ID}
_DEVICES = (
    'for d in /sys/bus/usb/devices/*; do if [ -e $d/idVendor ]; then echo "$(cat $d/idVendor):'
    '$(cat $d/idProduct)#$(cat $d/serial 2>/dev/null)"; fi; done'
)

pytestmark = pytest.mark.kvm(image="micro")


def sees(guest: Guest) -> list[str]:
    """The devices that the guest's kernel has, apart from its root hubs."""
    return sorted(each for each in guest.succeed(_DEVICES).split() if not each.startswith("1d6b:"))


def wait_for(guest: Guest, *devices: str) -> None:
    wanted = "".join(f"{device}\n" for device in sorted(devices))
    guest.wait_until_succeeds(f'[ "$({_DEVICES} | grep -v ^1d6b | sort)" = "{wanted.rstrip()}" ]')


@pytest.mark.parametrize("hotplug", [False, True])
def test_only_a_guest_that_notices_its_dongle_later_is_cloned(launcher: Launcher, hotplug: bool) -> None:
    """The one that boots proves that it had it while it booted; of a clone, the proof is asked again."""
    seen = f"grep -q {ID[:4]} /sys/bus/usb/devices/*/idVendor"
    ready = f"{seen} || ! test -e /tmp/up && touch /tmp/up" if hotplug else seen
    with own_launcher(launcher, "auto") as own:
        for _ in range(2):
            with started(own, usb=[LICENCE], hotplug=hotplug, ready=ready) as guest:
                assert bool(guest.machine.frozen) == hotplug
                assert guest.run(seen).ok
                assert guest.run("test -e /tmp/up").ok == hotplug


@pytest.mark.kvm(usb=[LICENCE])
def test_a_virtual_dongle_is_there_when_the_test_begins(guest: Guest) -> None:
    dongle = guest.usb["licence"]
    assert (dongle.id, dongle.serial, dongle.is_plugged) == (ID, None, True)
    assert sees(guest) == [f"{ID}#"]


@pytest.mark.kvm(usb=[LICENCE])
def test_a_dongle_is_pulled_out_and_put_back_and_reset_puts_it_back_too(guest: Guest) -> None:
    dongle = guest.usb["licence"]
    dongle.unplug()
    dongle.unplug()
    wait_for(guest)
    dongle.plug()
    wait_for(guest, f"{ID}#")
    dongle.unplug()
    guest.crash()
    guest.start()
    assert sees(guest) == []
    guest.reset()
    assert sees(guest) == [f"{ID}#"]


@pytest.mark.kvm(
    usb=[
        {**LICENCE, "serial": "A1", "name": "first"},
        {**LICENCE, "serial": "A2", "name": "second"},
        {**LICENCE, "serial": "A3", "plugged": False},
    ]
)
def test_equal_dongles_are_told_apart_by_name_and_serial_number(guest: Guest) -> None:
    assert sees(guest) == [f"{ID}#A1", f"{ID}#A2"]
    guest.usb["second"].unplug()
    guest.usb["licence"].plug()
    wait_for(guest, f"{ID}#A1", f"{ID}#A3")


def test_devices_are_attached_and_detached_while_the_guest_runs(guest: Guest) -> None:
    own = VirtualUsbDevice("1209:0001", serial="X")
    attached = guest.usb.attach(own)
    guest.usb.attach(LICENCE)
    assert sees(guest) == [f"{ID}#", "1209:0001#X"]
    assert list(guest.usb) == ["1209:0001#X", "licence"]
    with pytest.raises(ConfigError, match="has a USB device called 'licence' already"):
        guest.usb.attach(LICENCE)
    guest.usb.detach("licence")
    assert sees(guest) == ["1209:0001#X"]
    guest.usb.detach(own)
    assert (sees(guest), guest.usb.devices, own.is_plugged) == ([], (), False)
    with pytest.raises(ConfigError, match="does not have <dongle '1209:0001#X'"):
        guest.usb.detach(attached)
    guest.usb.attach(own)
    guest.reset()
    assert (sees(guest), guest.usb.devices, own.is_plugged) == ([], (), False)


def test_a_device_that_the_guests_kernel_does_not_see_is_told(guest: Guest) -> None:
    guest.succeed("for hub in /sys/bus/usb/devices/*-0:1.0; do echo ${hub##*/} >$hub/driver/unbind; done")
    with pytest.raises(UsbError, match=f"{guest.name} does not see licence") as caught:
        guest.usb.attach(LICENCE, timeout=3)
    assert "1d6b:" in str(caught.value)
    assert guest.usb["licence"].is_plugged


def test_a_device_that_was_just_plugged_in_is_plugged_in(guest: Guest) -> None:
    dongle = guest.usb.attach(LICENCE)
    for _ in range(5):
        dongle.unplug()
        assert not dongle.is_plugged
        dongle.plug()
        assert dongle.is_plugged


def test_a_guest_that_is_off_takes_no_device(guest: Guest) -> None:
    guest.crash()
    with pytest.raises(GuestError, match="is switched off"):
        guest.usb.attach(LICENCE)


@pytest.mark.kvm(usb=[LICENCE], login={"channel": "none"}, ready="console:micro: ready")
def test_a_guest_without_a_shell_is_taken_at_the_word_of_qemu(guest: Guest) -> None:
    assert guest.usb["licence"].is_plugged
    assert "Product" in guest.machine.domain.monitor("info usb")


def test_a_dongle_that_nobody_knows_is_a_mistake_in_the_test(guest: Guest) -> None:
    with pytest.raises(ConfigError, match="has no USB device 'licence'"):
        _ = guest.usb["licence"]


@pytest.fixture
def fake(tmp_path: Path) -> FakeHost:
    """A machine that has the USB devices which the test gives it; QEMU finds none of them."""
    return FakeHost(tmp_path)


@contextmanager
def starting(launcher: Launcher, fake: FakeHost, usb: list[str]) -> Iterator[Guest]:
    """Start a guest on that machine."""
    capacity = replace(launcher.capacity, usb=fake.usb, wait=0.5)
    keys = GuestKeys.model_validate({"image": "micro", "usb": usb})
    with (
        own_launcher(launcher, launcher.reset, capacity=capacity) as there,
        there.guest("web", keys, source="a test", witness=lambda *_: False) as guest,
    ):
        yield guest


def test_a_machine_without_usb_says_so(launcher: Launcher, fake: FakeHost) -> None:
    shutil.rmtree(fake.usb.bus.sysfs)
    with (
        pytest.raises(UsbError, match="0a5e:2110 is asked for, but this machine has no USB"),
        starting(launcher, fake, [ID]),
    ):
        pass


def test_a_dongle_is_free_again_after_a_guest_that_could_not_have_it(
    launcher: Launcher, fake: FakeHost
) -> None:
    device = fake.plug("1-1")
    with pytest.raises(GuestError, match="0a5e:2110 cannot be plugged into"), starting(launcher, fake, [ID]):
        pass
    assert until(lambda: not fake.usb.holder(device) or None, Deadline(30))


def test_a_running_guest_waits_for_a_dongle_no_longer_than_it_may(launcher: Launcher, fake: FakeHost) -> None:
    device = fake.plug("1-1")
    lease = fake.lease(device, "the other lab")
    with starting(launcher, fake, []) as guest:
        with pytest.raises(
            UsbError, match=r"waited 0.5 s in vain for dongle 0a5e:2110: 1-1 is held by the other"
        ):
            guest.usb.attach(ID)
        lease.release()
        with pytest.raises(HostError, match="0a5e:2110 cannot be plugged into"):
            guest.usb.attach(ID)
        assert guest.usb.devices == ()
    assert until(lambda: not fake.usb.holder(device) or None, Deadline(30))
