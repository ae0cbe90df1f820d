"""The image debian-12: a whole server, started in each of the ways that a server is."""

import pytest

from pytest_kvmlab import Guest, MakeGuest

pytestmark = [pytest.mark.kvm(image="debian-12", vcpus=2), pytest.mark.timeout(900)]

ROOT = "findmnt -no SOURCE,FSTYPE /"


def test_a_server_answers_over_both_channels_and_its_units_are_waited_for(guest: Guest) -> None:
    guest.wait_for_unit("ssh.service")
    guest.wait_for_port(22)
    assert guest.succeed("systemctl is-system-running --wait || systemctl --failed --plain") == "running\n"
    assert guest.serial.run("id -un").stdout == "root\n"
    assert guest.succeed(ROOT).split() == ["/dev/vda3", "ext4"]
    ssh = guest.testinfra.service("ssh")
    assert (ssh.is_running, ssh.is_enabled) == (True, True)
    assert guest.testinfra.package("qemu-guest-agent").is_installed


def test_a_server_keeps_what_it_wrote_and_comes_back_with_another_boot_id(guest: Guest) -> None:
    guest.succeed("echo kept >/root/note")
    before = guest.succeed("cat /proc/sys/kernel/random/boot_id")
    guest.reboot()
    assert guest.succeed("cat /root/note /proc/sys/kernel/random/boot_id").split() != ["kept", before.strip()]
    assert guest.succeed("cat /root/note") == "kept\n"


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_a_server_starts_from_its_disk_by_itself(make_guest: MakeGuest, firmware: str) -> None:
    guest = make_guest(boot=["disk"], firmware=firmware)
    guest.wait_for_unit("multi-user.target")
    has_efi = guest.run("test -d /sys/firmware/efi").exit_status == 0
    assert has_efi == (firmware == "uefi")
    assert guest.succeed(ROOT).split() == ["/dev/vda3", "ext4"]


def test_two_servers_of_one_image_have_nothing_secret_in_common(make_guest: MakeGuest) -> None:
    """What has to be a guest's own is made when it starts, not when the image is built."""
    first, second = (make_guest(fresh=["machine-id", "host-key"]) for _ in range(2))
    for secret in ("cat /etc/machine-id", "sha256sum /etc/ssh/ssh_host_ed25519_key"):
        assert first.succeed(secret) != second.succeed(secret)
