"""The micro image, built from Debian's packages and booted by hand."""

import io
import re
import time
from pathlib import Path

import paramiko
import pexpect
import pytest

from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.drivers.ssh_keys import generate_key_pair
from pytest_kvmlab.lab.build import build, ensure
from pytest_kvmlab.lab.recipes import recipes
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.spec.manifest import DISKS, INITRD
from tests.guest.micro_by_hand import SECONDS, ByHand, answer, booted, connected, passed

CARD = ("-nic", "user,model=virtio,hostfwd=tcp:127.0.0.1:0-:22")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def image(store: Store) -> Image:
    return build(recipes()["micro"], store, progress=unwatched)


def unwatched(_step: str, _share: float | None) -> None:
    pass


def settle(guest: ByHand, image: Image) -> None:
    guest.ask(f"until {image.manifest.guest['ready']}; do sleep 0.1; done")


def test_two_builds_in_different_folders_are_the_same_image(image: Image, tmp_path: Path) -> None:
    other = build(recipes()["micro"], Store(tmp_path), progress=unwatched)
    assert other.folder != image.folder
    assert other.sha256 == image.sha256


def test_an_image_of_the_unchanged_recipe_is_used_at_once(store: Store, image: Image) -> None:
    steps: list[str] = []
    started = time.monotonic()
    again = ensure("micro", store, progress=lambda step, _: steps.append(step))
    assert (again, steps) == (image, [])
    assert time.monotonic() - started < 1


def test_building_the_same_again_keeps_the_image(store: Store, image: Image) -> None:
    made = (image.folder / INITRD).stat().st_ino
    again = build(recipes()["micro"], store, progress=unwatched)
    assert (again, (again.folder / INITRD).stat().st_ino) == (image, made)


def test_a_built_image_is_whole_small_and_read_only(store: Store, image: Image) -> None:
    store.verify(image)
    assert {file.stat().st_mode & 0o777 for file in image.folder.iterdir()} == {0o444}
    assert (image.folder / INITRD).stat().st_size < 25e6
    assert qemu_img.inspect_untrusted(image.folder / DISKS["qcow2"]) == "qcow2"


def test_the_guest_finds_its_disk_network_sound_and_usb_devices(image: Image, tmp_path: Path) -> None:
    sound = ("-audiodev", "none,id=none", "-device", "intel-hda", "-device", "hda-duplex,audiodev=none")
    stick = ("-drive", "if=none,id=stick,file.driver=null-co,file.size=1M,format=raw")
    usb = ("-device", "qemu-xhci", "-device", "usb-storage,drive=stick")
    with booted(image, tmp_path, "-nic", "user,model=e1000e", *sound, *stick, *usb) as guest:
        settle(guest, image)
        assert "/dev/vda /data ext4 rw" in guest.ask("grep /data /proc/mounts")
        assert guest.ask("echo kept >/data/note; sync; cat /data/note") == "kept"
        assert "10.0.2.15/24" in guest.ask("until ip address | grep -F 10.0.2.; do sleep 0.1; done")
        assert "sda" in guest.ask("until ls /dev/sda; do sleep 0.1; done 2>/dev/null")
        assert "pcmC0D0p" in guest.ask("ls /dev/snd")


def test_the_shell_owns_its_terminal_and_comes_back(image: Image, tmp_path: Path) -> None:
    with booted(image, tmp_path) as guest:
        guest.line.sendline("exit")
        guest.prompt()
        # The child itself speaks, so that it owns the terminal when Ctrl-C comes.
        guest.line.sendline("sh -c 'echo slee\"\"ping; exec sleep 1000'")
        guest.line.expect("sleeping")
        guest.line.sendintr()
        guest.prompt()
        assert guest.ask("tty") == "/dev/ttyS0"
        assert re.fullmatch(r"[0-9a-f-]{36}", guest.ask("cat /proc/sys/kernel/random/boot_id"))


def test_a_reboot_comes_up_again_and_the_power_button_ends_it(image: Image, tmp_path: Path) -> None:
    with booted(image, tmp_path) as guest:
        guest.line.sendline("reboot")
        guest.line.expect("micro: ready", timeout=SECONDS)
        guest.prompt()
        settle(guest, image)
        guest.monitor("system_powerdown")
        guest.line.expect(pexpect.EOF, timeout=SECONDS)


def test_ssh_knows_the_keys_of_the_run_and_no_others(image: Image, tmp_path: Path) -> None:
    user, host, stranger = generate_key_pair(), generate_key_pair(), generate_key_pair()
    keys = passed(tmp_path, authorized_keys=user.public, host_key=host.private, hostname="web")
    with booted(image, tmp_path, *CARD, *keys) as guest:
        settle(guest, image)
        port = guest.port()
        with pytest.raises(paramiko.AuthenticationException), connected(port, stranger, host):
            pass
        with pytest.raises(paramiko.BadHostKeyException), connected(port, user, stranger):
            pass
        with connected(port, user, host) as client:
            release, name, path = answer(client, "uname -r; hostname; echo $PATH").split()
        assert (release[-6:], name) == ("-amd64", "web")
        assert {"/bin", "/sbin", "/usr/bin", "/usr/sbin"} <= set(path.split(":"))
        with connected(port, user, host) as client, client.open_sftp() as files:
            files.putfo(io.BytesIO(b"by sftp"), "/tmp/sent")
        assert guest.ask("cat /tmp/sent") == "by sftp"
