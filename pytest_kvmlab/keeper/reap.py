"""Take away what a dead run left behind: processes first, then files.

Mounts, interfaces and everything that runs in a private host are gone with its PID 1: the kernel sees to
it (pid_namespaces(7)). What can be left is that PID 1 itself for a moment, QEMU processes where there is no
private host, and the run's folder.
"""

import contextlib
import itertools
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.keeper.borrowed import call_back_all
from pytest_kvmlab.keeper.run_folder import (
    RunFolder,
    grave_of,
    graves,
    owning,
    run_folders,
    unborn_folders,
)

PRIVATE_HOST = "pytest_kvmlab.keeper.private_host"
"""The module that is PID 1 of a private host, as its command line names it."""

_UNBORN_SECONDS = 60.0
_END_SECONDS = 10.0


def reap_dead_runs() -> list[RunFolder]:
    """Sweep every run of this user whose owner is dead.

    Returns:
        The runs that were dead; one that still has its folder has a process which does not end. A run that
        somebody else is sweeping is left to them.
    """
    dead = []
    for folder in [*run_folders(), *(young for young in unborn_folders() if _is_old(young.path))]:
        with owning(folder) as ours:
            if ours:
                sweep(folder)
                dead.append(folder)
    for grave in graves():
        shutil.rmtree(grave, ignore_errors=True)
    return dead


def sweep(folder: RunFolder) -> None:
    """End the processes of a run, give its dongles back, and remove its folder; the caller owns the run.

    A folder stays for the next sweep as long as a process of the run does.
    """
    if not _end(run_processes(folder), folder):
        return
    call_back_all(folder)
    shutil.rmtree(folder.memory, ignore_errors=True)
    grave = grave_of(folder)
    with contextlib.suppress(FileNotFoundError):
        folder.path.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)


def run_processes(folder: RunFolder) -> list[int]:
    """Processes of this user whose command lines show them to be of a run: its guests, its private host."""
    return [process for process in _own_processes() if _belongs(process, folder)]


def _own_processes() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if entry.name.isdecimal() and entry.stat().st_uid == os.geteuid():
                yield int(entry.name)


def _belongs(process: int, folder: RunFolder) -> bool:
    """Whether a process is of this run: its number may be used again, the run's name is not.

    Two words in a row are compared, so that nobody is taken for a guest who only looks at the run's files.
    """
    try:
        words = os.fsdecode(Path(f"/proc/{process}/cmdline").read_bytes()).split("\0")
    except OSError:
        return False
    guest = f"guest=kvl-{folder.run}-"
    return any(
        (option == "-name" and value.startswith(guest))
        or (option == PRIVATE_HOST and value == str(folder.path))
        for option, value in itertools.pairwise(words)
    )


def _end(processes: list[int], folder: RunFolder) -> bool:
    """Kill processes of a run, and wait until they are gone.

    A descriptor is opened before the last look: from then on the number cannot be another process's.
    """
    with contextlib.ExitStack() as opened:
        killed = []
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(process)
                opened.callback(os.close, handle)
                if _belongs(process, folder):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    killed.append(handle)
        deadline = Deadline(_END_SECONDS)
        return all(select.select([handle], [], [], deadline.remaining)[0] for handle in killed)


def _is_old(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _UNBORN_SECONDS
    return False
