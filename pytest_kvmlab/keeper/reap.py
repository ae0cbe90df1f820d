"""Take away what a dead run left behind: processes first, then files.

Namespaces, mounts, interfaces and the guests of a private host are gone with the keeper: the kernel sees
to it. What can be left is the run's folder, and, without a private host, QEMU processes.
"""

import contextlib
import os
import re
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from pytest_kvmlab.keeper.run_folder import RunFolder, owning, run_folders, unborn_folders

_UNBORN_SECONDS = 60.0


def reap_dead_runs() -> list[RunFolder]:
    """Sweep every run of this user whose owner is dead.

    Returns:
        The runs that were swept. A run that somebody else is sweeping is left to them.
    """
    swept = []
    for folder in run_folders() + [young for young in unborn_folders() if _is_old(young.path)]:
        with owning(folder) as dead:
            if dead:
                sweep(folder)
                swept.append(folder)
    return swept


def sweep(folder: RunFolder) -> None:
    """End the processes of a run and remove its folder; the caller owns the run.

    The lock file goes last: whoever dies half-way leaves a dead run for the next.
    """
    for process in run_processes(folder):
        _end(process, folder)
    for entry in sorted(folder.path.iterdir()):
        if entry == folder.lock:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    shutil.rmtree(folder.path, ignore_errors=True)


def run_processes(folder: RunFolder) -> list[int]:
    """QEMU processes of a run that no namespace takes along, by process id."""
    return [process for process in _recorded_processes(folder) if _belongs(process, folder)]


def _recorded_processes(folder: RunFolder) -> Iterator[int]:
    """Process ids that the embedded driver wrote down: `<root>/run/qemu/<guest>.pid`."""
    for pid_file in folder.path.glob("embed-*/run/qemu/kvl-*.pid"):
        with contextlib.suppress(OSError, ValueError):
            yield int(pid_file.read_text())


def _belongs(process: int, folder: RunFolder) -> bool:
    """Whether a process is a guest of this run: ids are used again, names of runs are not."""
    try:
        command_line = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return re.search(rf"(^|\0)guest=kvl-{folder.run}-", command_line) is not None


def _end(process: int, folder: RunFolder) -> None:
    """Kill one process and wait until it is gone; a descriptor keeps its id from being used again."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(process)
        try:
            if _belongs(process, folder):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                _wait_until_gone(handle)
        finally:
            os.close(handle)


def _wait_until_gone(handle: int, seconds: float = 10.0) -> None:
    select.select([handle], [], [], seconds)


def _is_old(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _UNBORN_SECONDS
    return False
