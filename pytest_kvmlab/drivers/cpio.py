"""Write the archive that a Linux kernel unpacks as its first root file system.

Written here instead of by cpio(1): owner, mode and time then depend on no file, user or umask of this host.
The format, `newc`, is in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_ALIGNMENT = 4
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """One file, folder or symbolic link of the archive; owned by root.

    Attributes:
        path: where it appears, without a leading slash.
        mode: type and permissions, as in `stat.st_mode`.
        content: the bytes of a file, or the target of a link.
    """

    path: str
    mode: int
    content: bytes = b""


def folder(path: str, permissions: int = 0o755) -> Entry:
    """A folder."""
    return Entry(path, stat.S_IFDIR | permissions)


def file(path: str, content: bytes, *, executable: bool = False) -> Entry:
    """A regular file that everyone may read."""
    return Entry(path, stat.S_IFREG | (0o755 if executable else 0o644), content)


def link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def write(entries: Iterable[Entry], archive: Path) -> None:
    """Write an archive that depends on nothing but its entries.

    Args:
        entries: what goes in; folders that are only implied by a path are added, a path given twice
            keeps its last entry.
        archive: the file to write.

    Raises:
        OSError: the file cannot be written.
    """
    named = {entry.path: entry for entry in entries}
    parents = {str(parent) for path in named for parent in Path(path).parents} - {"."}
    complete = {parent: folder(parent) for parent in parents} | named
    with archive.open("wb") as out:
        # sorted, so that a folder comes before what is in it
        for number, path in enumerate(sorted(complete), start=1):
            _write_entry(out, number, complete[path])
        _write_entry(out, 0, Entry(_TRAILER, 0))


def _write_entry(out: BinaryIO, number: int, entry: Entry) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the name, checksum
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + "".join(f"{field:08x}" for field in fields).encode()
    out.write(_padded(header + name))
    out.write(_padded(entry.content))


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
