"""The owner's end of the keeper: start it, ask it, keep or end a run."""

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest_kvmlab
from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.protocol import ask
from pytest_kvmlab.keeper.run_folder import RunFolder, create_run_folder

_END_SECONDS = 30.0


class Keeper:
    """A run that this process owns, and the process that keeps it.

    Args:
        record: who owns the run and why, for `kvmlab ps`.
        capabilities: start a private libvirt host, which remembers in this folder what it found out about
            QEMU; None starts none. Its readiness is not waited for.

    Raises:
        HostError: the run's folder cannot be made.
    """

    def __init__(self, record: dict[str, Any], *, capabilities: Path | None) -> None:
        self.folder, lock = create_run_folder(record)
        self._process = _start(self.folder, lock, capabilities)
        # The keeper holds the lock now. Two holders would keep a run of which only one is left alive.
        os.close(lock)

    def keep(self, seconds: float) -> None:
        """Leave the run to its keeper for this long, instead of ending it with its owner."""
        self._say(f"keep {seconds:.0f}\n".encode())

    def close(self) -> None:
        """End the run, or leave it to its keeper if it is to be kept.

        Raises:
            HostError: the keeper does not come to an end.
        """
        kept = self._process.stdin is None or self._closed_kept
        if self._process.stdin is not None:
            self._process.stdin.close()
        if kept:
            return
        try:
            self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise HostError(
                f"the keeper of run {self.folder.run} (process {self._process.pid}) does not end",
                "run: kvmlab reap",
            ) from error

    _closed_kept = False

    def _say(self, words: bytes) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(words)
            self._process.stdin.flush()
            self._closed_kept = True


def _start(folder: RunFolder, lock: int, capabilities: Path | None) -> "subprocess.Popen[bytes]":
    program = [
        sys.executable,
        "-P",
        "-m",
        "pytest_kvmlab.keeper.supervisor",
        str(folder.path),
        "--lock",
        str(lock),
    ]
    wish = ["--capabilities", str(capabilities)] if capabilities else []
    with (folder.path / "keeper.log").open("wb") as log:
        return subprocess.Popen(
            [*program, *wish],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[lock],
            start_new_session=True,
            env=_environment(),
        )


def _environment() -> dict[str, str]:
    """This environment, with the package importable wherever it was imported from here."""
    package = str(Path(pytest_kvmlab.__file__).parent.parent)
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
    request = {"do": "dial", "address": address, "port": port, "timeout": timeout}
    try:
        answer, descriptor = ask(folder.keeper_socket, request, timeout=timeout + 5)
    except (FileNotFoundError, ConnectionError) as error:
        raise HostError(
            f"the keeper of run {folder.run} is gone: {error}", looked_at=[folder.keeper_socket]
        ) from error
    if descriptor is None:
        raise OSError(answer.get("errno") or 0, answer.get("error", "no reason given"))
    return socket.socket(fileno=descriptor)


def end_run(folder: RunFolder) -> bool:
    """Ask the keeper of a run to end it, and wait until it has.

    Returns:
        Whether there was a keeper, and it ended.
    """
    process = folder.read("keeper.json").get("pid")
    try:
        handle = os.pidfd_open(int(process or -1))
    except (OSError, ValueError):
        return False
    try:
        if not _keeps(int(process or -1), folder):
            return False
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        return bool(select.select([handle], [], [], _END_SECONDS)[0])
    finally:
        os.close(handle)


def _keeps(process: int, folder: RunFolder) -> bool:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(folder.path) in words
