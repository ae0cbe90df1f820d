"""A port on a bridge of the host for a user who is not root: the door to QEMU's qemu-bridge-helper.

It runs with root's rights, makes a TAP, plugs it into the bridge and hands it over, if its list of bridges
allows that (QEMU's qemu-bridge-helper.c; wiki.qemu.org/Features/HelperNetworking).
"""

import array
import errno
import fcntl
import os
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.errors import HostError

LIST = Path("/etc/qemu/bridge.conf")
_PROGRAMS = tuple(
    Path(folder, "qemu-bridge-helper") for folder in ("/usr/lib/qemu", "/usr/libexec", "/usr/lib")
)
_GET_NAME = 0x800454D2  # TUNGETIFF, linux/if_tun.h
_LONGEST_NAME, _REQUEST = 16, 40  # IFNAMSIZ and the size of struct ifreq, linux/if.h
_MOST_INCLUDED = 20
_SECONDS = 30.0


@dataclass(frozen=True)
class Obstacle:
    """Why this user cannot be plugged into a bridge: what was seen, and what to do about it."""

    seen: str
    remedy: str


def find_obstacle(
    bridge: str, *, programs: Sequence[Path] = _PROGRAMS, allowed: Path = LIST
) -> Obstacle | None:
    """Say why the helper would not plug us into a bridge.

    Args:
        bridge: the bridge.
        programs: where the helper may be.
        allowed: its list of bridges.

    Returns:
        The reason, or None if nothing speaks against it.
    """
    program = next((path for path in programs if path.exists()), None)
    if program is None:
        return Obstacle("qemu-bridge-helper is missing", "apt install qemu-system-common")
    if not _has_rights(program):
        right = f"dpkg-statoverride --update --add root root 4755 {program}, or chmod u+s {program}"
        return Obstacle(f"{program} does not run as root", f"as root: {right}")
    try:
        seen = _what_list_says(bridge, allowed)
    except PermissionError:  # the helper can read it
        seen = ""
    line = f"as root: mkdir -p {allowed.parent}; echo 'allow {bridge}' >>{allowed}"
    return Obstacle(seen, line) if seen else None


def _what_list_says(bridge: str, allowed: Path) -> str:
    """What is wrong with the list of bridges; nothing if it allows this one."""
    try:
        rules = list(_rules(allowed))
    except FileNotFoundError as error:
        return f"there is no {error.filename} with a line 'allow {bridge}'"
    if denied := [name for name in (bridge, "all") if ("deny", name) in rules]:
        return f"{allowed} has a line 'deny {denied[0]}'"
    if not {("allow", bridge), ("allow", "all")} & set(rules):
        return f"{allowed} has no line 'allow {bridge}'"
    return ""


def _has_rights(program: Path) -> bool:
    """Whether it runs as root, or with a capability of its own (capabilities(7))."""
    found = program.stat()
    if found.st_mode & stat.S_ISUID and found.st_uid == 0:
        return True
    try:
        return bool(os.getxattr(program, "security.capability"))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _rules(file: Path, depth: int = 0) -> Iterator[tuple[str, str]]:
    """The lines of a list, and of those that it includes: `allow br0`, `deny all`, `include FILE`."""
    for line in file.read_text(errors="replace").splitlines():
        match line.partition("#")[0].split():
            case ["include", name] if depth < _MOST_INCLUDED:
                yield from _rules(Path(name), depth + 1)
            case [rule, name]:
                yield rule, name


def open_port(bridge: str) -> tuple[int, str]:
    """Have a port made on a bridge; it is there as long as it is open.

    Returns:
        A descriptor that reads and writes its Ethernet frames, and its name.

    Raises:
        HostError: the helper is missing, may not, or fails, with what it said.
    """
    if found := find_obstacle(bridge):
        raise HostError(found.seen, found.remedy, check="bridge")
    program = next(path for path in _PROGRAMS if path.exists())
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, its:
        command = [str(program), f"--br={bridge}", f"--fd={its.fileno()}"]
        ran = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_SECONDS, pass_fds=[its.fileno()]
        )
        its.close()
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise HostError(f"{program} makes no port on {bridge}: {ran.stderr.strip()}", check="bridge")
    return descriptors[0], _name(descriptors[0])


def _name(port: int) -> str:
    request = array.array("B", bytes(_REQUEST))
    fcntl.ioctl(port, _GET_NAME, request)
    return request.tobytes()[:_LONGEST_NAME].rstrip(b"\0").decode()
