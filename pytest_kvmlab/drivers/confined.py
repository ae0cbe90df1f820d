"""Run a program on bytes that a stranger chose: with bounds on its memory, its time and its files."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from pytest_kvmlab.drivers.program import complaint, missing, surroundings
from pytest_kvmlab.errors import ImageError

_MEMORY = 2 * 2**30  # of addresses, not of pages: qemu-img alone reserves 400 MB
_PROCESSORS = 4
_LONGEST_OUTPUT = 16 * 2**20
_LONGEST_COMPLAINT = 4096


@dataclass(frozen=True)
class Limits:
    """What a program may use up.

    Attributes:
        seconds: until it is killed; its processor time is bounded too, which ends it even if we are gone.
        file_size: bytes of the largest file that it may write.
    """

    seconds: float
    file_size: int


def run_confined(
    arguments: Sequence[str | Path],
    *,
    package: str,
    limits: Limits,
    folder: Path | None = None,
    accept: Sequence[int] = (0,),
) -> str:
    """Run a program with limits and return what it wrote.

    Args:
        arguments: the program and its arguments; no shell sees them.
        package: the Debian package that has the program, for the remedy.
        limits: what it may use up.
        folder: where it runs.
        accept: the exit statuses that are no failure.

    Returns:
        Standard output as text.

    Raises:
        HostError: the program is not there.
        ImageError: it failed, took too long or wanted too much; the message ends with what it said.
    """
    with confined(arguments, package=package, limits=limits, folder=folder, accept=accept) as output:
        told = output.read(_LONGEST_OUTPUT)
        if len(told) == _LONGEST_OUTPUT:
            raise ImageError(f"{arguments[0]} does not stop talking about this image")
        return told.decode(errors="replace")


@contextmanager
def confined(
    arguments: Sequence[str | Path],
    *,
    package: str,
    limits: Limits,
    folder: Path | None = None,
    source: BinaryIO | None = None,
    accept: Sequence[int] = (0,),
) -> Iterator[IO[bytes]]:
    """Run a program with limits while its output is read; it is gone when the context is left.

    The limits are those of setrlimit(2), set by prlimit(1) before the program starts.

    Args:
        arguments: the program and its arguments; no shell sees them.
        package: the Debian package that has the program, for the remedy.
        limits: what it may use up.
        folder: where it runs.
        source: a file that it reads as its standard input.
        accept: the exit statuses that are no failure.

    Yields:
        Its standard output, to be read to the end.

    Raises:
        HostError: the program is not there.
        ImageError: it failed, took too long or wanted too much; the message ends with what it said.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            _limited(arguments, package, limits),
            stdin=source or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            cwd=folder,
            env=surroundings(),
        )
        late = threading.Timer(limits.seconds, process.kill)
        try:
            late.start()
            yield cast(IO[bytes], process.stdout)
            status = process.wait()
        finally:
            in_time = late.is_alive()
            late.cancel()
            process.kill()
            process.communicate()
        if not in_time:
            raise ImageError(f"{arguments[0]} did not end within {limits.seconds:g} seconds")
        if status == -signal.SIGXFSZ:
            raise ImageError(f"{arguments[0]} wanted to write more than {limits.file_size} bytes")
        if status not in accept:
            said.seek(max(0, said.seek(0, os.SEEK_END) - _LONGEST_COMPLAINT))
            raise ImageError(complaint(arguments, status, said.read()))


def _limited(arguments: Sequence[str | Path], package: str, limits: Limits) -> list[str]:
    program, path = str(arguments[0]), surroundings()["PATH"]
    if not shutil.which(program, path=path):
        raise missing(program, package)
    bounds = {
        "as": _MEMORY,
        "cpu": _PROCESSORS * int(limits.seconds + 1),
        "fsize": limits.file_size,
        "core": 0,
    }
    options = [f"--{resource}={bound}" for resource, bound in bounds.items()]
    return ["prlimit", *options, "--", *map(str, arguments)]
