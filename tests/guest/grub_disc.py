"""Discs and disks whose whole system is a script for GRUB: they boot in a second, and do as they are told."""

import hashlib
from pathlib import Path

from pytest_kvmlab.drivers import fat, grub, grub_core, iso, partitions
from pytest_kvmlab.drivers.partitions import Partition

GRUB = Path("/usr/lib/grub/i386-pc")
MEGABYTE = 2**20
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


def write_disk(folder: Path, script: str) -> Path:
    """Make a raw disk with a partition table and a boot loader, as a BIOS starts it.

    Args:
        folder: where it is made.
        script: what GRUB does.
    """
    core, files, disk = folder / "core.img", folder / "files.img", folder / "disk.raw"
    loader = Partition("bios", partitions.BIOS_BOOT, MEGABYTE, MEGABYTE)
    system = Partition("system", partitions.LINUX, 2 * MEGABYTE, 4 * MEGABYTE)
    able_to = ["biosdisk", "part_gpt", "fat", *_ABLE_TO]
    grub_core.make(core, "i386-pc", GRUB, "(,gpt2)/boot/grub", able_to)
    fat.make(files, system.size, "SYSTEM", {"boot/grub/grub.cfg": (_ON_THE_SERIAL_LINE + script).encode()})
    partitions.write(disk, 8 * MEGABYTE, [loader, system])
    grub.write_for_bios(disk, {"boot.img": (GRUB / "boot.img").read_bytes()}, core.read_bytes(), loader)
    partitions.fill(disk, system, files)
    return disk


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
