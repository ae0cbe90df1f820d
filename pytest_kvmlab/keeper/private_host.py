"""PID 1 of a private host: gives libvirt directories of its own, runs it, and reaps what it leaves.

Runs inside the run's mount, network and PID namespaces. When this process ends, the kernel ends everything
else in the PID namespace (pid_namespaces(7)) and takes mounts and interfaces with it.
"""

import argparse
import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pytest_kvmlab.keeper.daemon import LibvirtDaemon, find_daemon, share_capabilities
from pytest_kvmlab.keeper.mounts import bind, cover
from pytest_kvmlab.keeper.protocol import receive, send
from pytest_kvmlab.keeper.run_folder import RunFolder

_STATE_DIRECTORY = Path("/var/lib/libvirt")
# What libvirtd writes below it; everything else there (images above all) stays the host's.
_STATE = frozenset(
    {"qemu", "dnsmasq", "network", "swtpm", "storage", "sanlock", "lockd", "secrets", "nwfilter"}
)
_START_SECONDS = 30.0
_LIFELINE = 0  # standard input, which ends with the supervisor


def main() -> int:
    """Run the private host of one run until standard input ends."""
    parser = argparse.ArgumentParser(prog="pytest_kvmlab.keeper.private_host")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--capabilities", type=Path, required=True)
    options = parser.parse_args()
    folder = RunFolder(options.folder)
    for quiet in (signal.SIGINT, signal.SIGHUP):
        signal.signal(quiet, signal.SIG_IGN)
    try:
        daemon = find_daemon(folder.path)
        _prepare(folder, daemon)
        share_capabilities(daemon.cache, options.capabilities)
        process = _start(daemon)
    except OSError as error:
        folder.failure_file.write_text(f"{error}\n")
        return 1
    with _listen(folder.keeper_socket) as listener:
        folder.write("host.json", {"uri": daemon.uri, "daemon": daemon.program})
        threading.Thread(target=_answer_all, args=[listener], daemon=True).start()
        status = _reap_until_the_end(process)
    if status:
        folder.failure_file.write_text(f"{daemon.program} ended; it said: {_last_words(daemon)}\n")
    return status


def _prepare(folder: RunFolder, daemon: LibvirtDaemon) -> None:
    _raise_loopback()
    for path, content in daemon.files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for path in daemon.directories():
        path.mkdir(parents=True, exist_ok=True)
    for system, private in daemon.covered_directories().items():
        private.mkdir(parents=True, exist_ok=True)
        cover(system, private, keep=_others(system) if system == _STATE_DIRECTORY else frozenset())
    for system, more in daemon.covered_files().items():
        private = folder.path / "etc" / system.name
        private.write_text(system.read_text() + more)
        bind(private, system)


def _others(state: Path) -> frozenset[str]:
    with contextlib.suppress(OSError):
        return frozenset(entry.name for entry in state.iterdir()) - _STATE
    return frozenset()


def _raise_loopback() -> None:
    """Switch `lo` on: a new network namespace has it down (netdevice(7), SIOCSIFFLAGS)."""
    up_and_running, set_flags = 0x1 | 0x40, 0x8914
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh", b"lo", up_and_running))


def _start(daemon: LibvirtDaemon) -> "subprocess.Popen[bytes]":
    """Start libvirt and wait until its socket accepts.

    Raises:
        OSError: it ended, or does not answer; the message carries the end of its log.
    """
    with daemon.output.open("wb") as output:
        process = subprocess.Popen(
            daemon.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | daemon.environment,
        )
    end = time.monotonic() + _START_SECONDS
    while not _accepts(daemon.socket):
        if process.poll() is not None or time.monotonic() > end:
            raise OSError(
                f"{daemon.program} does not answer on {daemon.socket}; it said: {_last_words(daemon)}"
            )
        time.sleep(0.01)
    return process


def _last_words(daemon: LibvirtDaemon) -> str:
    said = "".join(
        log.read_text(errors="replace") for log in (daemon.warnings, daemon.output) if log.exists()
    )
    return said.strip()[-2000:] or "nothing"


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as line, contextlib.suppress(OSError):
        line.connect(str(path))
        return True
    return False


def _reap_until_the_end(libvirt: "subprocess.Popen[bytes]") -> int:
    """Reap orphans until the lifeline ends or libvirt does.

    libvirt waits for a killed QEMU to vanish, so a PID 1 that reaps late makes every end slow.
    """
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        if libvirt.pid in _reap_all():
            return 1
        ready, _, _ = select.select([_LIFELINE, wake], [], [])
        if _LIFELINE in ready and not os.read(_LIFELINE, 1):
            return 0
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)


def _reap_all() -> set[int]:
    gone = set()
    with contextlib.suppress(ChildProcessError):
        while process := os.waitpid(-1, os.WNOHANG)[0]:
            gone.add(process)
    return gone


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(64)
    return listener


def _answer_all(listener: socket.socket) -> None:
    while True:
        line, _ = listener.accept()
        threading.Thread(target=_answer, args=[line], daemon=True).start()


def _answer(line: socket.socket) -> None:
    with line, contextlib.suppress(OSError, ValueError):
        line.settimeout(60)
        request, _ = receive(line)
        _VERBS[request["do"]](line, request)


def _dial(line: socket.socket, request: dict[str, Any]) -> None:
    """Open a TCP connection inside this network namespace and hand it out."""
    address = (str(request["address"]), int(request["port"]))
    try:
        with socket.create_connection(address, timeout=float(request["timeout"])) as connection:
            connection.settimeout(None)
            send(line, {"ok": True}, connection.fileno())
    except OSError as error:
        send(line, {"ok": False, "errno": error.errno, "error": str(error)})


_VERBS = {"dial": _dial}

if __name__ == "__main__":
    sys.exit(main())
