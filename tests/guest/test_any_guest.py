"""Guests that are no Linux and let nobody in: serial line, screen and keyboard are enough."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_kvmlab import Guest
from pytest_kvmlab.errors import ConfigError, GuestError
from pytest_kvmlab.lab.base_image import base_image
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.store import Image, Store, record
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.manifest import CDROM, Manifest
from pytest_kvmlab.spec.validation import validate

# Debian's packages memtest86+ and ipxe.
MEMTEST = "/boot/memtest86+x64.bin"
IPXE = Path("/usr/lib/ipxe/ipxe.iso")
SECONDS = 120.0

pytestmark = pytest.mark.kvm(
    image="micro",
    memory="64MiB",
    networks=[],
    kernel=MEMTEST,
    cmdline="console=ttyS0,115200",
    login={"channel": "none"},
    ready=r"console:Memtest86\+ v",
)


def filled(guest: Guest, folder: Path) -> int:
    """How much there is on the screen: the bytes of its picture, in which a blinking cursor hardly shows."""
    return guest.screenshot(folder / "screen.png").stat().st_size


def test_a_memory_tester_is_followed_on_its_serial_line(guest: Guest) -> None:
    guest.serial.expect(r"#[1-9] +\[.* pattern", timeout=SECONDS)
    assert "Errors: 0" in guest.serial.expect(r"Errors: \d+", timeout=SECONDS)[0]
    guest.serial.send("\x1b")  # its way to start over
    guest.serial.expect(r"Memtest86\+ v", timeout=SECONDS)


def test_a_key_opens_a_menu_on_the_screen(guest: Guest, tmp_path: Path) -> None:
    guest.serial.expect("Testing: ", timeout=SECONDS)
    before = filled(guest, tmp_path)
    guest.send_keys("f1")
    guest.serial.expect("Settings", timeout=SECONDS)
    assert filled(guest, tmp_path) > 1.1 * before


def test_what_needs_a_shell_says_so_and_the_rest_works(guest: Guest) -> None:
    verbs: list[Callable[[], object]] = [
        lambda: guest.run("true"),
        lambda: guest.succeed("true"),
        lambda: guest.fail("false"),
        lambda: guest.wait_until_succeeds("true"),
        lambda: guest.wait_for_unit("ssh"),
        lambda: guest.wait_for_file("/etc"),
        guest.reboot,
        lambda: guest.testinfra.file("/etc").exists,
    ]
    for verb in verbs:
        with pytest.raises(ConfigError, match=r'no channel for commands: its login says channel = "none"'):
            verb()
    guest.snapshot("tested")
    guest.revert("tested")
    guest.reset()
    with pytest.raises(GuestError, match="no network card"):
        guest.wait_for_port(80, timeout=1)


@pytest.fixture
def disc_only(tmp_path: Path) -> Image:
    """An image that is a CD-ROM and nothing else."""
    store, content = Store(tmp_path), IPXE.read_bytes()
    with store.building("ipxe", waiting=lambda: None) as folder:
        files = folder / "image"
        files.mkdir()
        (files / CDROM).write_bytes(content)
        listed = {CDROM: record(files / CDROM)}
        return store.publish(files, Manifest(name="ipxe", kind="import", identity="a" * 64, files=listed))


def test_an_image_that_is_a_disc_boots_and_is_worked_with_by_keyboard_serial_line_and_screen(
    launcher: Launcher, disc_only: Image, tmp_path: Path
) -> None:
    written = {
        "image": "ipxe",
        "memory": "64MiB",
        "bios_serial": True,
        "login": {"channel": "none"},
        "ready": "console:iPXE initialising devices",
    }
    keys = validate(GuestKeys, written, source="here")
    with launcher.start("ipxe", keys, base_image(disc_only), source="here", timeout=SECONDS) as guest:
        guest.serial.expect("Press Ctrl-B", timeout=SECONDS)
        guest.send_keys("ctrl-b")
        guest.serial.expect("iPXE> ", timeout=SECONDS)
        before = filled(guest, tmp_path)
        guest.serial.send("help\r")
        guest.serial.expect("Available commands.*iPXE> ", timeout=SECONDS)
        assert filled(guest, tmp_path) > 1.1 * before
