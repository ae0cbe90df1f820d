"""Bytes on their way from one file to another: counted, hashed, told about, or not moved at all."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from pytest_kvmlab.progress import Progress, Transfer

_PIECE = 2**20


def share(source: Path, target: Path) -> None:
    """One file under two names where that is possible: not of another user's file, for example (proc(5)).

    Args:
        source: a file that nobody writes to.
        target: its second name, or a copy of it.

    Raises:
        OSError: there is no room, or `target` cannot be written.
    """
    try:
        os.link(source, target)
    except OSError:  # nor on every file system, nor as often as one likes
        shutil.copyfile(source, target)


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
