"""A virtual machine that can be switched on and off: its plan, its domain, its serial line."""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pytest_kvmlab.drivers.console_log import ConsoleReader
from pytest_kvmlab.drivers.libvirt import Domain
from pytest_kvmlab.drivers.serial import SerialConsole
from pytest_kvmlab.errors import GuestError, HostError
from pytest_kvmlab.journal import Journal
from pytest_kvmlab.lab.hosts import Host
from pytest_kvmlab.plan.domain_xml import domain_xml
from pytest_kvmlab.plan.guest import GuestPlan

_LOOPBACK = "127.0.0.1"
# A guest that starts over this often while it boots will not stop doing so.
_REBOOTS_THAT_MAKE_A_LOOP = 3
_SILENCE_THAT_MEANS_OPEN = 1.0


@dataclass
class Machine:
    """One machine of a run, and what is true of it while its power is on.

    Attributes:
        name: the guest's name within its lab.
        host: where it runs.
        plan: what it is made of.
        fresh_disk: makes its disk anew from the base image.
        journal: where its events go.
        autodestroy: whether it ends with this process's connection.
        forwarded: the loopback port of the host for each port of the guest that was asked for.
    """

    name: str
    host: Host
    plan: GuestPlan
    fresh_disk: Callable[[], None]
    journal: Journal
    autodestroy: bool
    forwarded: dict[int, int] = field(default_factory=dict)
    _domain: Domain | None = None
    _console: ConsoleReader | None = None
    _serial: SerialConsole | None = None

    @property
    def console_log(self) -> Path:
        """What the console showed, each line with the seconds since power-on before it."""
        return self.plan.serial_socket.with_name("console.log")

    @property
    def xml_file(self) -> Path:
        """The XML that the guest is started from."""
        return self.plan.serial_socket.with_name("domain.xml")

    @property
    def domain(self) -> Domain:
        """The running domain.

        Raises:
            GuestError: the power is off.
        """
        if self._domain is None:
            raise GuestError(f"{self.name} is switched off", "switch it on: guest.start()", phase="create")
        return self._domain

    @property
    def console(self) -> ConsoleReader:
        """What the serial line has shown since the machine was last switched on.

        Raises:
            GuestError: the machine was never switched on.
        """
        if self._console is None:
            raise GuestError(f"{self.name} was never switched on", phase="create")
        return self._console

    @property
    def serial(self) -> SerialConsole:
        """The serial line, to type on.

        Raises:
            GuestError: the machine was never switched on.
        """
        if self._serial is None:
            raise GuestError(f"{self.name} was never switched on", phase="serial")
        return self._serial

    def power_on(self) -> None:
        """Start the machine; its serial line is listened to before its first instruction.

        Raises:
            GuestError: libvirt or QEMU refuses; the message carries their reason.
        """
        self.plan.serial_socket.unlink(missing_ok=True)
        with self.journal.phase(self.name, "create"):
            try:
                self._domain = self.host.connection.create(
                    domain_xml(self.plan), autodestroy=self.autodestroy
                )
                self._console = ConsoleReader(connect_serial(self.plan.serial_socket), self.console_log)
                self._serial = SerialConsole(self._console)
                self._domain.resume()
            except (HostError, OSError) as error:
                self.power_off()
                raise GuestError(f"{self.name} cannot be created: {error}", phase="create") from error

    def power_off(self) -> None:
        """Cut the power, if it is on.

        Raises:
            HostError: libvirt cannot end the machine.
        """
        domain, self._domain = self._domain, None
        self.forwarded.clear()
        if domain is not None:
            domain.destroy()
            self.journal.note(self.name, "power", "off")
        self.let_go()

    def let_go(self) -> None:
        """Stop listening to the serial line; its log on disk goes on."""
        if self._serial is not None:
            self._serial.close()

    def answers(self, port: int, seconds: float) -> bool:
        """Whether a connection to a port of the guest lasts: user-mode networking ends a refused one at once.

        Args:
            port: a TCP port in the guest.
            seconds: how long to listen; a server that waits for its client to speak first says nothing.
        """
        try:
            with self.dial(port, seconds) as line:
                line.settimeout(min(seconds, _SILENCE_THAT_MEANS_OPEN))
                return bool(line.recv(1))
        except TimeoutError:
            return True
        except OSError:
            return False

    def dial(self, port: int, seconds: float) -> socket.socket:
        """Open a TCP connection to a port of the guest.

        User-mode networking accepts before the guest does; a connection that the guest refuses ends at once.

        Raises:
            OSError: nobody accepts in time.
            GuestError: the guest has no network card.
        """
        return self.host.dial(_LOOPBACK, self.forwarded_port(port), seconds)

    def forwarded_port(self, port: int) -> int:
        """The loopback port, where QEMU runs, that leads to a port of the guest.

        Raises:
            GuestError: the guest has no network card.
        """
        if port not in self.forwarded:
            if not self.plan.nics:
                raise GuestError(
                    f"{self.name} has no network card", "leave out networks = []", phase="network"
                )
            self.forwarded[port] = self.domain.forward_port(self.plan.nics[0].netdev, port)
        return self.forwarded[port]

    def check(self, phase: str) -> None:
        """See that the machine still runs.

        Args:
            phase: what is being waited for, for the message.

        Raises:
            GuestError: its kernel panicked, it switched itself off, or it starts over and over.
        """
        state, tail = self.domain.state(), self.console.tail(12)
        if state == "crashed" or any("Kernel panic - not syncing" in line for line in tail):
            raise GuestError(f"the kernel of {self.name} panicked", phase=phase, looked_at=tail)
        if state == "off":
            raise GuestError(f"{self.name} switched itself off", phase=phase, looked_at=tail)
        if self.domain.reboots >= _REBOOTS_THAT_MAKE_A_LOOP:
            raise GuestError(
                f"{self.name} reboots in a loop ({self.domain.reboots} times so far)",
                phase=phase,
                looked_at=tail,
            )


def connect_serial(path: Path) -> socket.socket:
    """Connect to the socket that QEMU offers for a serial port; it takes one connection at a time.

    Raises:
        OSError: the guest is gone.
    """
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.connect(str(path))
    except OSError:
        line.close()
        raise
    return line
