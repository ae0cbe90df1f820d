"""Run a program of the host's to its end, or say why it failed."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence

from pytest_kvmlab.errors import HostError

_SBIN = "/usr/sbin:/sbin:/usr/local/sbin"  # not in the PATH of every user
_SECONDS = 30.0


def find_program(name: str, *, check: str = "networks") -> str:
    """Find a program, in the folders for administrators, too.

    Args:
        name: the program.
        check: the check of `kvmlab doctor` that looks for it.

    Raises:
        HostError: it is not installed.
    """
    if found := shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"):
        return found
    raise HostError(f"the program {name} is missing", "run: kvmlab doctor", check=check)


def run_program(
    command: Sequence[str],
    *,
    text: str = "",
    descriptors: Iterable[int] = (),
    check: str = "networks",
) -> str:
    """Run a program to its end.

    Args:
        command: its name and arguments.
        text: its standard input.
        descriptors: open files that it inherits.
        check: the check of `kvmlab doctor` that looks for it.

    Returns:
        What it printed.

    Raises:
        HostError: it is missing, does not end, or fails; with what it said.
    """
    name, *arguments = command
    try:
        ran = subprocess.run(
            [find_program(name, check=check), *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            pass_fds=tuple(descriptors),
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise HostError(f"'{' '.join(command)}' does not end within {_SECONDS:g} s") from error
    if ran.returncode:
        said = ran.stderr.strip() or f"it ended with {ran.returncode}"
        raise HostError(f"'{' '.join(command)}' failed: {said}")
    return ran.stdout
