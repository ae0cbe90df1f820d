"""Off, on and back: what each verb keeps and what it takes away."""

import urllib.request

import pytest

from pytest_kvmlab import Guest
from pytest_kvmlab.errors import ConfigError, GuestError

pytestmark = pytest.mark.kvm(image="micro", disks=[{"size": "16MiB"}])

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def test_a_guest_may_reboot_as_often_as_a_test_likes(shared_guest: Guest) -> None:
    shared_guest.succeed("echo kept >/data/kept")
    boots = {shared_guest.succeed(BOOT_ID)}
    for _ in range(3):
        shared_guest.reboot()
        boots.add(shared_guest.succeed(BOOT_ID))
    assert len(boots) == 4
    assert shared_guest.succeed("cat /data/kept") == "kept\n"


def test_a_guest_that_was_shut_down_says_so_and_starts_with_its_disk(shared_guest: Guest) -> None:
    shared_guest.succeed("echo kept >/data/over-shutdown")
    shared_guest.shutdown()
    with pytest.raises(GuestError, match=r"is switched off\n.*guest\.start\(\)"):
        shared_guest.run("true")
    shared_guest.start()
    assert shared_guest.succeed("cat /data/over-shutdown") == "kept\n"


def test_after_a_power_failure_the_disk_has_what_was_synced(shared_guest: Guest) -> None:
    shared_guest.succeed("mkdir -p /tmp/www; httpd -p 80 -h /tmp/www; echo kept >/data/synced; sync")
    address = shared_guest.url(80)
    shared_guest.crash()
    shared_guest.start()
    assert shared_guest.succeed("cat /data/synced") == "kept\n"
    shared_guest.succeed("mkdir -p /tmp/www; echo again >/tmp/www/index.html; httpd -p 80 -h /tmp/www")
    with urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310  our own address
        assert answer.read() == b"again\n"


def test_a_guest_that_is_on_is_not_started_again(shared_guest: Guest) -> None:
    with pytest.raises(GuestError, match="is on already"):
        shared_guest.start()
    assert shared_guest.succeed("echo unharmed") == "unharmed\n"


def test_a_reset_makes_every_disk_new(shared_guest: Guest) -> None:
    shared_guest.succeed("echo gone >/data/gone; echo gone >/dev/vdb; sync")
    shared_guest.reset()
    assert shared_guest.succeed("ls /data") == "lost+found\n"
    assert shared_guest.succeed("head -c 4 /dev/vdb | od -An -tx1").split() == ["00"] * 4


def test_a_revert_brings_memory_and_disk_back(shared_guest: Guest) -> None:
    shared_guest.succeed("echo before >/data/file; echo before >/run/file; sync")
    shared_guest.serial.run("true")
    shared_guest.snapshot("before")
    shared_guest.succeed("echo after >/data/file; echo after >/run/file; sync")
    shared_guest.revert("before")
    assert shared_guest.succeed("cat /data/file /run/file") == "before\nbefore\n"
    assert shared_guest.serial.run("cat /run/file").stdout == "before\n"


def test_a_snapshot_that_is_not_there_or_has_no_name_is_refused(shared_guest: Guest) -> None:
    with pytest.raises(GuestError, match=r"loadvm missing of .*missing"):
        shared_guest.revert("missing")
    assert shared_guest.succeed("echo unharmed") == "unharmed\n"
    with pytest.raises(ConfigError, match="cannot name a snapshot"):
        shared_guest.snapshot("a b; quit")


def test_ctrl_alt_delete_reboots(shared_guest: Guest) -> None:
    before = shared_guest.succeed(BOOT_ID).strip()
    shared_guest.send_keys("ctrl-alt-delete")
    shared_guest.wait_until_succeeds(f"! grep {before} /proc/sys/kernel/random/boot_id", timeout=3)


def test_a_paused_guest_is_not_waited_for(shared_guest: Guest) -> None:
    shared_guest.domain.suspend()
    with pytest.raises(GuestError, match=r"is paused\n(?s:.*)guest\.domain\.resume\(\)"):
        shared_guest.run("true")
    shared_guest.domain.resume()
    assert shared_guest.succeed("uname") == "Linux\n"
