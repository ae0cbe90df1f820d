"""The owner's end of the keeper: start it, ask it, keep or end a run."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.protocol import Dial, dial_through
from pytest_kvmlab.keeper.reap import sweep
from pytest_kvmlab.keeper.run_folder import RunFolder, create_run_folder, owning

_SUPERVISOR = "pytest_kvmlab.keeper.supervisor"
_END_SECONDS = 30.0


class Keeper:
    """A run that this process owns, and the process that keeps it.

    Args:
        record: who owns the run and why, for `kvmlab ps`.
        capabilities: start a private libvirt host, which remembers in this folder what it found out about
            QEMU; None starts none. Its readiness is not waited for.

    Raises:
        HostError: the run's folder cannot be made, or its keeper cannot be started.
    """

    def __init__(self, record: dict[str, Any], *, capabilities: Path | None) -> None:
        self.folder, lock = create_run_folder(record)
        self._kept = False
        hears, says = os.pipe()
        self._lifeline = os.fdopen(says, "wb", buffering=0)
        try:
            self._process = _start(self.folder, lock, hears, capabilities)
        except OSError as error:
            self._lifeline.close()
            sweep(self.folder)
            raise HostError(f"the keeper of a run cannot be started: {error}") from error
        finally:
            # The keeper holds the lock now. Two holders would keep a run of which only one is left alive.
            os.close(lock)
            os.close(hears)

    def keep(self, seconds: float) -> None:
        """Leave the run to its keeper for this long. It does not end with this process any more.

        Raises:
            HostError: the keeper is gone, and with it what was to be kept.
        """
        try:
            self._say_last(f"keep {seconds:.0f}\n".encode())
        except BrokenPipeError as error:
            raise HostError(f"nothing is kept: the keeper of run {self.folder.run} is gone") from error
        self._kept = True
        # It is meant to run on; without this Popen would warn of it when it is forgotten.
        self._process.returncode = 0

    def close(self) -> None:
        """End the run, unless it is to be kept. What a keeper that died left behind is taken away, too.

        Raises:
            HostError: the keeper does not come to an end.
        """
        if self._kept:
            return
        with contextlib.suppress(BrokenPipeError):
            self._say_last(b"end\n")
        try:
            self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise HostError(
                f"the keeper of run {self.folder.run} (process {self._process.pid}) does not end",
                "run: kvmlab reap",
            ) from error
        with owning(self.folder) as ours:
            if ours:
                sweep(self.folder)

    def _say_last(self, words: bytes) -> None:
        """Say something and hang up. The words count, since a forked child may still hold the line open."""
        if not self._lifeline.closed:
            with self._lifeline as lifeline:
                lifeline.write(words)


def _start(
    folder: RunFolder, lock: int, lifeline: int, capabilities: Path | None
) -> "subprocess.Popen[bytes]":
    program = [sys.executable, "-P", "-m", _SUPERVISOR, str(folder.path)]
    program += ["--lock", str(lock), "--owner", str(os.getpid())]
    wish = ["--capabilities", str(capabilities.absolute())] if capabilities else []
    with folder.keeper_log.open("wb") as log:
        return subprocess.Popen(
            [*program, *wish],
            stdin=lifeline,
            stdout=log,
            stderr=log,
            pass_fds=[lock],
            start_new_session=True,
            cwd="/",  # kept guests must not hold the file system that pytest was started on
            env=_environment(),
        )


def _environment() -> dict[str, str]:
    """This environment, with the package importable wherever it was imported from here."""
    package = str(Path(__file__).absolute().parents[2])
    before = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{before}" if before else package}


def dial(folder: RunFolder, address: str, port: int, *, timeout: float) -> socket.socket:
    """Open a TCP connection inside the network namespace of a run's private host.

    Args:
        folder: the run's folder.
        address: an IP address inside the namespace.
        port: a TCP port there.
        timeout: seconds for the connection to be accepted.

    Returns:
        The connected socket; it keeps working here, outside the namespace (network_namespaces(7)).

    Raises:
        OSError: nobody accepts there, or not in time.
        HostError: the keeper is gone.
    """
    request = Dial(address, port, timeout)
    return dial_through(folder.keeper_socket, request, who=f"the keeper of run {folder.run} is")


def dial_lan(folder: RunFolder, lan: str, address: str, port: int, *, timeout: float) -> socket.socket:
    """Open a TCP connection inside the networks of a lab.

    Args:
        folder: the run's folder.
        lan: the networks' name among those of the run.
        address: an IP address in one of them.
        port: a TCP port there.
        timeout: seconds for the connection to be accepted.

    Returns:
        The connected socket; it keeps working here.

    Raises:
        OSError: nobody accepts there, or not in time.
        HostError: the networks are gone.
    """
    request = Dial(address, port, timeout)
    return dial_through(folder.lan_socket(lan), request, who="the networks of the lab are")


def hand_over_locks(folder: RunFolder) -> None:
    """Let the keeper of a run hold the locks of the guests that were left to it, and wait until it does.

    Args:
        folder: the run's folder, with the records of these guests.

    Raises:
        HostError: the keeper is gone.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(_END_SECONDS)
        try:
            line.connect(str(folder.handover_socket))
            line.recv(1)
        except OSError as error:
            raise HostError(f"nothing is kept: the keeper of run {folder.run} is gone: {error}") from error


def end_run(folder: RunFolder) -> bool:
    """Ask the keeper of a run to end it, and wait until it has.

    Returns:
        Whether there was a keeper, and it ended.
    """
    try:
        process = int(folder.read("keeper.json")["pid"])
        handle = os.pidfd_open(process)
    except (OSError, KeyError, ValueError):
        return False
    try:
        if not _keeps(process, folder):
            return False
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        return bool(select.select([handle], [], [], _END_SECONDS)[0])
    finally:
        os.close(handle)


def _keeps(process: int, folder: RunFolder) -> bool:
    try:
        words = os.fsdecode(Path(f"/proc/{process}/cmdline").read_bytes()).split("\0")
    except OSError:
        return False
    return (_SUPERVISOR, str(folder.path)) in pairwise(words)
