"""Locks on files, which hold on every machine that shares the folder, and end with the process that has them.

Linux turns flock(2) on NFS into a lock on the server: an exclusive one needs a file that is open for writing,
and folders cannot be locked at all. So what is locked is an empty file beside the thing, never the thing.
Such a file is never removed: two processes could then hold locks on two files of one name.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_kvmlab.errors import ImageError

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def shared(file: Path) -> Iterator[None]:
    """Hold a lock that others may hold, too, but none of them an exclusive one.

    Args:
        file: the lock; made if it is not there, and enough to be readable if it is.

    Raises:
        ImageError: the file system has no locks.
        OSError: the file is not there and cannot be made.
    """
    with _opened(file, or_read_only=True) as descriptor:
        _lock(descriptor, fcntl.LOCK_SH, file)
        yield


@contextmanager
def exclusive(file: Path, *, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that nobody else holds, as soon as nobody does.

    Args:
        file: the lock; made if it is not there.
        waiting: called once if somebody holds it now.

    Raises:
        ImageError: the file system has no locks.
        OSError: the file cannot be written to.
    """
    with _opened(file) as descriptor:
        if not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, file):
            waiting()
            _lock(descriptor, fcntl.LOCK_EX, file)
        yield


@contextmanager
def free(file: Path) -> Iterator[bool]:
    """Hold a lock that nobody else holds, if nobody does now.

    Args:
        file: the lock; made if it is not there.

    Yields:
        Whether it is held here.

    Raises:
        ImageError: the file system has no locks.
        OSError: the file cannot be written to.
    """
    with _opened(file) as descriptor:
        yield _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, file)


@contextmanager
def _opened(file: Path, *, or_read_only: bool = False) -> Iterator[int]:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(file, flags | os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if not or_read_only or error.errno not in _READ_ONLY:
            raise
        descriptor = os.open(file, flags | os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int, file: Path) -> bool:
    """Whether the lock was free, or has become so."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise ImageError(
                f"the file system of the image store has no locks: {error.strerror}",
                "choose another folder with --kvm-store, or mount it with locks (NFS 3: not with 'nolock', "
                "and with rpc.statd running)",
                looked_at=[file],
            ) from error
        raise
    return True
