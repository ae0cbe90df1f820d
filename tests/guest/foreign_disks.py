"""Disks as strangers bring them, made by the tools that strangers use."""

import random
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

MEGABYTE = 2**20
BOOT_SIGNATURE = b"\x55\xaa"
# Enough of an x86 boot image to be taken for one: the kernel's Documentation/arch/x86/boot.rst
KERNEL = bytes(0x202) + b"HdrS" + b"kernel".ljust(4096, b".")


def raw_disk(path: Path, *, size: int = 4 * MEGABYTE, partition: tuple[int, int] = (2048, 2048)) -> Path:
    """A disk with a master boot record, one partition (first sector, sectors), and content here and there."""
    content = bytearray(size)
    content[446:462] = struct.pack("<B3xB3xII", 0x80, 0x83, *partition)
    content[510:512] = BOOT_SIGNATURE
    content[MEGABYTE : MEGABYTE + 100_000] = random.Random(1).randbytes(100_000)  # noqa: S311 - no secret
    content[-1] = 1
    return written(path, bytes(content))


def converted(raw: Path, image_format: str, *options: str) -> Path:
    """The same disk as another format of QEMU's."""
    path = raw.with_name(f"{raw.stem}-{'-'.join([image_format, *options]).replace('=', '-')}.img")
    more = ["-o", ",".join(options)] if options else []
    run("qemu-img", "convert", "-f", "raw", "-O", image_format, *more, str(raw), str(path))
    return path


def content_of(image: Path, image_format: str) -> bytes:
    """What a guest would see of a disk."""
    raw = image.parent / "seen.raw"
    run("qemu-img", "convert", "-f", image_format, "-O", "raw", str(image), str(raw))
    return raw.read_bytes()


def root_file_system(
    path: Path, boot: dict[str, bytes], links: dict[str, str] | None = None, kind: str = "ext4"
) -> Path:
    """A bare file system whose `/boot` has these files; `links` are those of its root folder."""
    tree = path.with_name(f"{path.name}.tree")
    (tree / "boot").mkdir(parents=True)
    for name, content in boot.items():
        (tree / "boot" / name).write_bytes(content)
    for name, target in (links or {}).items():
        (tree / name).symlink_to(target)
    run("mke2fs", "-q", "-t", kind, "-d", str(tree), str(path), "16M")
    return path


def run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def packed(path: Path, command: Sequence[str]) -> Path:
    """The file, compressed by a program that writes to its standard output."""
    target = path.with_name(f"{path.name}.packed")
    with target.open("wb") as output:
        subprocess.run([*command, path], check=True, timeout=60, stdout=output)
    return target


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def patched(path: Path, offset: int, content: bytes) -> Path:
    """The file with other bytes in one place; a negative offset counts from its end."""
    whole = bytearray(path.read_bytes())
    start = offset % len(whole)
    whole[start : start + len(content)] = content
    return written(path, bytes(whole))
