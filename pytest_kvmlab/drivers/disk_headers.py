"""What the header of a disk image may say before QEMU opens it.

A header can name other files, which QEMU opens with our rights: the backing file and the external data file
of a qcow2 image, the parent and the extents of a VMDK. A guest can write such a header into its own raw disk.
"""

import re
import struct
from collections.abc import Callable, Mapping
from typing import cast

from pytest_kvmlab.drivers.disk_formats import Container, Sample
from pytest_kvmlab.errors import ImageError

_SECTOR = 512


def refuse_danger(sample: Sample, container: Container) -> None:
    """Refuse an image whose header is truncated or damaged, or names other files.

    Args:
        sample: its ends.
        container: what it is.

    Raises:
        ImageError: it cannot be used, and why.
    """
    if reason := _DANGERS.get(container, _no_danger)(sample):
        raise ImageError(f"the image {sample.path} {reason}")


def _no_danger(_sample: Sample) -> str:
    """QEMU refuses a VHDX with a parent itself; the others have nothing that names a file."""
    return ""


def _raw_danger(sample: Sample) -> str:
    if sample.size % _SECTOR:
        return f"is no whole number of {_SECTOR}-byte sectors: truncated, or no raw disk"
    return ""


# QEMU's docs/interop/qcow2.txt: version, backing file's offset and length, cluster bits, size, encryption,
# entries and offset of the first-level table, offset and clusters of the reference count table
_QCOW2_HEADER = struct.Struct(">4xIQIIQIIQQI")
_QCOW2_V3_INCOMPATIBLE = 72
_QCOW2_V3_HEADER_LENGTH = 100
_QCOW2_V2_LENGTH = 72
_CORRUPT, _EXTERNAL_DATA = 1 << 1, 1 << 2
_DATA_FILE_NAME = 0x44415441


def backing_file(sample: Sample) -> str | None:
    """Read what the header of a qcow2 image, which is not truncated, names as the file below it.

    Args:
        sample: the image's ends.

    Returns:
        The name as it is written there, or None if the image stands alone.
    """
    _, offset, length, *_ = _qcow2_fields(sample.head)
    return _text(sample.head, offset, length) if offset and length else None


def refuse_danger_beside_backing(sample: Sample) -> None:
    """Refuse a qcow2 image for everything but its backing file, which somebody vouches for.

    Args:
        sample: its ends.

    Raises:
        ImageError: it is truncated or damaged, encrypted, or keeps its data elsewhere.
    """
    if reason := _qcow2_truncation(sample) or _qcow2_own_danger(sample.head):
        raise ImageError(f"the image {sample.path} {reason}")


def _qcow2_danger(sample: Sample) -> str:
    if truncation := _qcow2_truncation(sample):
        return truncation
    _, offset, length, *_ = _qcow2_fields(sample.head)
    if offset or length:
        return f"has a backing file: {_text(sample.head, offset, length)!r}"
    return _qcow2_own_danger(sample.head)


def _qcow2_truncation(sample: Sample) -> str:
    if len(sample.head) < _QCOW2_V3_HEADER_LENGTH + 4:
        return "is truncated within its header"
    version, _, _, cluster_bits, _, _, l1_entries, l1_offset, table_offset, table_clusters = _qcow2_fields(
        sample.head
    )
    if version not in (2, 3):
        return f"has the unknown version {version}"
    if not 9 <= cluster_bits <= 21:
        return "has a damaged header: impossible cluster size"
    return _shorter(sample, max(l1_offset + l1_entries * 8, table_offset + (table_clusters << cluster_bits)))


def _qcow2_own_danger(head: bytes) -> str:
    version, _, _, _, _, encryption, *_ = _qcow2_fields(head)
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
            return f"names another file for its data: {_text(head, offset + 8, length)!r}"
        offset += 8 + (length + 7) // 8 * 8
    return "has a damaged header: its extensions do not end"


def _qcow2_fields(head: bytes) -> tuple[int, ...]:
    return cast(tuple[int, ...], _QCOW2_HEADER.unpack_from(head))


# VMware's "Virtual Disk Format 5.0", Hosted Sparse Extent Header: version, flags, capacity, grain size,
# offset and size of the descriptor (sectors), entries per grain table, offsets of the two grain directories
_VMDK_HEADER = struct.Struct("<4x2I4QI2Q")
_VMDK_FOOTER_AT = -1024
_VMDK_DIRECTORY_AT_END = 2**64 - 1
# QEMU reads the descriptor here, whatever the header says: block/vmdk.c, vmdk_open and DESC_SIZE
_VMDK_DESCRIPTOR = slice(_SECTOR, 21 * _SECTOR)
_VMDK_EXTENT = re.compile(rb"^[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+\d+[ \t]+(\w+)", re.MULTILINE)
_VMDK_PARENT = re.compile(rb"parentFileNameHint[ \t]*=[ \t]*([^\r\n\0]*)")


def _vmdk_danger(sample: Sample) -> str:
    if len(sample.head) < _VMDK_DESCRIPTOR.stop:
        return "is truncated within its header"
    _, _, capacity, _, _, _, _, _, directory = _VMDK_HEADER.unpack_from(sample.head)
    # without a capacity, QEMU takes the file for a descriptor and opens the extents that this one names
    if not capacity:
        return "has no data of its own, but a descriptor that names other files"
    if directory == _VMDK_DIRECTORY_AT_END:
        return _vmdk_footer_danger(sample, capacity) or _vmdk_descriptor_danger(sample.head)
    return _shorter(sample, directory * _SECTOR) or _vmdk_descriptor_danger(sample.head)


def _vmdk_footer_danger(sample: Sample, capacity: int) -> str:
    footer = sample.tail[_VMDK_FOOTER_AT:]
    if footer[:4] != b"KDMV":
        return "is truncated: its footer is missing"
    _, _, again, _, _, _, _, _, directory = _VMDK_HEADER.unpack_from(footer)
    if again != capacity:
        return "has a damaged footer: it says another size than the header"
    return _shorter(sample, directory * _SECTOR)


def _vmdk_descriptor_danger(head: bytes) -> str:
    descriptor = head[_VMDK_DESCRIPTOR]
    if (parent := _VMDK_PARENT.search(descriptor)) is not None:
        return f"stands on another file: {parent[1].decode(errors='replace')}"
    extents = _VMDK_EXTENT.findall(descriptor)
    if not extents:
        return "is one extent of an image that has more"
    return "" if extents == [b"SPARSE"] else "keeps data in other files"


# VirtualBox's VDICore.h, header of version 1.1; offsets from the beginning of the file
_VDI_TYPE, _VDI_LINK = 0x4C, slice(0x1A8, 0x1C8)
_VDI_TYPES = {1: "", 2: "", 3: "is an undo image of VirtualBox", 4: "is a difference to another image"}


def _vdi_danger(sample: Sample) -> str:
    if len(sample.head) < _VDI_LINK.stop:
        return "is truncated within its header"
    (kind,) = struct.unpack_from("<I", sample.head, _VDI_TYPE)
    if reason := _VDI_TYPES.get(kind, f"has the unknown type {kind}"):
        return reason
    return "stands on another image" if any(sample.head[_VDI_LINK]) else _vdi_truncation(sample)


_VDI_DATA_AT, _VDI_BLOCK_SIZE_AT, _VDI_ALLOCATED_AT = 0x158, 0x178, 0x184


def _vdi_truncation(sample: Sample) -> str:
    places = _VDI_DATA_AT, _VDI_BLOCK_SIZE_AT, _VDI_ALLOCATED_AT
    data, block, allocated = (struct.unpack_from("<I", sample.head, place)[0] for place in places)
    return _shorter(sample, data + allocated * block)


# Microsoft's "Virtual Hard Disk Image Format Specification": the footer; a dynamic disk has a copy in front
_VHD_TYPE_AT = 60
_VHD_FIXED, _VHD_DYNAMIC, _VHD_DIFFERENCING = 2, 3, 4
_VHD_CURRENT_SIZE_AT = 48


def _vhd_danger(sample: Sample) -> str:
    footer = sample.tail[-_SECTOR:]
    if not footer.startswith(b"conectix"):
        return "is truncated: its footer is missing"
    (kind,) = struct.unpack_from(">I", footer, _VHD_TYPE_AT)
    if kind == _VHD_DIFFERENCING:
        return "is a difference to another image"
    if kind not in (_VHD_FIXED, _VHD_DYNAMIC):
        return f"has the unknown type {kind}"
    (size,) = struct.unpack_from(">Q", footer, _VHD_CURRENT_SIZE_AT)
    return _shorter(sample, size + _SECTOR) if kind == _VHD_FIXED else ""


_DANGERS: Mapping[Container, Callable[[Sample], str]] = {
    "raw": _raw_danger,
    "qcow2": _qcow2_danger,
    "vmdk": _vmdk_danger,
    "vdi": _vdi_danger,
    "vpc": _vhd_danger,
}


def _shorter(sample: Sample, least: int) -> str:
    return f"is truncated: {sample.size} bytes, of at least {least}" if sample.size < least else ""


def _text(head: bytes, offset: int, length: int) -> str:
    return head[offset : offset + min(length, 1023)].decode(errors="replace")
