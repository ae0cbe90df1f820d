"""GRUB put on a disk in a file, without root and the same each time.

GRUB's own installer wants a mounted file system and a block device. Here the modules of a tree's packages are
put together by grub-mkimage, and what tells a BIOS where the result lies is written by us.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pytest_kvmlab.drivers import grub_core
from pytest_kvmlab.drivers.partitions import SECTOR, Partition
from pytest_kvmlab.errors import ImageError

Platform = Literal["i386-pc", "x86_64-efi"]

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_BOOT_SECTOR = "boot.img"
# What finds `prefix` on the disk that the firmware started; everything else is loaded from there.
_FIRST_MODULES: Mapping[Platform, Sequence[str]] = {
    "i386-pc": ("biosdisk", "part_gpt", "ext2"),
    "x86_64-efi": ("part_gpt", "ext2"),
}

# Where boot.img has its code and the sector of what it loads: GRUB's include/grub/i386/pc/boot.h
_CODE_END = 0x1B8
_BPB = slice(0x03, 0x5A)
_KERNEL_SECTOR = 0x5C
_DRIVE_CHECK = 0x66
_NO_OPERATION = b"\x90\x90"
# The end of core.img's first sector: the sectors that follow it, their number, and the segment they go to.
_BLOCK_LIST = struct.Struct("<QHH")
_LOAD_SEGMENT = 0x820


def program(modules: Mapping[str, bytes], platform: Platform, prefix: str, folder: Path) -> bytes:
    """Make the program that a firmware starts.

    Args:
        modules: the files of `/usr/lib/grub/PLATFORM`, by name.
        platform: `i386-pc` gives a core.img, `x86_64-efi` an EFI program.
        prefix: where it finds its configuration and further modules, as GRUB writes it: a disk left out,
            `(,gpt3)/boot/grub`, is the one that it was started from.
        folder: a place for files in between.

    Returns:
        The program.

    Raises:
        HostError: grub-mkimage is not installed.
        ImageError: modules are missing or unusable.
    """
    with TemporaryDirectory(dir=folder, prefix="grub-") as name:
        work = Path(name)
        _lay_out(modules, work)
        grub_core.make(work / "program", platform, work, prefix, _FIRST_MODULES[platform])
        return (work / "program").read_bytes()


def write_for_bios(disk: Path, modules: Mapping[str, bytes], core: bytes, partition: Partition) -> None:
    """Write what a BIOS starts: boot.img to the first sector, core.img to its partition.

    The partition table in the first sector stays. GRUB's manual, "BIOS installation", explains the partition.

    Args:
        disk: the file of the disk, with its partition table.
        modules: the files of `/usr/lib/grub/i386-pc`, by name.
        core: core.img.
        partition: the one for core.img.

    Raises:
        ImageError: core.img does not fit, or boot.img is missing.
    """
    if len(core) > partition.size:
        raise ImageError(f"GRUB needs {len(core)} bytes, its partition has {partition.size}")
    if len(boot := modules.get(_BOOT_SECTOR, b"")) != SECTOR:
        raise ImageError("the boot sector of GRUB is missing or damaged", looked_at=[_BOOT_SECTOR])
    first = partition.start // SECTOR
    with disk.open("r+b") as file:
        present = file.read(SECTOR)
        file.seek(0)
        file.write(_boot_sector(boot, present, first))
        file.seek(partition.start)
        file.write(_with_block_list(core, first))


def _lay_out(modules: Mapping[str, bytes], work: Path) -> None:
    for name, content in modules.items():
        if not _FILE_NAME.fullmatch(name):
            raise ImageError(f"{name!r} is no module of GRUB")
        (work / name).write_bytes(content)


def _boot_sector(boot: bytes, present: bytes, first: int) -> bytes:
    sector = bytearray(boot[:_CODE_END] + present[_CODE_END:])
    sector[_BPB] = present[_BPB]
    struct.pack_into("<Q", sector, _KERNEL_SECTOR, first)
    # a BIOS that passes a wrong drive number is believed to mean the first disk, as grub-bios-setup does it
    sector[_DRIVE_CHECK : _DRIVE_CHECK + 2] = _NO_OPERATION
    return bytes(sector)


def _with_block_list(core: bytes, first: int) -> bytes:
    following = -(-len(core) // SECTOR) - 1
    entry = _BLOCK_LIST.pack(first + 1, following, _LOAD_SEGMENT)
    return core[: SECTOR - _BLOCK_LIST.size] + entry + core[SECTOR:]
