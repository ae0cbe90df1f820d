"""What a file is, told by its bytes and never by its name alone."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pytest_kvmlab.errors import ImageError

Container = Literal["raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx", "iso"]
"""How a disk lies in a file, in QEMU's names, where a VHD is a `vpc`; or the image of a disc."""

Compression = Literal["gzip", "xz", "bzip2", "zstd"]

_SECTOR = 512
_HEAD = 2 * 2**20  # the largest first cluster of a qcow2 image
_TAIL = 3 * _SECTOR  # a footer, or one between two markers

_COMPRESSIONS: Mapping[bytes, Compression] = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_CONTAINERS: Mapping[bytes, Container] = {
    b"QFI\xfb": "qcow2",
    b"KDMV": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
}
_VDI_SIGNATURE_AT, _VDI_SIGNATURE = 0x40, b"\x7f\x10\xda\xbe"
_VHD_COOKIE = b"conectix"
_ISO_AT, _ISO_IDENTIFIER = 0x8001, b"CD001"  # ECMA-119, 8.1: after 16 sectors of 2048 bytes and a type
_TAR_AT, _TAR_MAGIC = 257, b"ustar"

_UNUSABLE: Mapping[bytes, tuple[str, str]] = {
    b"QFI\xfb\0\0\0\x01": ("a qcow image of version 1", "convert it: qemu-img convert -f qcow -O qcow2"),
    b"# Disk DescriptorFile": (
        "a VMDK descriptor, which has no data but names other files",
        "import the '-flat.vmdk' that it names, or make one file of all: qemu-img convert -f vmdk -O qcow2",
    ),
    b"COWD": ("an extent of a VMDK image", "convert the whole: qemu-img convert -f vmdk -O qcow2"),
    b"QED\0": ("a QED image", "convert it: qemu-img convert -f qed -O qcow2"),
    b"LUKS\xba\xbe": ("encrypted with LUKS", "decrypt it first"),
    b"\x7fELF": ("a program", "name a disk"),
    b"PK\x03\x04": ("a ZIP archive", "unpack it and import the disk that is in it"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it and import the disk that is in it"),
    b"Rar!": ("a RAR archive", "unpack it and import the disk that is in it"),
    b"LZIP": ("compressed with lzip", "unpack it first"),
    b"\x04\x22\x4d\x18": ("compressed with lz4", "unpack it first"),
    b"\x1f\x9d": ("compressed with compress", "unpack it first"),
    b"\x89LZO": ("compressed with lzop", "unpack it first"),
}
_TAR = ("a tar archive, as OVA appliances are", "unpack it (tar -xf) and import the disk that is in it")
CONTAINER_NAMES: Mapping[Container, str] = {
    "raw": "a raw disk",
    "qcow2": "a qcow2 image",
    "vmdk": "a VMDK image",
    "vdi": "a VDI image",
    "vpc": "a VHD image",
    "vhdx": "a VHDX image",
    "iso": "the image of a CD-ROM",
}


@dataclass(frozen=True)
class Sample:
    """The ends of a file, which say what it is.

    Attributes:
        path: the file.
        head: its first bytes, at most two megabytes.
        tail: its last three sectors, or less if it is smaller.
        size: bytes in it.
    """

    path: Path
    head: bytes
    tail: bytes
    size: int


@contextmanager
def open_untrusted(path: Path) -> Iterator[BinaryIO]:
    """Open a stranger's image; a pipe or a terminal is refused instead of waited for.

    Args:
        path: a regular file or a block device.

    Yields:
        The file, open for reading.

    Raises:
        ImageError: it is missing, unreadable, or neither a file nor a block device.
    """
    with _opened(path) as image:
        mode = os.fstat(image.fileno()).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise ImageError(f"the image {path} is neither a regular file nor a block device")
        yield image


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb", opener=_without_waiting)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ImageError:
    return ImageError(f"the image {path} cannot be read: {error.strerror}")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def take_sample(path: Path) -> Sample:
    """Read the ends of a stranger's image.

    Args:
        path: a regular file or a block device.

    Raises:
        ImageError: it cannot be read, or it is empty.
    """
    with open_untrusted(path) as image:
        try:
            sample = _sampled(path, image)
        except OSError as error:
            raise _unreadable(path, error) from error
    if not sample.size:
        raise ImageError(f"the image {path} is empty")
    return sample


def _sampled(path: Path, image: BinaryIO) -> Sample:
    size = image.seek(0, os.SEEK_END)
    image.seek(max(0, size - _TAIL))
    tail = image.read(_TAIL)
    image.seek(0)
    return Sample(path, image.read(_HEAD), tail, size)


def compression_of(sample: Sample) -> Compression | None:
    """Tell whether a file is compressed, and how.

    Args:
        sample: its ends.
    """
    return next((how for magic, how in _COMPRESSIONS.items() if sample.head.startswith(magic)), None)


def container_of(sample: Sample) -> Container:
    """Tell how the disk in a file is stored; what nothing else claims is a raw disk.

    Args:
        sample: the ends of a file that is not compressed.

    Raises:
        ImageError: it is something that no guest can use, or its name claims another format.
    """
    _refuse_unusable(sample)
    container = _recognised(sample)
    _refuse_contradiction(sample, container)
    return container


def _recognised(sample: Sample) -> Container:
    head = sample.head
    if claimed := next((name for magic, name in _CONTAINERS.items() if head.startswith(magic)), None):
        return claimed
    if head.startswith(_VDI_SIGNATURE, _VDI_SIGNATURE_AT):
        return "vdi"
    # before what the first sector says: a disc that also boots from USB sticks begins with a boot sector
    if head.startswith(_ISO_IDENTIFIER, _ISO_AT):
        return "iso"
    # a VHD of fixed size is a raw disk with a footer
    return "vpc" if sample.tail[-_SECTOR:].startswith(_VHD_COOKIE) else "raw"


def _refuse_unusable(sample: Sample) -> None:
    found = next((told for magic, told in _UNUSABLE.items() if sample.head.startswith(magic)), None)
    if found is None and sample.head.startswith(_TAR_MAGIC, _TAR_AT):
        found = _TAR
    if found:
        raise ImageError(f"the image {sample.path} is {found[0]}", found[1])


def _refuse_contradiction(sample: Sample, container: Container) -> None:
    if sample.path.suffix == ".qcow2" and container != "qcow2":
        raise ImageError(f"the image {sample.path} is named qcow2 but has no qcow2 header")
    if sample.path.suffix == ".raw" and container == "qcow2":
        raise ImageError(
            f"the image {sample.path} is named raw but begins with a qcow2 header",
            "a guest may have written that header; rename the file if it really is qcow2",
        )
