"""What a run leaves on this machine, found by the one path that everything of it names: its folder for runs."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


def processes_of(runs: Path) -> dict[int, str]:
    """Processes whose command line or environment names a folder for runs: command lines by process id."""
    named = os.fsencode(runs)
    found = {}
    for process in _processes():
        with suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if words and (named in words or named in (process / "environ").read_bytes()):
                found[int(process.name)] = words.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def _processes() -> Iterator[Path]:
    return (entry for entry in PROC.iterdir() if entry.name.isdecimal())


@dataclass(frozen=True)
class Traces:
    """What a run has made, as seen while it lives, so that it can be looked for after its death.

    Attributes:
        runs: the folder for runs.
        interfaces: the host's network interfaces before.
        locks: of the run's folders, as `/proc/locks` names files.
        namespaces: that processes of the run are in and this process is not.
    """

    runs: Path
    interfaces: frozenset[str]
    locks: frozenset[str]
    namespaces: frozenset[str]

    @classmethod
    def of(cls, runs: Path) -> "Traces":
        """Look at what is there now."""
        return cls(
            runs,
            frozenset(name for _, name in socket.if_nameindex()),
            frozenset(_lock_name(path) for path in runs.glob("*/owner.lock")),
            frozenset(_namespaces(processes_of(runs)) - _namespaces([os.getpid()])),
        )

    def left(self) -> dict[str, list[str]]:
        """What is still there, by kind; kinds of which nothing is left are not named."""
        found = {
            "process": list(processes_of(self.runs).values()),
            "file": [path.name for path in self.runs.iterdir()],
            "mount": list(_lines(PROC / "self" / "mountinfo", str(self.runs))),
            "interface": [name for _, name in socket.if_nameindex() if name not in self.interfaces],
            "lock": [line for lock in self.locks for line in _lines(PROC / "locks", f"{lock} ")],
            "namespace": sorted(self.namespaces & _namespaces(int(entry.name) for entry in _processes())),
        }
        return {kind: things for kind, things in found.items() if things}


def _lines(file: Path, containing: str) -> Iterator[str]:
    return (line for line in file.read_text().splitlines() if containing in line)


def _lock_name(path: Path) -> str:
    """A file as `/proc/locks` writes it: the device's numbers in hexadecimal, the inode (proc(5))."""
    file = path.stat()
    return f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"


def _namespaces(processes: "Iterator[int] | list[int] | dict[int, str]") -> set[str]:
    """Mount, network and PID namespaces that processes are in or hold open."""
    found = set()
    for process in processes:
        with suppress(OSError):
            own = [PROC / str(process) / "ns" / kind for kind in ("mnt", "net", "pid")]
            found |= {os.readlink(link) for link in own}
        with suppress(OSError):
            links = (os.readlink(link) for link in (PROC / str(process) / "fd").iterdir())
            found |= {link for link in links if re.match(r"(mnt|net|pid):", link)}
    return found
