"""Bring the bytes of a stranger's file into a sparse file of our own, unpacked if they are compressed."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from pytest_kvmlab.drivers.confined import Limits, confined
from pytest_kvmlab.drivers.disk_formats import Compression, open_untrusted
from pytest_kvmlab.errors import ImageError

_CHUNK = 2**20
_BLOCK = 64 * 2**10
_COMPLAINTS = 2**20  # all that a decompressor writes into a file
_ZEROS = bytes(_CHUNK)
# Programs, not Python's modules: hostile bytes get bounded memory, and unpacking a processor of its own.
_DECOMPRESSORS: Mapping[Compression, tuple[Sequence[str], str]] = {
    "gzip": (("gzip", "-dc"), "gzip"),
    "xz": (("xz", "-dc"), "xz-utils"),
    "bzip2": (("bzip2", "-dc"), "bzip2"),
    "zstd": (("zstd", "-dcq"), "zstd"),
}

CopyProgress = Callable[[float], None]
"""Told the done share of the whole, 0 to 1."""


@dataclass(frozen=True)
class Budget:
    """How large a disk may get.

    Attributes:
        size: bytes that it may have, holes included.
        space: bytes that it may occupy.
        seconds: until the work is given up.
    """

    size: int
    space: int
    seconds: float

    def check(self, size: int, space: int) -> None:
        """Stop what has got too large.

        Args:
            size: bytes that it has by now.
            space: bytes that it occupies by now.

        Raises:
            ImageError: that is more than it may.
        """
        if size > self.size:
            hint = "if it really is that large, allow more: --max-size"
            raise ImageError(f"it has more than {self.size} bytes", hint)
        if space > self.space:
            raise ImageError(f"the {self.space} bytes that are free are too few for it", "free some space")


@dataclass(frozen=True)
class Content:
    """What a file has in it: hexadecimal SHA-256, and size in bytes."""

    sha256: str
    size: int


def digest(path: Path, progress: CopyProgress) -> str:
    """Hash a file or a block device.

    Args:
        path: the file.
        progress: told how much is done.

    Returns:
        Its SHA-256, hexadecimal.

    Raises:
        ImageError: it cannot be read.
    """
    known = hashlib.sha256()
    with open_untrusted(path) as source:
        for chunk in _chunks(source, path, _position_told(source, progress)):
            known.update(chunk)
    return known.hexdigest()


def copy_sparse(path: Path, target: Path, budget: Budget, progress: CopyProgress) -> Content:
    """Copy a file or a block device; blocks of zeros become holes.

    Args:
        path: the file to copy.
        target: the file to make.
        budget: how large it may get.
        progress: told how much is done.

    Returns:
        What was copied.

    Raises:
        ImageError: it cannot be read, is too large, or there is no space for it.
    """
    with open_untrusted(path) as source:
        return _write_sparse(_chunks(source, path, _position_told(source, progress)), target, budget)


def unpack(
    path: Path, compression: Compression, target: Path, budget: Budget, progress: CopyProgress
) -> Content:
    """Unpack a compressed file; blocks of zeros become holes.

    Args:
        path: the compressed file.
        compression: how it is compressed.
        target: the file to make.
        budget: how large it may get.
        progress: told how much of the compressed file has been read.

    Returns:
        What came out.

    Raises:
        ImageError: it is truncated or damaged, needs too much memory, or gets too large.
        HostError: the decompressor is not installed.
    """
    command, package = _DECOMPRESSORS[compression]
    limits = Limits(budget.seconds, file_size=_COMPLAINTS)
    with open_untrusted(path) as source:
        told = _position_told(source, progress)
        try:
            with confined(command, package=package, limits=limits, source=source) as output:
                return _write_sparse(_chunks(output, path, told), target, budget)
        except ImageError as error:
            raise ImageError(f"the image {path} cannot be unpacked: {error.message}", error.hint) from error


def _write_sparse(chunks: Iterable[bytes], target: Path, budget: Budget) -> Content:
    known, size, space = hashlib.sha256(), 0, 0
    with target.open("wb") as file:
        for chunk in chunks:
            known.update(chunk)
            space += _put(chunk, file)
            size += len(chunk)
            budget.check(size, space)
        file.truncate(size)
    return Content(known.hexdigest(), size)


def _put(chunk: bytes, file: BinaryIO) -> int:
    """Write what is not zero, and say how many bytes that was."""
    if chunk == _ZEROS:
        file.seek(_CHUNK, os.SEEK_CUR)
        return 0
    written = 0
    for start in range(0, len(chunk), _BLOCK):
        block = chunk[start : start + _BLOCK]
        if block == _ZEROS[: len(block)]:
            file.seek(len(block), os.SEEK_CUR)
        else:
            written += file.write(block)
    return written


def _chunks(source: IO[bytes], path: Path, told: Callable[[], None]) -> Iterator[bytes]:
    """Read to the end; a failing disk below the image is not to be taken for a full store."""
    while True:
        try:
            chunk = source.read(_CHUNK)
        except OSError as error:
            raise ImageError(f"the image {path} cannot be read: {error.strerror}") from error
        if not chunk:
            return
        told()
        yield chunk


def _position_told(source: BinaryIO, progress: CopyProgress) -> Callable[[], None]:
    """Tell how far a file has been read, by us or by a program that has it as its standard input."""
    descriptor = source.fileno()
    size = os.lseek(descriptor, 0, os.SEEK_END)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return lambda: progress(os.lseek(descriptor, 0, os.SEEK_CUR) / max(1, size))
