"""Run a program of the host to its end: one way of giving it an environment, a deadline and an error."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_kvmlab.errors import HostError, ImageError

_ADMINISTRATORS_PATH = "/usr/sbin:/sbin"  # mke2fs lives there, and is of use to everyone
_LINES_OF_A_COMPLAINT = 5


def run(
    arguments: Sequence[str | Path],
    *,
    package: str,
    timeout: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    accept: Sequence[int] = (0,),
    feed: bytes = b"",
    failure: re.Pattern[bytes] | None = None,
) -> str:
    """Run a program and return what it wrote.

    Args:
        arguments: the program and its arguments; no shell sees them.
        package: the Debian package that has the program, for the remedy.
        timeout: seconds until the program is killed.
        folder: where it runs.
        environment: variables to set besides the present ones.
        accept: the exit statuses that are no failure.
        feed: what it reads from standard input.
        failure: what on standard error means that it failed, for a program whose status does not tell.

    Returns:
        Standard output as text.

    Raises:
        HostError: the program is not there.
        ImageError: it failed or took too long; the message ends with what it said.
    """
    settings = {**surroundings(), **(environment or {})}
    try:
        ended = subprocess.run(
            [str(argument) for argument in arguments],
            check=False,
            input=feed,
            capture_output=True,
            timeout=timeout,
            cwd=folder,
            env=settings,
        )
    except FileNotFoundError as error:
        raise missing(arguments[0], package) from error
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"{arguments[0]} did not end within {timeout:g} seconds") from error
    if ended.returncode not in accept or (failure and failure.search(ended.stderr)):
        raise ImageError(complaint(arguments, ended.returncode, ended.stderr or ended.stdout))
    return ended.stdout.decode(errors="replace")


def leave_running(module: str, *arguments: str) -> None:
    """Start a module of ours as a process that does not end with this one, nor with its terminal.

    Args:
        module: its dotted name.
        arguments: what it is told.
    """
    subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def surroundings() -> dict[str, str]:
    """The environment that programs get: the present one, with the administrators' programs, in English."""
    search = f"{os.environ.get('PATH', os.defpath)}:{_ADMINISTRATORS_PATH}"
    return {**os.environ, "PATH": search, "LC_ALL": "C"}


def missing(program: str | Path, package: str) -> HostError:
    """Say that a program is not there, and which Debian package has it."""
    hint, search = f"install the package {package}", surroundings()["PATH"]
    return HostError(f"the program {program} is not there", hint, looked_at=[search])


def complaint(arguments: Sequence[str | Path], status: int, said: bytes) -> str:
    """Say that a program failed, with the end of what it said.

    Args:
        arguments: the program and its arguments, of which the first is told.
        status: its exit status, negative if a signal ended it.
        said: what it wrote.
    """
    lines = said.decode(errors="replace").strip().splitlines()
    tail = "\n".join(f"  {line}" for line in lines[-_LINES_OF_A_COMPLAINT:])
    return f"{arguments[0]} {arguments[1]} ended with status {status}\n{tail}".rstrip()
