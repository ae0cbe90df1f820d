"""What a guest finds at the beginning of a disk: a boot sector, or a file system without one."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pytest_kvmlab.errors import ImageError

LOOKED_AT = 128 * 2**10
"""How much of a disk's beginning is needed, in bytes: Btrfs has its name after 64 KiB."""

Content = Literal["boots", "ext"]

_SECTOR = 512
_SIGNATURE = slice(510, 512)  # of a boot sector, a master boot record, a protective one
_PARTITIONS = struct.Struct("<B3xB3xII")  # active, type, first sector, sectors
_PARTITIONS_AT, _PARTITION_COUNT = 446, 4
_PROTECTIVE = 0xEE
# UEFI specification, 5.3.2: signature, the header's other copy, the last sector for partitions
_GPT_HEADER = struct.Struct("<8s24xQ")
# ext4's disk layout (the kernel's Documentation/filesystems/ext4): offsets from the beginning of the disk
_EXT_MAGIC_AT = 0x438
_EXT_FIELDS = 0x404, 0x418, 0x460, 0x550  # blocks, logarithm of their size, features, upper half of blocks
_EXT_MAGIC, _EXT_64BIT = b"\x53\xef", 0x80
_OTHER_FILE_SYSTEMS: Mapping[tuple[int, bytes], str] = {
    (0, b"XFSB"): "XFS",
    (0x10040, b"_BHRfS_M"): "Btrfs",
    (0, b"hsqs"): "SquashFS",
    (0x400, b"\x10\x20\xf5\xf2"): "F2FS",
    (0x8000 + 24, b"LVM2"): "LVM",
    (_SECTOR, b"LABELONE"): "LVM",
}


def content_of(path: Path, beginning: bytes, size: int) -> Content:
    """Tell how a disk can be started from.

    Args:
        path: the disk, for messages.
        beginning: its first `LOOKED_AT` bytes, as a guest sees them.
        size: bytes that a guest sees.

    Returns:
        `boots` if its first sector is one that a firmware starts, `ext` if it is an ext2, ext3 or ext4 file
        system without one.

    Raises:
        ImageError: it is neither, or it is shorter than it says itself.
    """
    if beginning[_SIGNATURE] == b"\x55\xaa":
        _refuse_shorter(path, size, _partitioned_size(beginning))
        return "boots"
    if beginning.startswith(_EXT_MAGIC, _EXT_MAGIC_AT):
        _refuse_shorter(path, size, _ext_size(beginning))
        return "ext"
    for (offset, magic), name in _OTHER_FILE_SYSTEMS.items():
        if beginning.startswith(magic, offset):
            raise ImageError(
                f"the image {path} is a bare {name}, without a partition table or a boot loader",
                "the kernel is taken out of ext2, ext3 and ext4 only: import a whole disk",
            )
    raise ImageError(
        f"the image {path} is no disk that a guest could start from: there is no boot sector",
        "import a whole disk, or a bare ext4 file system with a kernel in it",
    )


def _refuse_shorter(path: Path, size: int, least: int) -> None:
    if size < least:
        raise ImageError(
            f"the image {path} is truncated: {size} bytes, of {least} that it says itself to have"
        )


def _partitioned_size(beginning: bytes) -> int:
    """Bytes up to the end of the last partition, or of the second copy of a GPT."""
    signature, other_copy = _GPT_HEADER.unpack_from(beginning, _SECTOR)
    if signature == b"EFI PART":
        return int(other_copy + 1) * _SECTOR
    entries = [
        _PARTITIONS.unpack_from(beginning, _PARTITIONS_AT + number * _PARTITIONS.size)
        for number in range(_PARTITION_COUNT)
    ]
    # the boot sector of a file system has code in this place
    if any(active not in (0, 0x80) for active, *_ in entries):
        return 0
    ends = [first + sectors for _, kind, first, sectors in entries if kind not in (0, _PROTECTIVE)]
    return int(max(ends, default=0)) * _SECTOR


def _ext_size(beginning: bytes) -> int:
    blocks, exponent, features, high = (_integer(beginning, field) for field in _EXT_FIELDS)
    return (high << 32 if features & _EXT_64BIT else 0) + blocks << 10 + min(exponent, 6)


def _integer(beginning: bytes, offset: int) -> int:
    return int.from_bytes(beginning[offset : offset + 4], "little")
