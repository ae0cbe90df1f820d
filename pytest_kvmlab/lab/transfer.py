"""Bytes on their way from one file to another: counted, hashed, and told about."""

import hashlib
from collections.abc import Callable
from typing import BinaryIO

from pytest_kvmlab.progress import Progress, Transfer

_PIECE = 2**20


class Meter:
    """How far a transfer is; says so at each hundredth of it.

    Args:
        what: what is being done.
        total: the bytes of the whole.
        progress: told.
    """

    def __init__(self, what: str, total: int, progress: Progress) -> None:
        self._step = Transfer(what, total)
        self._progress = progress
        self._done = 0
        progress(self._step, 0.0)

    def add(self, count: int) -> None:
        """Take note that more bytes have arrived."""
        before, self._done = self._done, self._done + count
        total = max(1, self._step.total)
        if before * 100 // total != self._done * 100 // total:
            self._progress(self._step, min(1.0, self._done / total))


def pour(source: BinaryIO, size: int, write: Callable[[bytes], object], meter: Meter) -> str:
    """Move bytes, and say what they were.

    Args:
        source: where they come from.
        size: how many.
        write: takes each piece.
        meter: counts them.

    Returns:
        Their SHA-256, hexadecimal.

    Raises:
        EOFError: there are fewer.
    """
    digest, left = hashlib.sha256(), size
    while left:
        piece = source.read(min(left, _PIECE))
        if not piece:
            raise EOFError
        digest.update(piece)
        write(piece)
        meter.add(len(piece))
        left -= len(piece)
    return digest.hexdigest()
