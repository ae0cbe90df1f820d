"""Guests on a host whose KVM works."""

import pytest

from pytest_kvmlab import Guest, HostFacts

pytestmark = pytest.mark.kvm(image="micro", cpu="kvm64")


def test_kvm_is_proved_and_used(kvm_host: HostFacts, guest: Guest) -> None:
    assert (kvm_host.accelerator, kvm_host.accelerator_why) == ("kvm", "a guest booted with it")
    assert "kvm support: enabled" in guest.machine.domain.monitor("info kvm")
    assert "Hypervisor detected: KVM" in guest.succeed("dmesg")


def test_a_guest_on_kvm_is_a_clone_of_a_frozen_one(guest: Guest) -> None:
    assert guest.machine.frozen
    assert guest.run("uname").stdout == "Linux\n"
