"""What guests of one image have in common."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.store import Image
from pytest_kvmlab.plan.guest import BootSource, DiskFile
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.manifest import CDROM, INITRD, KERNEL
from pytest_kvmlab.spec.validation import validate


@dataclass(frozen=True)
class BaseImage:
    """What a guest is started from; none of its files is ever written to.

    Attributes:
        identity: the SHA-256 of the stored image, or the path of the file that is used in place of its disk.
        keys: what the image says about its guests.
        boot: its kernel, its disk, of which guests get overlays, and its CD-ROM.
        kernel_version: of that kernel, where it is known.
        locks: what is locked while guests use it.
    """

    identity: str
    keys: GuestKeys
    boot: BootSource
    kernel_version: str | None
    locks: tuple[Path, ...] = ()


class StartsGuests(Protocol):
    """What a builder needs that lets a guest do a part of its work."""

    def start(
        self, name: str, keys: GuestKeys, image: BaseImage, *, source: str, timeout: float
    ) -> AbstractContextManager[Guest]:
        """Run a guest of an image that nobody else knows yet; it is not kept and leaves no evidence.

        Args:
            name: the guest's name in messages.
            keys: what is said about it beside what the image says.
            image: what it boots from.
            source: the guest as the reader knows it, for messages.
            timeout: seconds until the guest must be ready.
        """


def base_image(image: Image) -> BaseImage:
    """See an image of the store as guests do.

    Args:
        image: the image, locked while guests use it.

    Returns:
        What they are started from.
    """
    boot = BootSource(
        disk=_chain(list(image.lineage())),
        kernel=image.file(KERNEL),
        initrd=image.file(INITRD),
        cmdline=image.manifest.cmdline,
        cdrom=image.file(CDROM),
    )
    locks = tuple(each.lock_file for each in image.lineage())
    return BaseImage(image.sha256, guest_keys(image), boot, image.manifest.kernel_version, locks)


def guest_keys(image: Image) -> GuestKeys:
    """What an image says about its guests.

    Raises:
        ConfigError: its manifest says something that no guest has.
    """
    return validate(GuestKeys, image.manifest.guest, source=f"image '{image.name}'")


def _chain(lineage: list[Image]) -> DiskFile | None:
    """The disk of an image, and the disks that it stands on."""
    disk: DiskFile | None = None
    for image in reversed(lineage):
        if image.disk and image.disk_format:
            disk = DiskFile(image.disk, image.disk_format, disk)
    return disk
