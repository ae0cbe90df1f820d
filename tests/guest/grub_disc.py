"""A disc whose "installer" is a script for GRUB: it boots in a second, asks, and does as it is told."""

import hashlib
from pathlib import Path

from pytest_kvmlab.drivers import grub_core, iso

GRUB = Path("/usr/lib/grub/i386-pc")
LOADER = "boot/grub/cd.img"
_ABLE_TO = ("normal", "serial", "terminal", "echo", "read", "halt", "reboot", "sleep")
_ON_THE_SERIAL_LINE = """
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
"""


def write_disc(folder: Path, script: str) -> Path:
    """Make a disc.

    Args:
        folder: where it is made.
        script: what GRUB does.
    """
    loader, config, disc = folder / "cd.img", folder / "grub.cfg", folder / "installer.iso"
    config.write_text(_ON_THE_SERIAL_LINE + script)
    grub_core.make(loader, "i386-pc-eltorito", GRUB, "/boot/grub", ["biosdisk", "iso9660", *_ABLE_TO])
    iso.make(disc, "TEST", {"boot/grub/grub.cfg": config, LOADER: loader}, LOADER)
    return disc


def write_recipe(folder: Path, script: str, *more: str, sha256: str = "") -> Path:
    """Write a recipe that installs from such a disc; `more` are further lines of `image.toml`."""
    folder.mkdir()
    disc = write_disc(folder, script)
    digest = sha256 or hashlib.sha256(disc.read_bytes()).hexdigest()
    lines = [
        'kind = "installer"',
        'size = "16MiB"',
        f'iso = {{ file = "installer.iso", sha256 = "{digest}" }}',
        *more,
    ]
    (folder / "image.toml").write_text("\n".join(lines))
    return folder
