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
import time
from functools import partial
from pathlib import Path

from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.conversations import answer_in_threads, dial_for, listen
from pytest_kvmlab.keeper.daemon import LibvirtDaemon, find_daemon, share_capabilities
from pytest_kvmlab.keeper.mounts import bind, cover, make_read_only
from pytest_kvmlab.keeper.protocol import Dial, OpenLan, receive
from pytest_kvmlab.keeper.run_folder import RunFolder, tail_of
from pytest_kvmlab.keeper.wake import wake_on

_SCRATCH = Path("/tmp")  # noqa: S108 -- swtpm_setup writes there, whatever it is told
# Of the namespace of whoever writes there; a lan with a way out has to forward packets.
_NETWORK_SETTINGS = Path("/proc/sys/net")
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
        options.capabilities.mkdir(parents=True, exist_ok=True)
        _prepare(folder, daemon, options.capabilities)
        share_capabilities(daemon.cache, options.capabilities)
        process = _start(daemon)
    except (OSError, HostError) as error:
        folder.tell_failure(str(error))
        return 1
    with listen(folder.keeper_socket) as listener:
        folder.write("host.json", {"uri": daemon.uri, "daemon": daemon.program})
        answer_in_threads(listener, partial(_answer, folder))
        died = _reap_until_the_end(process)
    if died:
        folder.tell_failure(f"{daemon.program} {died}; it said: {_last_words(daemon)}")
    return 1 if died else 0


def _prepare(folder: RunFolder, daemon: LibvirtDaemon, capabilities: Path) -> None:
    _raise_loopback()
    writable = [folder.path, capabilities, _SCRATCH, _NETWORK_SETTINGS]
    with contextlib.suppress(OSError):  # without it frozen guests have their memory on disk
        folder.memory.mkdir(mode=0o700)
        writable.append(folder.memory)
    make_read_only(but=tuple(writable))
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
        private.write_text(f"{system.read_text().rstrip()}\n{more}")
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
    return "\n".join(filter(None, map(tail_of, (daemon.warnings, daemon.output)))) or "nothing"


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as line, contextlib.suppress(OSError):
        line.connect(str(path))
        return True
    return False


def _reap_until_the_end(libvirt: "subprocess.Popen[bytes]") -> str:
    """Reap orphans until the lifeline ends or libvirt does; how libvirt died, empty if it did not.

    libvirt waits for a killed QEMU to vanish, so a PID 1 that reaps late makes every end slow.
    """
    wake = wake_on(signal.SIGCHLD)
    while True:
        if (status := _reap_all().get(libvirt.pid)) is not None:
            return _how_it_died(os.waitstatus_to_exitcode(status))
        ready, _, _ = select.select([_LIFELINE, wake], [], [])
        if _LIFELINE in ready and not os.read(_LIFELINE, 1):
            return ""
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)


def _reap_all() -> dict[int, int]:
    """The wait status of each process that has ended, by its number."""
    gone = {}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            gone[ended[0]] = ended[1]
    return gone


def _how_it_died(exit_code: int) -> str:
    return f"was ended by signal {-exit_code}" if exit_code < 0 else f"ended with status {exit_code}"


def _answer(folder: RunFolder, line: socket.socket) -> None:
    match receive(line):
        case Dial() as dial:
            dial_for(line, dial)
        case OpenLan(lan):
            _start_lan(folder, lan, line)


def _start_lan(folder: RunFolder, lan: str, line: socket.socket) -> None:
    """Start the process of a lan, which talks with its owner by itself, and ends when that one hangs up."""
    program = [sys.executable, "-P", "-m", "pytest_kvmlab.keeper.lan", str(folder.path), lan]
    # Not by subprocess, which wants to ask for the status itself: here everything that ends is reaped.
    os.posix_spawn(
        sys.executable, program, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, line.fileno(), 0)]
    )


if __name__ == "__main__":
    sys.exit(main())
