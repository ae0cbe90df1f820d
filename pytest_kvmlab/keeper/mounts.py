"""Private directories in a mount namespace, also where the host has none.

A bind mount needs a directory to cover, and making one would change the host. So the nearest parent that
exists is rebuilt on a tmpfs, entry by entry, with the missing name added (mount(2), mount_namespaces(7)).
"""

import ctypes
import errno
import os
import struct
from pathlib import Path

_BIND, _RECURSIVE, _MOVE = 0x1000, 0x4000, 0x2000
# mount_setattr(2): its number is the same on every architecture; AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY
_MOUNT_SETATTR, _HERE, _SUBTREE, _READ_ONLY = 442, -100, 0x8000, 0x1
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str = "", flags: int = 0) -> None:
    """Mount a file system, or make a directory or file appear at a second place.

    Raises:
        OSError: mount(2) failed, with its reason and the target.
    """
    arguments = (source.encode(), os.fsencode(target), kind.encode() or None, flags, None)
    if _libc.mount(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def bind(source: Path, target: Path) -> None:
    """Show a file or directory, and what is mounted below it, at a second place."""
    mount(str(source), target, flags=_BIND | _RECURSIVE)


def make_read_only(*, but: tuple[Path, ...]) -> None:
    """Make everything that this mount namespace shows read-only, apart from some directories.

    A guest that breaks out of QEMU then finds nothing to write to, whatever its user id is. A kernel before
    5.12 cannot (mount_setattr(2)); there it stays as it is.

    Args:
        but: directories that stay writable.
    """
    for directory in but:
        bind(directory, directory)
    try:
        _set_read_only(Path("/"), True)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return
    for directory in but:
        _set_read_only(directory, False)


def _set_read_only(tree: Path, read_only: bool) -> None:
    setting, clearing = (_READ_ONLY, 0) if read_only else (0, _READ_ONLY)
    attributes = struct.pack("=QQQQ", setting, clearing, 0, 0)
    target = os.fsencode(tree)
    if _libc.syscall(_MOUNT_SETATTR, _HERE, target, _SUBTREE, attributes, len(attributes)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(tree))


def cover(target: Path, private: Path, *, keep: frozenset[str]) -> None:
    """Put a private directory where the host's would be, inside this mount namespace only.

    Args:
        target: the path to cover, whether it exists or not.
        private: the directory that appears there.
        keep: names below `target` that stay the host's, such as `images`.
    """
    for name in sorted(keep):
        if (target / name).is_dir():
            (private / name).mkdir(exist_ok=True)
            bind(target / name, private / name)
    _make_mountpoint(target, scratch=private.parent / f".{private.name}.parent")
    bind(private, target)


def _make_mountpoint(target: Path, *, scratch: Path) -> None:
    if target.is_dir():
        return
    parent = target.parent.resolve(strict=False)
    if not parent.is_dir():
        _make_mountpoint(parent, scratch=scratch.with_name(scratch.name + "-"))
    scratch.mkdir()
    mount("tmpfs", scratch, "tmpfs")
    for entry in parent.iterdir():
        _rebuild(entry, scratch / entry.name)
    (scratch / target.name).mkdir()
    mount(str(scratch), parent, flags=_MOVE)


def _rebuild(entry: Path, copy: Path) -> None:
    """Make one entry of the old directory appear in the new one."""
    if entry.is_symlink():
        copy.symlink_to(entry.readlink())
        return
    if entry.is_dir():
        copy.mkdir()
    else:
        copy.touch()
    bind(entry, copy)
