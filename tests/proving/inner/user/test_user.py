"""What a user without rights may do, where udev gives devices the modes that they usually have."""

import os
import re

import pytest

from pytest_kvmlab import Guest, HostFacts, Lab


def test_kvm_is_proved_and_used(kvm_host: HostFacts) -> None:
    assert os.geteuid() != 0
    assert (kvm_host.kind, kvm_host.accelerator) == ("private", "kvm")


@pytest.mark.kvm(image="micro", cpu="kvm64", hotplug=True, usb=["0a5e:2110#A1"])
def test_a_guest_has_a_dongle_that_udev_gives_to_the_group_kvm(guest: Guest) -> None:
    assert "0a5e" in guest.succeed("cat /sys/bus/usb/devices/*/idVendor")
    assert "kvm support: enabled" in guest.machine.domain.monitor("info kvm")


def test_guests_meet_in_a_network_of_the_lab(lab: Lab) -> None:
    lab["web"].wait_until_succeeds("ping -c 1 db")
    lab["db"].wait_until_succeeds("ping -c 1 web")


def test_packets_to_a_guest_come_later(lab: Lab) -> None:
    web, db = lab["web"], lab["db"]
    web.wait_until_succeeds("ping -c 1 db")
    db.nics[0].impair(delay=0.5)
    assert quickest(web) >= 500
    db.nics[0].impair()
    assert quickest(web) < 500


def quickest(guest: Guest) -> float:
    """Milliseconds from a guest to `db` and back."""
    said = guest.succeed("ping -q -c 5 db")
    found = re.search(r"min/avg/max = ([0-9.]+)/", said)
    assert found, said
    return float(found[1])
