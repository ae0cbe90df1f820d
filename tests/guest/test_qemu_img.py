"""What an image file of a stranger may be: real files, made by the real qemu-img where it can make them."""

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.errors import ImageError

MEGABYTE = 2**20


def create(path: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", *options, str(path), "1M"], check=True, timeout=30)
    return path


def qcow2(folder: Path) -> Path:
    return create(folder / "disk.qcow2", "-f", "qcow2")


def missing(folder: Path) -> Path:
    return folder / "none.qcow2"


def a_folder(folder: Path) -> Path:
    return folder


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def empty(folder: Path) -> Path:
    return written(folder / "empty.qcow2", b"")


def header_only(folder: Path) -> Path:
    return written(folder / "short.qcow2", qcow2(folder).read_bytes()[:80])


def truncated(folder: Path) -> Path:
    image = qcow2(folder)
    os.truncate(image, image.stat().st_size - 65536)
    return image


def with_backing_file(folder: Path) -> Path:
    return create(folder / "overlay.qcow2", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd")


def raw_disk_with_a_header_of_a_guest(folder: Path) -> Path:
    return with_backing_file(folder).rename(folder / "disk.img")


def with_data_file(folder: Path) -> Path:
    return create(folder / "split.qcow2", "-f", "qcow2", "-o", f"data_file={folder}/data.raw")


def with_named_data_file(folder: Path) -> Path:
    """The name alone, without the feature bit that says that it is used."""
    image = with_data_file(folder)
    return patched(image, 72, struct.pack(">Q", 0))


def encrypted(folder: Path) -> Path:
    return patched(qcow2(folder), 32, struct.pack(">I", 2))


def marked_corrupt(folder: Path) -> Path:
    return patched(qcow2(folder), 72, struct.pack(">Q", 2))


def endless_table(folder: Path) -> Path:
    return patched(qcow2(folder), 36, struct.pack(">I", 2**32 - 1))


def endless_extension(folder: Path) -> Path:
    image = qcow2(folder)
    (length,) = struct.unpack_from(">I", image.read_bytes(), 100)
    return patched(image, length, struct.pack(">II", 1, 2**32 - 1))


def damaged_reference_counts(folder: Path) -> Path:
    image = qcow2(folder)
    (table,) = struct.unpack_from(">Q", image.read_bytes(), 48)
    return patched(image, table, struct.pack(">Q", 0xFFFFFF0000))


def vmdk_descriptor(folder: Path) -> Path:
    extent = b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 8 FLAT "/etc/passwd" 0\n'
    return written(folder / "disk.vmdk", extent.ljust(512))


def vmdk(folder: Path) -> Path:
    return create(folder / "disk.vmdk", "-f", "vmdk")


def not_the_claimed_qcow2(folder: Path) -> Path:
    return written(folder / "disk.qcow2", b"\0" * MEGABYTE)


def qcow2_named_raw(folder: Path) -> Path:
    return qcow2(folder).rename(folder / "disk.raw")


def half_a_sector(folder: Path) -> Path:
    return written(folder / "disk.raw", b"\0" * 700)


def compressed(folder: Path) -> Path:
    return written(folder / "disk.img", b"\xfd7zXZ\0".ljust(512))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def patched(image: Path, offset: int, content: bytes) -> Path:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(content)
    return image


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (missing, "No such file"),
        (a_folder, "neither a regular file|Is a directory"),
        (a_pipe, "neither a regular file"),
        (empty, "is empty"),
        (header_only, "truncated within its header"),
        (truncated, "truncated"),
        (with_backing_file, "backing file: '/etc/passwd'"),
        (raw_disk_with_a_header_of_a_guest, "backing file: '/etc/passwd'"),
        (with_data_file, "data in another file"),
        (with_named_data_file, "another file for its data: .*data.raw"),
        (encrypted, "encrypted"),
        (marked_corrupt, "marked as corrupt"),
        (endless_table, "truncated"),
        (endless_extension, "extensions do not end"),
        (damaged_reference_counts, "qemu-img check"),
        (vmdk_descriptor, "VMDK descriptor"),
        (vmdk, "VMDK image"),
        (not_the_claimed_qcow2, "no qcow2 header"),
        (qcow2_named_raw, "named raw"),
        (half_a_sector, "whole number of 512-byte sectors"),
        (compressed, "compressed with xz"),
    ],
)
def test_an_image_that_lies_or_points_elsewhere_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], complaint: str
) -> None:
    with pytest.raises(ImageError, match=complaint):
        qemu_img.inspect_untrusted(make(tmp_path))


def test_honest_images_pass(tmp_path: Path) -> None:
    assert qemu_img.inspect_untrusted(qcow2(tmp_path)) == "qcow2"
    assert (
        qemu_img.inspect_untrusted(create(tmp_path / "old.qcow2", "-f", "qcow2", "-o", "compat=0.10"))
        == "qcow2"
    )
    assert qemu_img.inspect_untrusted(create(tmp_path / "disk.raw", "-f", "raw")) == "raw"


def test_an_overlay_names_its_base_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    base, overlay = create(tmp_path / "a:b, c.raw", "-f", "raw"), tmp_path / "nbd:overlay"
    qemu_img.create_overlay(base, "raw", overlay)
    info = qemu_img.info(overlay, "qcow2")
    assert (info.backing, info.data_file, info.virtual_size) == (str(base), None, MEGABYTE)
    assert base.read_bytes() == b"\0" * MEGABYTE


def test_a_converted_image_has_the_same_content(tmp_path: Path) -> None:
    raw = written(tmp_path / "disk.raw", b"kvmlab".ljust(MEGABYTE, b"."))
    qemu_img.convert(raw, "raw", tmp_path / "disk.qcow2", "qcow2")
    qemu_img.check(tmp_path / "disk.qcow2")
    qemu_img.convert(tmp_path / "disk.qcow2", "qcow2", tmp_path / "again.raw", "raw")
    assert (tmp_path / "again.raw").read_bytes() == raw.read_bytes()
