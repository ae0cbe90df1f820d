"""The file that an image is exported to: a tar archive in one gzip stream, which `tar xzf` can read.

Its first member is the manifest, the others are the files that the manifest lists, in that order.

The headers are read here, a block at a time, with `tarfile` for the fields only: its own reader obeys
extended headers, loads as much of them into memory as a stranger says, and knows links, devices and paths, of
which none has any business in an image.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from pytest_kvmlab.errors import ImageError
from pytest_kvmlab.lab.transfer import Meter, pour

_BLOCK = tarfile.BLOCKSIZE
# tar pads its archives to whole records.
_RECORD = tarfile.RECORDSIZE
# Measured on disks and kernels: twice as fast as gzip's own default, and a fortieth larger.
_LEVEL = 4


@contextmanager
def packed(file: BinaryIO) -> Iterator[BinaryIO]:
    """Compress what is written; equal content gives equal bytes.

    Args:
        file: where the compressed bytes go.
    """
    with gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=file, mtime=0) as stream:
        yield cast(BinaryIO, stream)
        stream.write(bytes(2 * _BLOCK))


def pack(stream: BinaryIO, name: str, size: int, source: BinaryIO, meter: Meter) -> str:
    """Add a file.

    Args:
        stream: what `packed` gave.
        name: what it is called.
        size: its bytes.
        source: where they are.
        meter: counts them.

    Returns:
        Its SHA-256, hexadecimal.

    Raises:
        EOFError: the source has fewer bytes.
    """
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o444
    stream.write(header.tobuf(tarfile.GNU_FORMAT))
    digest = pour(source, size, stream.write, meter)
    stream.write(bytes(-size % _BLOCK))
    return digest


@contextmanager
def unpacked(file: Path) -> Iterator[BinaryIO]:
    """Read what a file has compressed.

    Args:
        file: an archive, which anybody may have made.

    Raises:
        ImageError: it cannot be opened, or reading showed that it is truncated, damaged or something else.
    """
    try:
        packed_file = file.open("rb")
    except OSError as error:
        raise ImageError(f"{file} cannot be read: {error.strerror}") from error
    with packed_file, gzip.open(packed_file) as stream, _told(file):
        yield cast(BinaryIO, _Unpacked(cast(BinaryIO, stream), file))


class _Unpacked:
    """A stream that says itself what is wrong with it: an error of a disk may be another file's."""

    def __init__(self, stream: BinaryIO, file: Path) -> None:
        self._stream = stream
        self._file = file

    def read(self, count: int) -> bytes:
        with _told(self._file):
            return self._stream.read(count)


@contextmanager
def _told(file: Path) -> Iterator[None]:
    try:
        yield
    except EOFError:
        raise ImageError(f"{file} is truncated", "copy it again from where it was exported") from None
    except (gzip.BadGzipFile, zlib.error, tarfile.HeaderError) as error:
        raise ImageError(f"{file} is damaged, or no exported image: {error}") from error
    except OSError as error:
        raise ImageError(f"{file} cannot be read: {error.strerror}") from error


def next_size(stream: BinaryIO, name: str) -> int:
    """Read the header of the next file.

    Args:
        stream: what `unpacked` gave, behind the last file.
        name: what the file should be called.

    Returns:
        Its size in bytes, as its header has it.

    Raises:
        ImageError: it is another one, or no plain file.
        EOFError: the archive ends.
        tarfile.HeaderError: this is no header.
    """
    header = tarfile.TarInfo.frombuf(_exactly(stream, _BLOCK), "utf-8", "replace")
    if header.name != name or header.type != tarfile.REGTYPE:
        raise ImageError(f"the archive has {header.name!r} where the file {name!r} should be")
    return header.size


def unpack(stream: BinaryIO, size: int, target: BinaryIO, meter: Meter) -> str:
    """Read the content of the next file, whose header was read.

    Args:
        stream: what `unpacked` gave.
        size: its bytes.
        target: where they go; runs of zeros become holes.
        meter: counts them.

    Returns:
        Its SHA-256, hexadecimal.

    Raises:
        EOFError: the archive ends.
    """

    def write(piece: bytes) -> None:
        if piece.count(0) == len(piece):
            target.seek(len(piece), 1)
        else:
            target.write(piece)

    digest = pour(stream, size, write, meter)
    target.truncate(size)
    _exactly(stream, -size % _BLOCK)
    return digest


def unpack_end(stream: BinaryIO) -> None:
    """See that nothing more comes, and that the checksum of the whole is right.

    Args:
        stream: what `unpacked` gave, behind the last file.

    Raises:
        ImageError: something follows.
    """
    rest = stream.read(2 * _RECORD)
    if any(rest) or stream.read(1):
        raise ImageError("the archive has more in it than its manifest says")


def _exactly(stream: BinaryIO, count: int) -> bytes:
    block = stream.read(count)
    if len(block) < count:
        raise EOFError
    return block
