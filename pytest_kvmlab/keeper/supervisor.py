"""The keeper of a run: holds its lock, starts its private host, and sweeps up when the run is over.

It is in a session of its own, so that Ctrl-C on the terminal does not reach it, and ends when its standard
input does: that pipe is the run's lifeline, and the kernel closes it however the run dies.
"""

import argparse
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from pytest_kvmlab.keeper.namespaces import unshare_command
from pytest_kvmlab.keeper.reap import sweep
from pytest_kvmlab.keeper.run_folder import RunFolder


def main() -> int:
    """Keep one run until its lifeline ends, or, if it is to be kept, until its time is up."""
    parser = argparse.ArgumentParser(prog="pytest_kvmlab.keeper.supervisor")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lock", type=int, required=True, help="the inherited descriptor of the run's lock")
    parser.add_argument(
        "--capabilities", type=Path, help="start a private host, whose libvirt remembers here"
    )
    options = parser.parse_args()
    os.set_inheritable(options.lock, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folder = RunFolder(options.folder)
    folder.write("keeper.json", {"pid": os.getpid()})
    host = _start_private_host(folder, options.capabilities) if options.capabilities else None
    try:
        if kept := _kept_seconds(_read_lifeline(folder, host)):
            folder.write("kept.json", {"until": time.time() + kept})
            _wait(host, kept)
    finally:
        _end(host)
        sweep(folder)
    return 0


def _start_private_host(folder: RunFolder, capabilities: Path) -> "subprocess.Popen[bytes]":
    program = [sys.executable, "-P", "-m", "pytest_kvmlab.keeper.private_host"]
    inside = [*program, str(folder.path), "--capabilities", str(capabilities)]
    with (folder.path / "private-host.log").open("wb") as log:
        return subprocess.Popen(
            unshare_command(inside),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )


def _read_lifeline(folder: RunFolder, host: "subprocess.Popen[bytes] | None") -> bytes:
    """What the owner said before its end of the lifeline closed.

    A private host that dies meanwhile is recorded, so that the owner's next question gets the reason.
    """
    said, lifeline = b"", sys.stdin.fileno()
    watched = {lifeline} | ({os.pidfd_open(host.pid)} if host else set())
    while True:
        ready, _, _ = select.select(watched, [], [])
        if lifeline not in ready:
            _record_failure(folder)
            watched = {lifeline}
        elif piece := os.read(lifeline, 4096):
            said += piece
        else:
            return said


def _kept_seconds(said: bytes) -> float:
    """The seconds in `keep SECONDS`, the one thing an owner may say; 0 if it said nothing."""
    words = said.split()
    return float(words[1]) if words[:1] == [b"keep"] else 0.0


def _wait(host: "subprocess.Popen[bytes] | None", seconds: float) -> None:
    select.select([os.pidfd_open(host.pid)] if host else [], [], [], seconds)


def _record_failure(folder: RunFolder) -> None:
    if not folder.failure_file.exists():
        log = (folder.path / "private-host.log").read_text(errors="replace").strip()
        folder.failure_file.write_text(log[-2000:] or "the private host ended without a word")


def _end(host: "subprocess.Popen[bytes] | None") -> None:
    """End the private host; its PID 1 is gone only after everything else in its namespace is."""
    if host is None or host.stdin is None:
        return
    host.stdin.close()
    try:
        host.wait(timeout=10)
    except subprocess.TimeoutExpired:
        host.kill()
        host.wait()


if __name__ == "__main__":
    sys.exit(main())
