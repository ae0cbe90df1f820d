"""From the tree of a Debian system to a disk that boots by BIOS and by UEFI, and to its kernel alone."""

import posixpath
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pytest_kvmlab.drivers import ext4, fat, grub, partitions, qemu_img, root_tar
from pytest_kvmlab.drivers.partitions import Partition
from pytest_kvmlab.drivers.root_tar import Tree
from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.progress import Progress

ROOT_LABEL = "root"
"""The label of the file system with the tree: what `root=LABEL=` and `/etc/fstab` name."""

_MEGABYTE = 2**20
_BIOS = Partition("bios", partitions.BIOS_BOOT, 1 * _MEGABYTE, 1 * _MEGABYTE)
_ESP = Partition("esp", partitions.EFI_SYSTEM, 2 * _MEGABYTE, 62 * _MEGABYTE)
_ROOT_START = _ESP.start + _ESP.size
_BACKUP_TABLE = 1 * _MEGABYTE
_SMALLEST = 256 * _MEGABYTE

_GRUB_FOLDER = "boot/grub"
_PREFIX = f"(,gpt3)/{_GRUB_FOLDER}"
# Without quotes and backslashes a word means the same to GRUB, to a shell and to the kernel.
_WORD = re.compile(r"[!#-&(-\[\]-~]+")
_GRUB_PACKAGES: Mapping[grub.Platform, str] = {"i386-pc": "grub-pc-bin", "x86_64-efi": "grub-efi-amd64-bin"}
# By BIOS, GRUB speaks to the serial line itself; UEFI firmware does that for it.
_CONFIGURATION = """\
if [ "$grub_platform" = pc ]; then
  serial --unit=0 --speed=115200
  terminal_input console serial
  terminal_output console serial
fi
set timeout=0
menuentry Linux {{
  linux {kernel} {cmdline}
  initrd {initrd}
}}
"""
# What update-grub reads, once a guest runs it.
_DEFAULTS = """\
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX={cmdline}
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
"""


class Kernel(NamedTuple):
    """What a host can boot without a boot loader.

    Attributes:
        release: as in `uname -r`.
        image: the content of `vmlinuz`.
        initrd: the content of `initrd.img`.
    """

    release: str
    image: bytes
    initrd: bytes


class _Paths(NamedTuple):
    kernel: str
    initrd: str


def make_disk(archive: Path, disk: Path, size: int, cmdline: str, work: Path, *, progress: Progress) -> None:
    """Make the disk of a system.

    Equal arguments and equal versions of the host's tools give equal bytes, whoever calls this.

    Args:
        archive: the tree, a tar archive; it has a kernel, an initrd and the modules of GRUB.
        disk: the qcow2 image to make.
        size: bytes of the disk.
        cmdline: what its kernel is told, `root=` included.
        work: a folder for files in between, up to twice the size of the tree.
        progress: told what is being done.

    Raises:
        HostError: a program is missing.
        ImageError: something is missing from the tree, it does not fit, or a step fails.
    """
    if size < _SMALLEST:
        raise ImageError(f"a disk of {size:,} bytes is too small", f"make it at least {_SMALLEST:,} bytes")
    raw = work / "disk.raw"
    progress("reading the tree", 0.0)
    with root_tar.opened(archive) as tree:
        _configure(tree, _words(cmdline))
        root = Partition("root", partitions.LINUX, _ROOT_START, _root_size(size))
        partitions.write(raw, size, [_BIOS, _ESP, root])
        progress("installing the boot loader", 0.1)
        _install_grub(tree, raw, work)
        progress("making the root file system", 0.2)
        ext4.from_tree(tree, raw, root.size, ROOT_LABEL, offset=root.start)
    progress("converting the disk", 0.8)
    qemu_img.convert(raw, "raw", disk, "qcow2")
    raw.unlink()


def kernel_of(archive: Path) -> Kernel:
    """Take the kernel and initrd out of a system's tree that its boot loader would start.

    Args:
        archive: the tree, a tar archive.

    Returns:
        Both, and the kernel's release.

    Raises:
        ImageError: the tree has none.
    """
    with root_tar.opened(archive) as tree:
        paths = _boot_paths(tree)
        release = posixpath.basename(tree.resolve(paths.kernel)).removeprefix("vmlinuz-")
        return Kernel(release, tree.read(paths.kernel), tree.read(paths.initrd))


def _root_size(disk: int) -> int:
    return (disk - _ROOT_START - _BACKUP_TABLE) // _MEGABYTE * _MEGABYTE


def _words(cmdline: str) -> list[str]:
    words = cmdline.split()
    if wrong := [word for word in words if not _WORD.fullmatch(word)]:
        raise ImageError(
            f"GRUB cannot pass this on to a kernel: {wrong[0]!r}", "leave out quotes and backslashes"
        )
    return words


def _configure(tree: Tree, words: list[str]) -> None:
    paths = _boot_paths(tree)
    quoted = " ".join(f"'{word}'" for word in words)
    text = _CONFIGURATION.format(kernel=f"/{paths.kernel}", cmdline=quoted, initrd=f"/{paths.initrd}")
    tree.add(f"{_GRUB_FOLDER}/grub.cfg", text.encode())
    if "etc/default/grub" not in tree.members:
        own = " ".join(word for word in words if not word.startswith("root=") and word not in ("ro", "rw"))
        tree.add("etc/default/grub", _DEFAULTS.format(cmdline=shlex.quote(own)).encode())


def _boot_paths(tree: Tree) -> _Paths:
    """The links that Debian keeps to its newest kernel; where there are none, the newest one."""
    if {"vmlinuz", "initrd.img"} <= tree.members.keys():
        return _Paths("vmlinuz", "initrd.img")
    kernels = [path for path in tree.below("boot") if path.startswith("boot/vmlinuz-")]
    if not kernels:
        raise ImageError("the tree has no kernel", "add linux-image-amd64 to the packages of the image")
    newest = max(kernels, key=_version)
    return _Paths(newest, newest.replace("vmlinuz-", "initrd.img-"))


def _version(path: str) -> list[tuple[str, int]]:
    """Numbers count as numbers."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", path)]


def _install_grub(tree: Tree, disk: Path, work: Path) -> None:
    bios, efi = _modules(tree, "i386-pc"), _modules(tree, "x86_64-efi")
    core = grub.program(bios, "i386-pc", _PREFIX, work)
    grub.write_for_bios(disk, bios, core, _BIOS)
    program = grub.program(efi, "x86_64-efi", _PREFIX, work)
    # the path that firmware tries which was told nothing about the disk: UEFI specification 3.5.1.1
    fat.make(work / "esp", _ESP.size, "ESP", {"EFI/BOOT/BOOTX64.EFI": program})
    partitions.fill(disk, _ESP, work / "esp")
    (work / "esp").unlink()


def _modules(tree: Tree, platform: grub.Platform) -> dict[str, bytes]:
    """Also lays them where GRUB looks for them, as its installer would."""
    found = list(tree.below(f"usr/lib/grub/{platform}"))
    if not found:
        package = _GRUB_PACKAGES[platform]
        raise ImageError(
            f"the tree has no GRUB for {platform}", f"add {package} to the packages of the image"
        )
    modules = {posixpath.basename(path): tree.read(path) for path in found}
    for name, content in modules.items():
        tree.add(f"{_GRUB_FOLDER}/{platform}/{name}", content)
    return modules
