"""Ways into a network that only QEMUs are in: user-mode networking in a QEMU that has no machine.

It answers as the gateway, lets nothing out, and connects ports of this machine's loopback address with ports
of guests (QEMU's invocation page, "-netdev user", restrict and hostfwd; "-netdev hubport").
"""

import json
import re
import socket
import subprocess
import threading
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from pytest_kvmlab.errors import HostError

_QEMU = "qemu-system-x86_64"
_SECONDS = 20.0


def gateway_mac(address: IPv4Address) -> str:
    """Whose packets those of the gateway are: 52:55 and its address (libslirp, `special_ethaddr`)."""
    return (b"\x52\x55" + address.packed).hex(":")


class WayIn:
    """The gateway of one network.

    Args:
        name: what its process is found by.
        gateway: its address, with the network's size.
        port: of the network's switch, on the loopback address.

    Raises:
        HostError: QEMU is missing, or does not start.
    """

    def __init__(self, name: str, gateway: IPv4Interface, port: int) -> None:
        self._forwarded: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()
        ours, its = socket.socketpair()
        with its:
            self._process = _started(command(name, gateway, port, its.fileno()), its)
        ours.settimeout(_SECONDS)
        self._monitor = ours
        self._lines = ours.makefile("r", encoding="utf-8")
        try:
            self._lines.readline()  # its greeting
            self._ask("qmp_capabilities")
        except HostError:
            self.close()
            raise

    def forwarded(self, address: str, port: int) -> int:
        """A port of this machine's loopback address that leads to a port of a guest.

        A connection is accepted before the guest is asked; one that it refuses ends at once.

        Raises:
            HostError: QEMU does not answer, or refuses.
        """
        with self._lock:
            if (address, port) not in self._forwarded:
                self._forwarded[address, port] = self._forward(address, port)
            return self._forwarded[address, port]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._lines.close()
        self._monitor.close()

    def _forward(self, address: str, port: int) -> int:
        if refusal := self._say(f"hostfwd_add way tcp:127.0.0.1:0-{address}:{port}").strip():
            raise HostError(f"port {port} of {address} cannot be forwarded: {refusal}")
        told = self._say("info usernet")
        form = rf"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+{re.escape(address)}\s+{port}\s"
        if found := re.search(form, told):
            return int(found[1])
        raise HostError(f"port {port} of {address} was forwarded, but QEMU does not list it")

    def _say(self, line: str) -> str:
        return str(self._ask("human-monitor-command", **{"command-line": line}))

    def _ask(self, command: str, **arguments: str) -> Any:
        """Ask QEMU's monitor (QEMU's docs/interop/qmp-spec.rst)."""
        try:
            self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            for line in self._lines:
                answer = json.loads(line)
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise HostError(f"the gateway refuses {command}: {answer['error'].get('desc')}")
        except (OSError, ValueError) as error:
            raise HostError(f"the gateway of the network does not answer: {error}") from error
        raise HostError("the gateway of the network is gone")


def command(name: str, gateway: IPv4Interface, port: int, monitor: int) -> list[str]:
    """The command line. A name server has to have an address, too: here the network's, which nobody asks."""
    network = gateway.network
    way = f"user,id=way,ipv6=off,restrict=on,net={network},host={gateway.ip},dns={network.network_address}"
    return [
        _QEMU,
        "-name", name,
        "-machine", "none", "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none",
        "-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control",
        "-netdev", f"{way},dhcpstart={network[2]}",
        "-netdev", "hubport,id=inner,hubid=0,netdev=way",
        "-netdev", f"socket,id=wire,connect=127.0.0.1:{port}",
        "-netdev", "hubport,id=outer,hubid=0,netdev=wire",
    ]  # fmt: skip


def _started(words: list[str], monitor: socket.socket) -> "subprocess.Popen[bytes]":
    quiet = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            words,
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            pass_fds=[monitor.fileno()],
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(f"{words[0]} cannot be started: {error.strerror}", check="qemu") from error
