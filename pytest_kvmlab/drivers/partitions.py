"""The door to sfdisk: a partition table on a disk in a file, made without root and the same each time."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.drivers.program import run

SECTOR = 512
ALIGNMENT = 2**20

# Types of partitions: UEFI specification 5.3.3, and GRUB's manual, "BIOS installation"
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
EFI_SYSTEM = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"

_SECONDS = 30
_PIECE = 2**20


@dataclass(frozen=True)
class Partition:
    """A part of a disk.

    Attributes:
        name: letters and digits.
        kind: its type, a GUID.
        start: where it begins, in bytes, a multiple of `ALIGNMENT`.
        size: bytes, a multiple of `SECTOR`.
    """

    name: str
    kind: str
    start: int
    size: int


def write(disk: Path, size: int, partitions: Sequence[Partition]) -> None:
    """Make a file of a disk with a GUID partition table and nothing else.

    The identifiers of disk and partitions come from the names: equal arguments give equal bytes.

    Args:
        disk: the file to make; it is sparse.
        size: bytes of the disk.
        partitions: in the order of their numbers.

    Raises:
        HostError: sfdisk is not installed.
        ImageError: the partitions do not fit or overlap.
    """
    with disk.open("wb") as file:
        file.truncate(size)
    lines = ["label: gpt", f"label-id: {_identifier('disk')}", *map(_line, partitions)]
    command: list[str | Path] = ["sfdisk", "-q", "--no-reread", "--no-tell-kernel", disk.absolute()]
    run(command, package="fdisk", timeout=_SECONDS, feed="\n".join(lines).encode() + b"\n")


def fill(disk: Path, partition: Partition, content: Path) -> None:
    """Copy a file into an empty partition.

    Args:
        disk: the file of the disk.
        partition: where; it is at least as large as the file.
        content: the file.
    """
    with disk.open("r+b") as target, content.open("rb") as source:
        for position in range(0, content.stat().st_size, _PIECE):
            piece = source.read(_PIECE)
            if any(piece):  # what is empty there already stays a hole
                target.seek(partition.start + position)
                target.write(piece)


def _line(partition: Partition) -> str:
    extent = f"start={partition.start // SECTOR}, size={partition.size // SECTOR}"
    return f"{extent}, type={partition.kind}, uuid={_identifier(partition.name)}, name={partition.name}"


def _identifier(name: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_OID, f"kvmlab partition {name}")
