"""The door to libvirt: connections, domains, and QEMU's monitor behind them.

The only module that imports libvirt. Its errors leave as `HostError`, with what was being done.
"""

import contextlib
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from pytest_kvmlab.errors import HostError

_KEEPALIVE_SECONDS, _KEEPALIVE_TRIES = 5, 6
_NO_LONGER_THERE = {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "running",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "running",
    libvirt.VIR_DOMAIN_SHUTOFF: "off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "paused",
}


@dataclass(frozen=True)
class Versions:
    """Versions of what runs the guests, as dotted text."""

    libvirt: str
    qemu: str


@contextlib.contextmanager
def _telling(doing: str) -> Iterator[None]:
    """Turn libvirt's error into ours, with what was being done."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise HostError(f"{doing}: {error.get_error_message() or error}") from error


class _EventLoop:
    """libvirt's event loop on a thread: the embedded driver, keep-alives and events need it.

    It must be registered before the first connection (virEventRegisterDefaultImpl), and neither it nor a
    connection survives a fork.
    """

    def __init__(self) -> None:
        self._process: int | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        with self._lock:
            if self._process is None:
                self._begin()
            if self._process != os.getpid():
                raise HostError(
                    "this process was forked after libvirt had been used",
                    "run workers with pytest-xdist, which starts new interpreters; do not fork",
                )

    def _begin(self) -> None:
        # Errors are raised; libvirt's own print to standard error would only double them.
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._run, name="kvmlab-libvirt-events", daemon=True).start()
        self._process = os.getpid()

    def _run(self) -> None:
        while True:
            libvirt.virEventRunDefaultImpl()


_event_loop = _EventLoop()


class Connection:
    """One connection to libvirt; guests made with `autodestroy` live no longer than it.

    Args:
        uri: a libvirt URI (https://libvirt.org/uri.html).

    Raises:
        HostError: nobody answers there.
    """

    def __init__(self, uri: str) -> None:
        _event_loop.start()
        self.uri = uri
        with _telling(f"libvirt does not answer on {uri}"):
            self._connection = libvirt.open(uri)
        # The embedded driver has no wire to keep alive.
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_TRIES)
        self._reboots: Counter[str] = Counter()
        with _telling("libvirt cannot report events"):
            self._connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._count_reboot, None
            )

    def _count_reboot(self, _connection: object, domain: Any, _opaque: object) -> None:
        self._reboots[domain.UUIDString()] += 1

    def versions(self) -> Versions:
        """The versions of libvirt's daemon and of the QEMU that it starts."""
        with _telling("libvirt does not tell its version"):
            return Versions(_dotted(self._connection.getLibVersion()), _dotted(self._connection.getVersion()))

    def create(self, xml: str, *, autodestroy: bool) -> "Domain":
        """Start a transient domain, its virtual CPUs not yet running.

        Args:
            xml: the domain's XML (https://libvirt.org/formatdomain.html).
            autodestroy: end the domain when this connection closes, however that happens
                (VIR_DOMAIN_START_AUTODESTROY). The embedded driver cannot.

        Raises:
            HostError: libvirt or QEMU refuses.
        """
        flags = libvirt.VIR_DOMAIN_START_PAUSED
        if autodestroy:
            flags |= libvirt.VIR_DOMAIN_START_AUTODESTROY
        with _telling("libvirt cannot start the guest"):
            return Domain(self._connection.createXML(xml, flags), self._reboots)

    def domains(self, prefix: str) -> "list[Domain]":
        """Every domain here, running or not, whose name starts with `prefix`."""
        with _telling("libvirt does not list its domains"):
            found = self._connection.listAllDomains()
        return [Domain(domain, self._reboots) for domain in found if domain.name().startswith(prefix)]

    def close(self) -> None:
        """Close the connection; an error in doing so is of no use to anyone."""
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.close()


class Domain:
    """One virtual machine, as libvirt sees it. `raw` is libvirt's own object."""

    def __init__(self, raw: Any, reboots: Counter[str]) -> None:
        self.raw = raw
        self.name: str = raw.name()
        self._uuid: str = raw.UUIDString()
        self._all_reboots = reboots

    @property
    def reboots(self) -> int:
        """How often the guest was reset since this connection saw it, by itself or by us."""
        return self._all_reboots[self._uuid]

    def state(self) -> str:
        """`running`, `paused`, `crashed` (the guest's kernel panicked) or `off`."""
        try:
            return _STATES.get(self.raw.state()[0], "running")
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return "off"
            raise HostError(f"libvirt does not tell the state of {self.name}: {error}") from error

    def resume(self) -> None:
        """Let the virtual CPUs run."""
        with _telling(f"{self.name} cannot be resumed"):
            self.raw.resume()

    def press_power_button(self) -> None:
        """Ask the guest to shut down, by ACPI."""
        with _telling(f"{self.name} cannot be asked to shut down"):
            self.raw.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    def destroy(self) -> None:
        """Cut the power. A domain that is gone already is as good.

        Raises:
            HostError: libvirt cannot end it.
        """
        try:
            self.raw.destroy()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _NO_LONGER_THERE:
                raise HostError(f"{self.name} cannot be ended: {error}") from error

    def xml(self) -> str:
        """The live XML, with what libvirt filled in."""
        with _telling(f"the XML of {self.name} cannot be read"):
            return str(self.raw.XMLDesc())

    def screenshot(self, path: Path) -> None:
        """Write a picture of the first screen: PNG, or PPM where QEMU is older than 7.1.

        Raises:
            HostError: the guest has no screen, or is gone.
            OSError: the file cannot be written.
        """
        with _telling(f"no screenshot of {self.name}"):
            stream = self.raw.connect().newStream()
            self.raw.screenshot(stream, 0, 0)
            with path.open("wb") as picture:
                stream.recvAll(lambda _stream, data, file: file.write(data), picture)
            stream.finish()

    def send_keys(self, codes: Sequence[int], *, hold: float) -> None:
        """Press keys together on the guest's keyboard.

        Args:
            codes: Linux key codes (linux/input-event-codes.h), 16 at most.
            hold: seconds between press and release.
        """
        with _telling(f"{self.name} takes no keys"):
            self.raw.sendKey(libvirt.VIR_KEYCODE_SET_LINUX, int(hold * 1000), list(codes), len(codes), 0)

    def monitor(self, command: str) -> str:
        """Run a command of QEMU's human monitor (https://www.qemu.org/docs/master/system/monitor.html)."""
        with _telling(f"the monitor of {self.name} does not answer '{command}'"):
            return str(
                libvirt_qemu.qemuMonitorCommand(
                    self.raw, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
                )
            )

    def forward_port(self, netdev: str, port: int) -> int:
        """Make a guest's TCP port reachable on the loopback address of the host QEMU runs in.

        QEMU is asked for host port 0, so that the kernel chooses one and nobody can be quicker.

        Args:
            netdev: QEMU's name of a user-mode network device.
            port: the port in the guest.

        Returns:
            The port on 127.0.0.1.

        Raises:
            HostError: QEMU refuses.
        """
        if refusal := self.monitor(f"hostfwd_add {netdev} tcp:127.0.0.1:0-:{port}").strip():
            raise HostError(f"port {port} of {self.name} cannot be forwarded: {refusal}")
        for line in reversed(self.monitor("info usernet").splitlines()):
            if found := re.search(rf"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+{port}\s", line):
                return int(found[1])
        raise HostError(f"port {port} of {self.name} was forwarded, but QEMU does not list it")


def _dotted(number: int) -> str:
    """Libvirt's encoding of a version: major * 1,000,000 + minor * 1,000 + release."""
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"
