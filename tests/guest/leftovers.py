"""What runs leave on this machine, found by what everything of theirs names: their folder, their guests."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.lab.waits import until

_SECONDS = 20.0
PROC = Path("/proc")
MEMORY = Path("/dev/shm")  # where the memory of frozen guests is

NETWORK = [line.split() for line in ("ip -o link", "ip route show table all", "ip rule", "nft list ruleset")]
"""The commands that show interfaces, routes, rules and the firewall; the last one is root's."""


def network_of_this_machine() -> list[str]:
    """What these commands show here."""
    commands = NETWORK if os.geteuid() == 0 else NETWORK[:-1]
    return [
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
        for command in commands
    ]


def processes_of(names: Iterable[str]) -> dict[int, str]:
    """Processes whose command line or environment holds one of these names: command lines by process id."""
    wanted = re.compile(b"|".join(re.escape(os.fsencode(name)) for name in names))
    found = {}
    for process in _processes():
        with suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if words and wanted.search(words + (process / "environ").read_bytes()):
                found[int(process.name)] = words.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def _processes() -> Iterator[Path]:
    return (entry for entry in PROC.iterdir() if entry.name.isdecimal())


@dataclass(frozen=True)
class Traces:
    """What a run has made, as seen while it lives, so that it can be looked for after its death.

    Attributes:
        runs: the folder for runs.
        names: that processes of the runs have in their command line or environment.
        interfaces: the host's network interfaces before.
        namespaces: that processes of the runs are in and this process is not, and when one of them was last
            seen there, in seconds since this machine was started.
    """

    runs: Path
    names: frozenset[str]
    interfaces: frozenset[str]
    namespaces: dict[str, float]

    @classmethod
    def of(cls, runs: Path) -> "Traces":
        """Look at what is there now."""
        names = frozenset([str(runs), *(f"kvl-{path.parent.name}-" for path in runs.glob("*/owner.lock"))])
        return cls(
            runs,
            names,
            frozenset(name for _, name in socket.if_nameindex()),
            {
                name: time.clock_gettime(time.CLOCK_BOOTTIME)
                for process in processes_of(names)
                for name in _namespaces(process) - _namespaces(os.getpid())
            },
        )

    def __or__(self, later: "Traces") -> "Traces":
        """What two looks at the same runs saw together."""
        return Traces(
            self.runs,
            self.names | later.names,
            self.interfaces,
            self.namespaces | later.namespaces,
        )

    def left_at_last(self) -> dict[str, list[str]]:
        """What is still there when nothing more goes away by itself."""
        until(lambda: not self.left() or None, Deadline(_SECONDS))
        return self.left()

    def left(self) -> dict[str, list[str]]:
        """What is still there, by kind; kinds of which nothing is left are not named."""
        found = {
            "process": list(processes_of(self.names).values()),
            "file": [path.name for path in (*self.runs.iterdir(), *self._memory())],
            "mount": list(_lines(PROC / "self" / "mountinfo", str(self.runs))),
            "interface": [name for _, name in socket.if_nameindex() if name not in self.interfaces],
            "lock": [
                f"{process.name} holds {lock}" for process in _processes() for lock in self._locks(process)
            ],
            "namespace": [
                f"{process.name} in {name}" for process in _processes() for name in self._shared(process)
            ],
        }
        return {kind: things for kind, things in found.items() if things}

    def _memory(self) -> Iterator[Path]:
        """Folders in memory that are named like the runs."""
        return (path for path in MEMORY.glob("kvl-*") if f"{path.name}-" in self.names)

    def _locks(self, process: Path) -> list[str]:
        """Locks of the runs that a process has open, be their folders gone: without that, none is held.

        `/proc/locks` names files by inode, and that of a file that is gone is soon another's.
        """
        opened = map(_target, _descriptors(process))
        return [name for name in opened if name.startswith(f"{self.runs}/") and "/owner.lock" in name]

    def _shared(self, process: Path) -> set[str]:
        """Namespaces of the runs that a process is in, or holds open.

        The kernel gives the number of a namespace that is gone to a new one, so a process that was started
        after the last look at ours is somebody else's.
        """
        with suppress(OSError, IndexError):
            started = _started(process)
            return {
                name for name in _namespaces(int(process.name)) if started <= self.namespaces.get(name, 0)
            }
        return set()


def _lines(file: Path, containing: str) -> Iterator[str]:
    return (line for line in file.read_text().splitlines() if containing in line)


def _descriptors(process: Path) -> list[Path]:
    """What a process has open; nothing if it has ended, or is another user's."""
    try:
        return list((process / "fd").iterdir())
    except OSError:
        return []


def _started(process: Path) -> float:
    """When a process was started, in seconds since this machine was: field 22 of its `stat` (proc(5))."""
    after_name = (process / "stat").read_text().rpartition(") ")[2].split()
    return int(after_name[19]) / os.sysconf("SC_CLK_TCK")


def _namespaces(process: int) -> set[str]:
    """Mount, network and PID namespaces that a process is in or holds open; none if it has ended."""
    folder = PROC / str(process)
    links: list[Path] = []
    with suppress(OSError):
        if (folder / "cmdline").read_bytes():
            links = [*_descriptors(folder), *(folder / "ns" / kind for kind in ("mnt", "net", "pid"))]
    return {name for name in map(_target, links) if re.match(r"(mnt|net|pid):", name)}


def _target(link: Path) -> str:
    """Where a link leads; nowhere if it is gone."""
    try:
        return str(link.readlink())
    except OSError:
        return ""
