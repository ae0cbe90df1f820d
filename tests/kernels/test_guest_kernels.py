"""Debian under another kernel: put into the image, upgraded in the guest, and back again."""

import pytest

from pytest_kvmlab import Guest, KernelDidNotBoot, MakeGuest
from pytest_kvmlab.errors import ConfigError, ImageError

pytestmark = pytest.mark.timeout(1800)


@pytest.mark.kvm(image="debian-12", kernel="6.12")
def test_another_kernel_runs_with_its_modules(guest: Guest) -> None:
    assert guest.succeed("uname -r").strip() == guest.kernel
    assert guest.kernel.startswith("6.12.")
    guest.succeed("modprobe dummy && lsmod | grep -q '^dummy '")
    assert guest.succeed("systemctl is-system-running || true").strip() in ("running", "starting")


@pytest.mark.kvm(image="debian-12", kernel="6.12", boot=["disk"])
def test_the_whole_disk_boots_the_other_kernel(guest: Guest) -> None:
    assert guest.succeed("uname -r").startswith("6.12.")
    assert "BOOT_IMAGE=" in guest.succeed("cat /proc/cmdline")


def test_an_older_kernel_is_booted_although_a_newer_one_is_installed(
    make_guest: MakeGuest, older: str
) -> None:
    guest = make_guest(image="debian-12", kernel=older, boot=["disk"])
    assert guest.succeed("uname -r").strip() == older
    assert len(guest.succeed("ls /boot/vmlinuz-*").split()) == 2


@pytest.mark.kvm(image="debian-12", memory="1GiB")
def test_an_upgrade_keeps_the_disk(guest: Guest) -> None:
    guest.succeed("echo precious >/root/note")
    old = guest.succeed("uname -r").strip()
    new = guest.upgrade_kernel("6.1-cloud")
    assert new.endswith("-cloud-amd64")
    assert guest.succeed("uname -r").strip() == guest.kernel == new
    assert "BOOT_IMAGE=" in guest.succeed("cat /proc/cmdline")
    assert guest.succeed("cat /root/note") == "precious\n"
    assert f"vmlinuz-{old}" in guest.succeed("ls /boot")


@pytest.mark.kvm(image="debian-12", kernel="6.1-cloud", memory="1GiB", expect_kernel=["panic"])
def test_a_kernel_that_does_not_come_up_is_a_verdict_and_there_is_a_way_back(guest: Guest) -> None:
    first = guest.succeed("uname -r").strip()
    (other,) = set(guest.succeed("ls /lib/modules").split()) - {first}
    guest.succeed(f"echo precious >/root/note; head -c 100000 /dev/zero >/boot/initrd.img-{other}; sync")
    with pytest.raises(KernelDidNotBoot, match=rf"{other} does not come up(?s:.*)Kernel panic"):
        guest.boot_kernel(other)
    guest.boot_kernel(first)
    assert guest.succeed("uname -r").strip() == guest.kernel == first
    assert guest.succeed("cat /root/note") == "precious\n"


@pytest.mark.kvm(image="debian-12")
def test_a_kernel_that_is_not_there_is_refused_and_changes_nothing(guest: Guest) -> None:
    with pytest.raises(ImageError, match=r"no kernel '6\.99' for Debian bookworm"):
        guest.upgrade_kernel("6.99")
    with pytest.raises(ConfigError, match=r"has no kernel 6\.99"):
        guest.boot_kernel("6.99")
    guest.succeed("true")


@pytest.mark.kvm(image="micro")
def test_a_guest_that_is_no_debian_is_refused(guest: Guest) -> None:
    with pytest.raises(ConfigError, match="has no Debian whose kernel could be upgraded"):
        guest.upgrade_kernel("6.12")
