"""The disks that a guest writes to: files in its own folder, which stand on files that nobody writes to."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.plan.guest import DiskFile
from pytest_kvmlab.spec.guest import DiskKeys


@dataclass(frozen=True)
class OwnDisk:
    """A disk that is one guest's alone.

    Attributes:
        file: where it is, and what it stands on.
        create: makes it.
    """

    file: DiskFile
    create: Callable[[], None]

    def renew(self) -> None:
        """Make it, anew if it is there already.

        Raises:
            ImageError: it cannot be made, because the disk that it is on is full for example.
        """
        self.file.path.unlink(missing_ok=True)
        self.create()


def overlay(base: DiskFile, path: Path) -> OwnDisk:
    """A disk that has the content of another one, and keeps what is written to it to itself.

    Args:
        base: what it stands on.
        path: where it shall be.
    """
    return OwnDisk(
        DiskFile(path, "qcow2", base), partial(qemu_img.create_overlay, base.path, base.format, path)
    )


def asked_disk(disk: DiskKeys, path: Path) -> OwnDisk:
    """The disk that one of the entries under `disks` asks for.

    Args:
        disk: the entry.
        path: where it shall be.

    Raises:
        ImageError: its file is no sound image of the format that it is said to have.
    """
    if disk.file is None:
        return OwnDisk(DiskFile(path, "qcow2"), partial(qemu_img.create_blank, path, disk.size or 0))
    # What is said to be raw is not looked into: a guest may have written a header there.
    if disk.format == "raw":
        return overlay(DiskFile(disk.file, "raw", device=disk.file.is_block_device()), path)
    if qemu_img.inspect_untrusted(disk.file) != "qcow2":
        raise ImageError(f"the disk {disk.file} is no qcow2 image", 'if it is a raw one, say format = "raw"')
    return overlay(DiskFile(disk.file, "qcow2"), path)


def clean_copy(frozen: DiskFile, blank: Path, path: Path) -> OwnDisk:
    """A disk that has the content of a frozen guest's disk, and keeps what is written to it to itself.

    To copy an overlay with nothing in it takes a tenth of the time that starting qemu-img takes.

    Args:
        frozen: the frozen guest's disk.
        blank: an overlay on it in which nothing is written yet.
        path: where it shall be.
    """
    return OwnDisk(DiskFile(path, "qcow2", frozen), partial(_copy, blank, path))


def _copy(blank: Path, path: Path) -> None:
    try:
        shutil.copyfile(blank, path)
    except OSError as error:
        raise ImageError(f"the disk {path} cannot be made: {error}") from error
