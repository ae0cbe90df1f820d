"""The door to grub-mkimage: what a boot sector or UEFI firmware loads of GRUB, made of its modules."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pytest_kvmlab.drivers.program import run

Target = Literal["i386-pc", "i386-pc-eltorito", "x86_64-efi"]
"""What a disk's boot sector loads; the same for a CD-ROM, boot sector included; what UEFI firmware starts."""

_SECONDS = 60


def make(core: Path, target: Target, modules_folder: Path, prefix: str, modules: Sequence[str]) -> None:
    """Make a core image that depends on nothing but its arguments and the modules: grub-mkimage(1).

    Args:
        core: the file to make.
        target: what it is started from.
        modules_folder: what an unpacked package of GRUB has in `usr/lib/grub/i386-pc` or `…/x86_64-efi`.
        prefix: the folder of `grub.cfg`, in GRUB's words: `(hd0,msdos1)/boot/grub`.
        modules: what it is able to do; what they need comes along.

    Raises:
        HostError: grub-mkimage is not installed.
        ImageError: there is no such module.
    """
    places = ["-O", target, "-d", modules_folder, "-p", prefix, "-o", core]
    run(["grub-mkimage", *places, *modules], package="grub-common", timeout=_SECONDS)
