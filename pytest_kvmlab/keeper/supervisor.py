"""The keeper of a run: holds its lock, starts its private host, and sweeps up when the run is over.

It is in a session of its own, so that Ctrl-C on the terminal does not reach it. It ends when its owner says
so, when its standard input ends (a pipe, the run's lifeline), and when the owner's process does: a child that
the owner forked may hold the pipe open.
"""

import argparse
import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pytest_kvmlab.keeper.conversations import listen
from pytest_kvmlab.keeper.namespaces import unshare_command
from pytest_kvmlab.keeper.reap import PRIVATE_HOST, sweep
from pytest_kvmlab.keeper.run_folder import KEPT, RunFolder, tail_of
from pytest_kvmlab.keeper.wake import wake_on

_LIFELINE = 0  # standard input: the owner's end is Keeper's
_END_SECONDS = 10.0


def main() -> int:
    """Keep one run until its owner is done or dead, or, if it is to be kept, until its time is up."""
    parser = argparse.ArgumentParser(prog="pytest_kvmlab.keeper.supervisor")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lock", type=int, required=True, help="the inherited descriptor of the run's lock")
    parser.add_argument("--owner", type=int, required=True, help="the process that the run belongs to")
    parser.add_argument(
        "--capabilities", type=Path, help="start a private host, whose libvirt remembers here"
    )
    options = parser.parse_args()
    os.set_inheritable(options.lock, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended = wake_on(signal.SIGTERM, signal.SIGHUP)
    folder = RunFolder(options.folder)
    try:
        _keep(folder, _handle_of_parent(options.owner), ended, options.capabilities)
    finally:
        sweep(folder)
    return 0


def _handle_of_parent(process: int) -> int:
    """A descriptor that becomes readable when the process that started this one ends (pidfd_open(2)).

    Raises:
        ProcessLookupError: it has ended already.
    """
    handle = os.pidfd_open(process)
    if os.getppid() != process:
        raise ProcessLookupError(f"the owner, process {process}, is gone")
    return handle


def _keep(folder: RunFolder, owner: int, ended: int, capabilities: Path | None) -> None:
    folder.write("keeper.json", {"pid": os.getpid()})
    host = _start_private_host(folder, capabilities) if capabilities else None
    hosts = [os.pidfd_open(host.pid)] if host else []
    try:
        with _Handover(folder) as handover:
            if kept := _kept_seconds(_last_word(folder, owner, ended, hosts, handover)):
                folder.write(KEPT, {"until": time.time() + kept})
                select.select([ended, *hosts], [], [], kept)
    finally:
        _end(host)


class _Handover:
    """Takes over the locks of what kept guests stand on, as soon as a process of the run has left one.

    That process holds them until it is answered, so that there is no moment in which nobody does (flock(2)).
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._open = contextlib.ExitStack()
        self._line = self._open.enter_context(listen(folder.handover_socket))
        self._held: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def fileno(self) -> int:
        """What becomes readable when somebody has left a guest."""
        return self._line.fileno()

    def take(self) -> None:
        """Hold the locks of all guests that were left; the end of the connection is the answer."""
        asks, _ = self._line.accept()
        with asks:
            for guest in self._folder.guests.glob(f"*/{KEPT}"):
                for lock in {*self._folder.read(str(guest)).get("locks", ())} - self._held:
                    with contextlib.suppress(OSError):  # removed by hand, perhaps: the guest is to stay
                        self._open.enter_context(_locked(Path(lock)))
                        self._held.add(lock)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("rb") as opened:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def _start_private_host(folder: RunFolder, capabilities: Path) -> "subprocess.Popen[bytes]":
    inside = [sys.executable, "-P", "-m", PRIVATE_HOST, str(folder.path), "--capabilities", str(capabilities)]
    with folder.host_log.open("wb") as log:
        return subprocess.Popen(
            unshare_command(inside),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )


def _last_word(folder: RunFolder, owner: int, ended: int, hosts: list[int], handover: _Handover) -> bytes:
    """What the owner says at the end; nothing if it dies, or if this process is told to end.

    A private host that dies meanwhile is recorded, so that the owner's next question gets the reason.
    """
    said = b""
    line = handover.fileno()
    while not said.endswith(b"\n"):
        ready, _, _ = select.select([_LIFELINE, owner, ended, line, *hosts], [], [])
        if line in ready:
            handover.take()
        if _LIFELINE in ready:
            piece = os.read(_LIFELINE, 4096)
            if not piece:
                return b""
            said += piece
        elif owner in ready or ended in ready:
            return b""
        elif not {*hosts}.isdisjoint(ready):
            folder.tell_failure(f"its PID 1 ended; it said: {tail_of(folder.host_log) or 'nothing'}")
            hosts = []
    return said


def _kept_seconds(said: bytes) -> float:
    """The seconds in `keep SECONDS`, the one wish that an owner may have; 0 if it has none."""
    words = said.split()
    return float(words[1]) if words[:1] == [b"keep"] else 0.0


def _end(host: "subprocess.Popen[bytes] | None") -> None:
    """End the private host; its PID 1 is gone only after everything else in its namespace is.

    One that does not end in time is left to the sweep, which kills it.
    """
    if host is None or host.stdin is None:
        return
    host.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        host.wait(timeout=_END_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
