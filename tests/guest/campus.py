"""A campus in two network namespaces: this machine with its bridge `br0`, and a neighbour on that LAN.

The neighbour gives addresses away by DHCP, and answers every TCP connection to port 7 with a word.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen

NEIGHBOUR = "192.0.2.1"  # of a network for documentation (RFC 5737)
NEIGHBOUR_MAC = "52:54:00:00:00:99"
RESERVED, RESERVED_MAC = "192.0.2.77", "52:54:00:00:00:77"
WORD = "outside"

_PROTOCOL = "stp_state 1 forward_delay 200"  # the least that it can be set to
_SERVER = f"""
import socket
with socket.create_server(("", 7)) as server:
    print("ready", flush=True)
    while True:
        line, _ = server.accept()
        with line:
            line.sendall(b"{WORD}\\n")
"""


@dataclass(frozen=True)
class Namespace:
    """A network namespace, held by a process."""

    process: int

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.process}/ns/net", "--", *words]

    def run(self, *words: str) -> str:
        return subprocess.run(
            self.command(*words), check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def ip(self, *lines: str) -> None:
        batch = self.command("ip", "-batch", "-")
        subprocess.run(batch, input="\n".join(lines), check=True, text=True, timeout=60)


@dataclass(frozen=True)
class Campus:
    """The two machines."""

    host: Namespace
    neighbour: Namespace


@contextmanager
def campus(folder: Path, *, spanning_tree: bool = False) -> Iterator[Campus]:
    """The two machines; with the spanning tree protocol, a port of the bridge is deaf for the first 4 s."""
    with ExitStack() as stack:
        host, neighbour = (Namespace(stack.enter_context(_held()).pid) for _ in range(2))
        host.ip(
            "link set lo up",
            f"link add br0 type bridge {_PROTOCOL if spanning_tree else 'forward_delay 0'}",
            f"link add port0 type veth peer name eth0 address {NEIGHBOUR_MAC} netns {neighbour.process}",
            "link set port0 master br0 addrgenmode none up",
            "address add 192.0.2.10/24 dev br0",
            "link set port0 mtu 4000",
            "link set br0 addrgenmode none up",
        )
        neighbour.ip("link set lo up", f"address add {NEIGHBOUR}/24 dev eth0", "link set eth0 up")
        stack.enter_context(_running(neighbour.command("dnsmasq", *_dhcp(folder)), "started"))
        stack.enter_context(_running(neighbour.command(sys.executable, "-c", _SERVER), "ready"))
        yield Campus(host, neighbour)


def _dhcp(folder: Path) -> list[str]:
    return [
        "--conf-file=/dev/null",
        "--keep-in-foreground",
        "--log-facility=-",
        "--port=0",
        "--user=root",
        "--pid-file",
        f"--dhcp-leasefile={folder / 'leases'}",
        "--dhcp-range=192.0.2.100,192.0.2.150,1h",
        f"--dhcp-host={RESERVED_MAC},{RESERVED}",
    ]


@contextmanager
def _held() -> Iterator["Popen[str]"]:
    """A process in a network namespace of its own."""
    with _running(["unshare", "--net", "sh", "-c", "echo ready; exec sleep 600"], "ready") as process:
        yield process


@contextmanager
def _running(command: list[str], word: str) -> Iterator["Popen[str]"]:
    """A program, once it has said a word; it knows nothing of any run."""
    path = {"PATH": os.environ["PATH"]}
    with Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, env=path, text=True) as process:
        try:
            assert process.stdout is not None
            for said in process.stdout:
                if word in said:
                    break
            else:
                raise AssertionError(f"{command} ended")
            yield process
        finally:
            process.kill()
