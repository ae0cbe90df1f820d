"""A virtual machine that can be switched on and off: its plan, its domain, its serial line."""

import re
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.console_log import ConsoleReader, transcript_of
from pytest_kvmlab.drivers.libvirt import Domain
from pytest_kvmlab.drivers.serial import SerialConsole
from pytest_kvmlab.drivers.state_stream import receiving, send
from pytest_kvmlab.errors import GuestError, HostError, UsbError
from pytest_kvmlab.journal import Journal
from pytest_kvmlab.lab.frozen import Frozen, Rest
from pytest_kvmlab.lab.greeting import first_to_greet
from pytest_kvmlab.lab.hosts import Host
from pytest_kvmlab.lab.usb import UsbPorts
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.lab.wiring import Line
from pytest_kvmlab.plan.domain_xml import domain_xml
from pytest_kvmlab.plan.guest import GuestPlan, MemoryFile

SSH_PORT = 22
_LOOPBACK = "127.0.0.1"
# A guest that starts over this often without once answering will not stop doing so.
_REBOOTS_THAT_MAKE_A_LOOP = 3
_SILENCE_THAT_MEANS_OPEN = 1.0
_SERIAL_SECONDS = 10.0
_STATE_SECONDS = 60.0
_STATE_POLL_SECONDS = 0.002
# Leaves the memory out, as it is in a file already (qemu-qmp-ref, "MigrationCapability").
_WITHOUT_MEMORY = {"capability": "x-ignore-shared", "state": True}
_TAIL_LINES = 20
_PANIC_LINES = 100
# What is waited for while a guest boots, which has not come far then, whatever it was.
_CHANNELS = ("network", "ssh", "serial")
# Early in the boot there is no driver yet through which a kernel could tell QEMU; the text is all there is.
_PANIC = re.compile(r"^(\[ *[0-9.]+\] )?(---\[ end )?Kernel panic - not syncing")
_TROUBLES = {
    "crashed": (
        "the kernel of {name} panicked",
        "look at its last lines; guest.screenshot() works, guest.start() boots it again",
    ),
    "stuck": (
        "QEMU stopped {name} because it cannot write to the guest's disk",
        "make room where the folders of runs are, or point KVMLAB_RUNS at a larger disk",
    ),
    "paused": ("{name} is paused", "guest.domain.resume() lets it go on"),
    "off": ("{name} is off: it switched itself off, or its QEMU ended", "guest.start() boots it again"),
    "loop": ("{name} reboots in a loop", "look at its last lines: what does it die of?"),
}


@dataclass
class Machine:
    """One machine of a run, and what is true of it while its power is on.

    Attributes:
        name: the guest's name within its lab.
        host: where it runs.
        plan: what it is made of.
        renew: makes everything that it writes to as it was before it was first switched on.
        journal: where its events go.
        autodestroy: whether it ends with this process's connection.
        lines: what connects each of its network cards with a network of its lab; None of a card in user mode.
        frozen: the moment that `thaw` starts it from; None if it can only be switched on.
        forwarded: the loopback port of the host for each port of the guest that was asked for.
        usb: its USB ports, and what belongs into them.
    """

    name: str
    host: Host
    plan: GuestPlan
    renew: Callable[[], None]
    journal: Journal
    autodestroy: bool
    lines: Sequence[Line | None] = ()
    frozen: Frozen | None = None
    forwarded: dict[int, int] = field(default_factory=dict)
    usb: UsbPorts = field(init=False)
    _domain: Domain | None = None
    _console: ConsoleReader | None = None
    _serial: SerialConsole | None = None
    _reboots_seen: int = 0
    _life_began: int = 0
    _has_answered: bool = False

    def __post_init__(self) -> None:
        """Give it USB ports, with nothing in them."""
        self.usb = UsbPorts(self.name, self.folder, self._note_usb)

    @property
    def line(self) -> Line | None:
        """The line by which its ports are reached; None if its first card is in user mode."""
        return self.lines[0] if self.lines else None

    @property
    def folder(self) -> Path:
        """The machine's own folder: disks, sockets, logs."""
        return self.plan.serial_socket.parent

    @property
    def console_log(self) -> Path:
        """What the console showed, each line with the seconds since power-on before it."""
        return self.folder / "console.log"

    @property
    def transcript(self) -> Path:
        """All bytes of the console since the machine was made, but no password that was typed there."""
        return transcript_of(self.console_log)

    @property
    def xml_file(self) -> Path:
        """The XML that the guest is started from."""
        return self.folder / "domain.xml"

    @property
    def is_on(self) -> bool:
        """Whether the machine has power, be it paused or crashed."""
        return self._domain is not None and self._domain.state() != "off"

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

    @property
    def was_on(self) -> bool:
        """Whether the machine was ever switched on, so that there is something to look at."""
        return self._console is not None

    def note(self, kind: str, name: str, *, seconds: float = 0.0, outcome: str = "") -> None:
        """Write an event of this machine down."""
        self.journal.note(self.name, kind, name, seconds=seconds, outcome=outcome)

    def _note_usb(self, what: str, outcome: str) -> None:
        self.note("usb", what, outcome=outcome)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time a phase of this machine."""
        return self.journal.phase(self.name, name)

    def power_on(self) -> None:
        """Start the machine; its serial line is listened to before its first instruction.

        Raises:
            GuestError: it is on already, or libvirt or QEMU refuses; the message carries their reason.
        """
        self._switch_on("create", self.plan, self._let_run, b"")

    def thaw(self) -> Rest:
        """Start the machine from the moment in which it was frozen; its disks are as they were then.

        Returns:
            What it waited for at that moment.

        Raises:
            GuestError: as for `power_on`, or QEMU does not take the state.
        """
        assert self.frozen  # noqa: S101  who thaws has seen that there is something to
        shutil.copyfile(self.frozen.console, self.console_log)
        shutil.copyfile(transcript_of(self.frozen.console), self.transcript)
        memory = MemoryFile(self.frozen.memory, writes=False)
        plan = replace(self.plan, memory_file=memory, incoming=True)
        self._switch_on("clone", plan, self._go_on, self.transcript.read_bytes())
        return self.frozen.rest

    def _go_on(self, domain: Domain) -> None:
        """Give a machine the state that it waits for, and let it run."""
        assert self.frozen  # noqa: S101  only `thaw` leads here
        deadline = Deadline(_STATE_SECONDS)
        domain.qmp("migrate-set-capabilities", capabilities=[_WITHOUT_MEMORY])
        domain.qmp("migrate-incoming", uri=f"unix:{self._state_socket}")
        send(self._state_socket, self.frozen.state.read_bytes(), deadline)
        arrived = until(partial(_has_state, domain), deadline, every=_STATE_POLL_SECONDS)
        if not arrived:
            raise HostError(f"QEMU still waits for the state of {self.name} after {_STATE_SECONDS:g} s")
        self._let_run(domain)

    def _let_run(self, domain: Domain) -> None:
        """Begin a machine's time; what belongs into its USB ports is there from the first moment."""
        self.usb.power_on(domain)
        domain.resume()

    def freeze(self, state: Path) -> str:
        """Stop the machine for ever, and write down the state of its devices; its memory is in its file.

        Args:
            state: the file to make.

        Returns:
            The SHA-256 of that file.

        Raises:
            HostError: QEMU cannot, or takes too long.
        """
        deadline = Deadline(_STATE_SECONDS)
        self.domain.suspend()
        self.domain.qmp("migrate-set-capabilities", capabilities=[_WITHOUT_MEMORY])
        with receiving(self._state_socket, deadline) as receive:
            self.domain.qmp("migrate", uri=f"unix:{self._state_socket}")
            sha256 = receive(state)
        # Only then QEMU has written all of its disks down, and lets go of them.
        ended = until(partial(_migration_ended, self.domain), deadline, every=_STATE_POLL_SECONDS)
        if ended != "completed":
            raise HostError(f"the state of {self.name} cannot be written down: migration {ended}")
        return sha256

    @property
    def _state_socket(self) -> Path:
        return self.folder / "state.sock"

    def _switch_on(self, phase: str, plan: GuestPlan, begin: Callable[[Domain], None], shown: bytes) -> None:
        if self.is_on:
            raise GuestError(f"{self.name} is on already", "guest.crash() cuts its power", phase="create")
        self.power_off()  # what is left of a machine that switched itself off
        self.plan.serial_socket.unlink(missing_ok=True)
        with self.phase(phase):
            try:
                self._create(plan, begin, shown)
            except HostError as error:
                self.power_off()
                raise self._not_created(error.message, error.hint) from error
            except UsbError:
                self.power_off()
                raise
            except OSError as error:
                self.power_off()
                raise self._not_created(f"its serial line: {error.strerror or error}", "") from error

    def _create(self, plan: GuestPlan, begin: Callable[[Domain], None], shown: bytes) -> None:
        with _serial_line(plan) as line:
            self._domain = self.host.connection.create(domain_xml(plan), autodestroy=self.autodestroy)
            self._reboots_seen, self._has_answered = self._domain.reboots, plan.incoming
            lines, self._life_began = self.host.lines, 0
            self._console = ConsoleReader(
                lines.before(line()), self.console_log, before=shown, arrive=lines.catch_up
            )
        self._serial = SerialConsole(self._console)
        begin(self._domain)

    def _not_created(self, why: str, hint: str) -> GuestError:
        return GuestError(
            f"{self.name} cannot be created: {why}", hint, phase="create", looked_at=[self.xml_file]
        )

    def power_off(self) -> None:
        """Cut the power, if it is on.

        Raises:
            HostError: libvirt cannot end the machine.
            TeardownError: this host does not have its USB device back.
        """
        domain, self._domain = self._domain, None
        self.forwarded.clear()
        if domain is not None:
            domain.destroy()
            self.note("power", "off")
        self.let_go()
        self.usb.power_off()

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
        if self.line:
            return self.line.dial(port, seconds)
        return self.host.dial(_LOOPBACK, self.forwarded_port(port), seconds)

    def dial_greeter(self, port: int, seconds: float) -> socket.socket:
        """Open a connection to a server of the guest that speaks first, as soon as it does.

        Raises:
            OSError: it does not speak in time.
            GuestError: the guest broke, or has no network card.
        """
        alive = partial(self.check, "network")
        early = self.line.early if self.line else True  # as by user-mode networking
        return first_to_greet(partial(self.dial, port), alive, Deadline(seconds), early=early)

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

    def answered(self) -> None:
        """Take note that the guest was up just now, so that a reboot from here on is no loop yet."""
        self._reboots_seen, self._has_answered = self.domain.reboots, True

    def went_back(self) -> None:
        """Take note that the machine is what it was earlier: what has become of it meanwhile is undone.

        Raises:
            HostError: libvirt cannot let it run again where its kernel had panicked, or its disk was full.
        """
        self.console.catch_up(Deadline(_SERIAL_SECONDS))
        self._life_began = self.console.end
        self.answered()
        if self.domain.state() in ("crashed", "stuck"):  # which it stays until it is told to go on
            self.domain.resume()

    def check(self, phase: str) -> None:
        """See that the machine still runs.

        Args:
            phase: what is being waited for, for the message.

        Raises:
            GuestError: its kernel panicked, it is off or paused, it starts over and over, or its disk cannot
                be written to.
        """
        if trouble := self._trouble():
            message, hint = _TROUBLES[trouble]
            shown = self._panic() if trouble == "crashed" else []
            raise GuestError(
                message.format(name=self.name),
                hint,
                phase="boot" if phase in _CHANNELS and not self._has_answered else phase,
                looked_at=shown or self.serial.tail(_TAIL_LINES),
            )

    def _trouble(self) -> str:
        """What is wrong with the machine: a key of `_TROUBLES`, or nothing."""
        if (state := self.domain.state()) in _TROUBLES:
            return state
        if self._panic():
            return "crashed"
        return "loop" if self.domain.reboots - self._reboots_seen >= _REBOOTS_THAT_MAKE_A_LOOP else ""

    def _panic(self) -> list[str]:
        """What the console shows of a panic: its reason, which a long trace follows."""
        lines = self.console.tail(_PANIC_LINES, since=self._life_began)
        start = next((number for number, line in enumerate(lines) if _PANIC.match(line)), len(lines))
        return lines[start : start + _TAIL_LINES]


def _has_state(domain: Domain) -> bool | None:
    return True if domain.qmp("query-status")["status"] != "inmigrate" else None


def _migration_ended(domain: Domain) -> str | None:
    status = domain.qmp("query-migrate").get("status", "")
    return str(status) if status in ("completed", "failed", "cancelled") else None


@contextmanager
def _serial_line(plan: GuestPlan) -> Iterator[Callable[[], socket.socket]]:
    """What gives the serial line once QEMU runs: it listens for us, or, on a shared libvirt, we for it."""
    if plan.qemu_user is None:
        yield partial(connect_serial, plan.serial_socket)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(plan.serial_socket))
        listener.listen(1)
        listener.settimeout(_SERIAL_SECONDS)
        yield lambda: listener.accept()[0]


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
