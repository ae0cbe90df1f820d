"""The door to qemu-img, and the guard before it: what an image file may be before QEMU opens it.

A disk image can name other files, which QEMU opens with our rights: the backing file and the external data
file of a qcow2, the extents of a VMDK. A guest can write such a header into its own raw disk, too. So the
header of a stranger's file is read here first, and QEMU is always told the format instead of guessing it.
"""

import json
import os
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from pytest_kvmlab.drivers.program import run
from pytest_kvmlab.errors import ImageError

Format = Literal["qcow2", "raw"]

_PACKAGE = "qemu-utils"
_QUICK_SECONDS = 30
_WHOLE_FILE_SECONDS = 1800
_LEAKED_CLUSTERS = 3  # exit status of `qemu-img check`: wasted space, no damage
_SECTOR = 512
_FIRST_CLUSTER_AT_MOST = 2 * 2**20

_QCOW2_MAGIC = b"QFI\xfb"
_FOREIGN_FORMATS: Mapping[bytes, str] = {
    b"KDMV": "a VMDK image",
    b"COWD": "a VMDK image",
    b"# Disk DescriptorFile": "a VMDK descriptor, which names other files",
    b"<<< ": "a VDI image",
    b"vhdxfile": "a VHDX image",
    b"conectix": "a VHD image",
    b"QED\0": "a QED image",
    b"\x7fELF": "a program",
    b"\x1f\x8b": "compressed with gzip",
    b"\xfd7zXZ\0": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"PK\x03\x04": "a ZIP archive",
}


@dataclass(frozen=True)
class DiskInfo:
    """What qemu-img says about an image.

    Attributes:
        format: `qcow2` or `raw`.
        virtual_size: bytes that a guest sees.
        actual_size: bytes that it occupies.
        backing: the file below it as its header names it, or None.
        data_file: the file that holds its data as its header names it, or None.
    """

    format: Format
    virtual_size: int
    actual_size: int
    backing: str | None
    data_file: str | None


def create_overlay(base: Path, base_format: Format, overlay: Path) -> None:
    """Make an empty qcow2 image whose content is another image's until it is written to.

    Args:
        base: the image below, which is never written to.
        base_format: its format; never guessed.
        overlay: the file to make.

    Raises:
        ImageError: it cannot be made.
    """
    _qemu_img("create", "-q", "-f", "qcow2", "-F", base_format, "-b", base.absolute(), overlay.absolute())


def create_blank(path: Path, size: int) -> None:
    """Make an empty disk.

    Args:
        path: the qcow2 file to make.
        size: its virtual size in bytes.

    Raises:
        ImageError: the disk is full, or `path` cannot be written.
        HostError: qemu-img is not installed.
    """
    _qemu_img("create", "-q", "-f", "qcow2", path, str(size))


def convert(source: Path, source_format: Format, target: Path, target_format: Format) -> None:
    """Copy the content of an image into a new one.

    Args:
        source: the image to read.
        source_format: its format; never guessed.
        target: the file to make.
        target_format: the new one's format.

    Raises:
        ImageError: one of them cannot be read or written.
    """
    files = source.absolute(), target.absolute()
    _qemu_img("convert", "-f", source_format, "-O", target_format, *files, timeout=_WHOLE_FILE_SECONDS)


def info(path: Path, image_format: Format) -> DiskInfo:
    """Ask what an image is; the files that it names are not opened, save an external data file.

    Args:
        path: an image of our own, or one that `inspect_untrusted` let pass.
        image_format: its format; never guessed.

    Returns:
        Sizes and references.

    Raises:
        ImageError: QEMU cannot read it.
    """
    # shared: a running guest may have it open for writing
    told = json.loads(_qemu_img("info", "--output=json", "-U", "-f", image_format, path.absolute()))
    details = told.get("format-specific", {}).get("data", {})
    return DiskInfo(
        format=image_format,
        virtual_size=told["virtual-size"],
        actual_size=told["actual-size"],
        backing=told.get("backing-filename"),
        data_file=details.get("data-file"),
    )


def check(path: Path) -> None:
    """Check the structure of a qcow2 image.

    Args:
        path: an image of our own, or one whose header was looked at.

    Raises:
        ImageError: it is damaged.
    """
    accept = (0, _LEAKED_CLUSTERS)
    _qemu_img("check", "-q", "-f", "qcow2", path.absolute(), timeout=_WHOLE_FILE_SECONDS, accept=accept)


def inspect_untrusted(path: Path) -> Format:
    """Find out the format of a stranger's image without following anything that it names.

    Args:
        path: the file to look at.

    Returns:
        `qcow2` or `raw`.

    Raises:
        ImageError: it is missing, not a readable regular file, empty, truncated, damaged, encrypted, of
            another format than its name claims or than guests can use, or it names other files.
    """
    head, size = _read_head(path)
    if not head:
        raise ImageError(f"the image {path} is empty")
    image_format = _format_of(path, head)
    if image_format == "qcow2":
        _refuse_unsafe_qcow2(path, head, size)
        check(path)
    elif size % _SECTOR:
        raise ImageError(
            f"the image {path} is no whole number of {_SECTOR}-byte sectors: truncated, or no raw disk"
        )
    return image_format


def _qemu_img(*arguments: str | Path, timeout: float = _QUICK_SECONDS, accept: Sequence[int] = (0,)) -> str:
    """File names are absolute here: `nbd:…` or `json:…` would mean something else to QEMU."""
    return run(["qemu-img", *arguments], package=_PACKAGE, timeout=timeout, accept=accept)


def _read_head(path: Path) -> tuple[bytes, int]:
    """The beginning of a regular file, and its size; a pipe or device is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as image:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"the image {path} is not a regular file")
            return image.read(_FIRST_CLUSTER_AT_MOST), status.st_size
    except OSError as error:
        raise ImageError(f"the image {path} cannot be read: {error.strerror}") from error


def _format_of(path: Path, head: bytes) -> Format:
    is_qcow2 = head.startswith(_QCOW2_MAGIC)
    foreign = next((kind for magic, kind in _FOREIGN_FORMATS.items() if head.startswith(magic)), None)
    if foreign:
        raise ImageError(f"the image {path} is {foreign}", "make it a qcow2 or raw image first")
    if path.suffix == ".qcow2" and not is_qcow2:
        raise ImageError(f"the image {path} is named qcow2 but has no qcow2 header")
    if path.suffix == ".raw" and is_qcow2:
        raise ImageError(
            f"the image {path} is named raw but begins with a qcow2 header",
            "a guest may have written that header; rename the file if it really is qcow2",
        )
    return "qcow2" if is_qcow2 else "raw"


# QEMU's docs/interop/qcow2.txt: version, backing file's offset and length, cluster bits, size, encryption,
# entries and offset of the first-level table, offset and clusters of the reference count table
_QCOW2_HEADER = struct.Struct(">IQIIQIIQQI")
_QCOW2_V3_INCOMPATIBLE = 72
_QCOW2_V3_HEADER_LENGTH = 100
_QCOW2_V2_LENGTH = 72
_CORRUPT, _EXTERNAL_DATA = 1 << 1, 1 << 2
_DATA_FILE_NAME = 0x44415441


def _refuse_unsafe_qcow2(path: Path, head: bytes, size: int) -> None:
    reason = _qcow2_truncation(head, size) or _qcow2_danger(head)
    if reason:
        raise ImageError(f"the qcow2 image {path} {reason}")


def _qcow2_truncation(head: bytes, size: int) -> str:
    if len(head) < _QCOW2_V3_HEADER_LENGTH + 4:
        return "is truncated within its header"
    _, _, _, cluster_bits, _, _, l1_entries, l1_offset, table_offset, table_clusters = _fields(head)
    if not 9 <= cluster_bits <= 21:
        return "has a damaged header: impossible cluster size"
    ends = l1_offset + l1_entries * 8, table_offset + (table_clusters << cluster_bits)
    return f"is truncated: {size} bytes, of at least {max(ends)}" if size < max(ends) else ""


def _qcow2_danger(head: bytes) -> str:
    version, backing_offset, backing_length, _, _, encryption, *_ = _fields(head)
    if version not in (2, 3):
        return f"has the unknown version {version}"
    if backing_offset or backing_length:
        return f"has a backing file: {_text(head, backing_offset, backing_length)}"
    if encryption:
        return "is encrypted"
    return _qcow2_v3_danger(head) if version == 3 else _extension_danger(head, _QCOW2_V2_LENGTH)


def _qcow2_v3_danger(head: bytes) -> str:
    (features,) = struct.unpack_from(">Q", head, _QCOW2_V3_INCOMPATIBLE)
    (length,) = struct.unpack_from(">I", head, _QCOW2_V3_HEADER_LENGTH)
    if features & _EXTERNAL_DATA:
        return "keeps its data in another file"
    if features & _CORRUPT:
        return "is marked as corrupt"
    return _extension_danger(head, length)


def _extension_danger(head: bytes, offset: int) -> str:
    """Walk the header extensions: type, length, content padded to eight bytes, until a type of zero."""
    while offset + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == 0:
            return ""
        if kind == _DATA_FILE_NAME:
            return f"names another file for its data: {_text(head, offset + 8, length)}"
        offset += 8 + (length + 7) // 8 * 8
    return "has a damaged header: its extensions do not end"


def _fields(head: bytes) -> tuple[int, ...]:
    return cast(tuple[int, ...], _QCOW2_HEADER.unpack_from(head, len(_QCOW2_MAGIC)))


def _text(head: bytes, offset: int, length: int) -> str:
    return repr(head[offset : offset + min(length, 1023)].decode(errors="replace"))
