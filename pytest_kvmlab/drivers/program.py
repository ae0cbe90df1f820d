"""Run a program of the host to its end: one way of giving it an environment, a deadline and an error."""

import os
import subprocess
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
) -> str:
    """Run a program and return what it wrote.

    Args:
        arguments: the program and its arguments; no shell sees them.
        package: the Debian package that has the program, for the remedy.
        timeout: seconds until the program is killed.
        folder: where it runs.
        environment: variables to set besides the present ones.
        accept: the exit statuses that are no failure.

    Returns:
        Standard output as text.

    Raises:
        HostError: the program is not there.
        ImageError: it failed or took too long; the message ends with what it said.
    """
    search = f"{os.environ.get('PATH', os.defpath)}:{_ADMINISTRATORS_PATH}"
    settings = {**os.environ, "PATH": search, "LC_ALL": "C", **(environment or {})}
    try:
        ended = subprocess.run(
            [str(argument) for argument in arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            cwd=folder,
            env=settings,
        )
    except FileNotFoundError as error:
        raise HostError(
            f"the program {arguments[0]} is not there", f"install the package {package}", looked_at=[search]
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"{arguments[0]} did not end within {timeout:g} seconds") from error
    if ended.returncode not in accept:
        raise ImageError(_complaint(arguments, ended))
    return ended.stdout.decode(errors="replace")


def _complaint(arguments: Sequence[str | Path], ended: subprocess.CompletedProcess[bytes]) -> str:
    said = (ended.stderr or ended.stdout).decode(errors="replace").strip().splitlines()
    tail = "\n".join(f"  {line}" for line in said[-_LINES_OF_A_COMPLAINT:])
    return f"{arguments[0]} {arguments[1]} ended with status {ended.returncode}\n{tail}".rstrip()
