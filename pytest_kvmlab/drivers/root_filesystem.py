"""The door to debugfs: the kernel and its first root out of an ext file system, which nobody mounts.

The kernel's file system code trusts what it mounts, debugfs(8) runs without privileges and with limits.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.drivers.confined import Limits, run_confined
from pytest_kvmlab.errors import ImageError

_LARGEST_FILE = 256 * 2**20
_LIMITS = Limits(seconds=120, file_size=_LARGEST_FILE)

# `ls -p`: inode, mode, owner, group, name, size; a name that is not as plain as this is nobody's kernel
_ENTRY = re.compile(r"/(\d+)/10\d{4}/\d+/\d+/([A-Za-z0-9][A-Za-z0-9._+~-]*)/\d+/")
_LINK = re.compile(r'^Fast link dest: "(?:/?boot/)?([^"/]+)"$', re.MULTILINE)
_KERNEL = re.compile(r"vmlinuz-(.+)")
# Debian and Ubuntu, Fedora, Arch, SUSE
_INITRDS = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}")


@dataclass(frozen=True)
class BootFiles:
    """What was found in a file system.

    Attributes:
        release: of the kernel, as its file is named.
        initrd: whether there is a first root that belongs to it.
    """

    release: str
    initrd: bool


def extract_boot_files(disk: Path, kernel: Path, initrd: Path) -> BootFiles:
    """Take the kernel that a system would boot, and its initrd, out of its root file system.

    That is the one that `/vmlinuz` or `/boot/vmlinuz` leads to, or else the newest `/boot/vmlinuz-*`.

    Args:
        disk: a raw ext2, ext3 or ext4 file system.
        kernel: the file to write the kernel to; its name is a plain one.
        initrd: the file to write the initrd to, if there is one, in the same folder.

    Returns:
        What was found.

    Raises:
        ImageError: there is no kernel, or the file system is damaged.
        HostError: debugfs is not installed.
    """
    here = _Place(kernel.parent, Path(os.path.relpath(disk, kernel.parent)))
    files = {name: inode for inode, name in _ENTRY.findall(here.ask("ls -p /boot"))}
    name = _chosen(here, files)
    release = name.removeprefix("vmlinuz-")
    here.extract(files[name], kernel)
    found = next((name for name in (form.format(release) for form in _INITRDS) if name in files), None)
    if found:
        here.extract(files[found], initrd)
    return BootFiles(release, bool(found))


@dataclass(frozen=True)
class _Place:
    """Where debugfs runs: it gives a meaning to some characters of a path, so it sees none of others."""

    folder: Path
    disk: Path

    def ask(self, command: str) -> str:
        return run_confined(
            ["debugfs", "-R", command, self.disk], package="e2fsprogs", limits=_LIMITS, folder=self.folder
        )

    def extract(self, inode: str, target: Path) -> None:
        self.ask(f"dump <{inode}> {target.name}")
        if not target.is_file() or not target.stat().st_size:
            raise ImageError("the image is a damaged file system: its kernel or initrd cannot be read")


def _chosen(here: _Place, files: Mapping[str, str]) -> str:
    for link in ("/vmlinuz", "/boot/vmlinuz"):
        target = _LINK.search(here.ask(f"stat {link}"))
        if target and target[1] in files:
            return target[1]
    kernels = [name for name in files if _KERNEL.fullmatch(name)]
    if not kernels:
        raise ImageError(
            "the image is a bare file system without a kernel",
            "install one in it, or import a whole disk",
            looked_at=["/vmlinuz", "/boot/vmlinuz", "/boot/vmlinuz-*"],
        )
    return max(kernels, key=_version)


def _version(name: str) -> list[tuple[int, str]]:
    """Compare 6.10 as more than 6.9."""
    return [(int(digits or 0), other) for digits, other in re.findall(r"(\d+)|(\D+)", name)]
