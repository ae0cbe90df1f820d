"""The door to libvirt: connections, domains, and QEMU's monitor behind them.

The only module that imports libvirt. Its errors leave as `HostError`, with what was being done; an error
whose cause is that nobody is at the other end any more leaves as what the connection's owner says of that.
"""

import contextlib
import importlib
import json
import math
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

from pytest_kvmlab.errors import HostError, KvmlabError

try:
    import libvirt
    import libvirt_qemu
except ImportError as error:  # told when a connection is asked for: `kvmlab doctor` has to run without
    _MISSING = str(error)
else:
    _MISSING = ""

_KEEPALIVE_SECONDS, _KEEPALIVE_TRIES = 5, 6
# Longer than libvirt takes for what it has to wait for itself: 15 s for a QEMU that does not want to end.
_ANSWER_SECONDS = 30.0
_CREATE_SECONDS = 120.0
_ONE_RESET_SECONDS = 0.4


@dataclass(frozen=True)
class Versions:
    """Versions of what runs the guests, as dotted text."""

    libvirt: str
    qemu: str


Answer = TypeVar("Answer")


def what_is_missing() -> str:
    """Why libvirt's library cannot be loaded, as of now; empty if it can, if only by a new process."""
    try:
        importlib.import_module("libvirt_qemu")
    except ImportError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def _telling(doing: str) -> Iterator[None]:
    """Turn libvirt's error, or its silence, into ours, with what was being done."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise HostError(f"{doing}: {error.get_error_message() or error}") from error
    except TimeoutError as error:
        raise HostError(f"{doing}: {error}", "its QEMU or libvirt hangs: look with ps and top") from error


def _set_state(card: ET.Element, state: str) -> None:
    link = card.find("link")
    if link is None:
        link = ET.SubElement(card, "link")
    link.set("state", state)


def _answer(call: Callable[[], Answer], seconds: float = _ANSWER_SECONDS) -> Answer:
    """Make a call of libvirt's with a limit, which none of them has: they wait as long as QEMU does.

    A call that is given up goes on in its thread until the domain or the connection ends.

    Raises:
        TimeoutError: there was no answer in time.
    """
    answer: Future[Answer] = Future()

    def ask() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001  handed to the one who asked
            answer.set_exception(error)

    threading.Thread(target=ask, name="kvmlab-libvirt-call", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


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
        if _MISSING:
            raise HostError(
                f"libvirt's library cannot be loaded: {_MISSING}",
                "apt install libvirt0; if that is there: pip install --force-reinstall libvirt-python",
                check="libvirt-python",
            )
        # Errors are raised; libvirt's own print to standard error would only double them.
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._run, name="kvmlab-libvirt-events", daemon=True).start()
        self._process = os.getpid()

    def _run(self) -> None:
        while True:
            libvirt.virEventRunDefaultImpl()


_event_loop = _EventLoop()


class _Reboots:
    """Counts how often each domain was reset.

    A kernel that reboots tries several ways at once (Linux, arch/x86/kernel/reboot.c): each is an event.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._last: dict[str, float] = {}

    def note(self, domain: str) -> None:
        """Count an event, unless it belongs to the reset that was counted last."""
        now = time.monotonic()
        if now - self._last.get(domain, -math.inf) > _ONE_RESET_SECONDS:
            self._counts[domain] += 1
            self._last[domain] = now

    def of(self, domain: str) -> int:
        """The resets of one domain so far."""
        return self._counts[domain]


class Connection:
    """One connection to libvirt; guests made with `autodestroy` live no longer than it.

    Args:
        uri: a libvirt URI (https://libvirt.org/uri.html).
        lost: gives the error for every call that fails because libvirt has gone away; without it such a
            call fails in libvirt's own words.

    Attributes:
        reboots: of the domains that this connection saw.

    Raises:
        HostError: nobody answers there.
    """

    def __init__(self, uri: str, *, lost: Callable[[], KvmlabError] | None = None) -> None:
        _event_loop.start()
        self.uri = uri
        self._lost = lost
        with _telling(f"libvirt does not answer on {uri}"):
            self._connection = _answer(lambda: libvirt.open(uri))
        # The embedded driver has no wire to keep alive.
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_TRIES)
        self.reboots = _Reboots()
        with _telling("libvirt cannot report events"):
            self._connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._count_reboot, None
            )

    def _count_reboot(self, _connection: object, domain: Any, _opaque: object) -> None:
        self.reboots.note(domain.UUIDString())

    @contextlib.contextmanager
    def telling(self, doing: str) -> Iterator[None]:
        """Turn the failure of a call into an error of ours: of what was being done, or of the loss."""
        try:
            with _telling(doing):
                yield
        except HostError as error:
            if self._lost is None or self._is_open():
                raise
            raise self._lost() from error

    def _is_open(self) -> bool:
        """Whether libvirt may still be there; one that we have closed ourselves is not lost."""
        try:
            return bool(self._connection.isAlive())
        except libvirt.libvirtError:
            return True

    def versions(self) -> Versions:
        """The versions of libvirt's daemon and of the QEMU that it starts."""
        with self.telling("libvirt does not tell its version"):
            library = _answer(self._connection.getLibVersion)
            # The first question about QEMU lets libvirt find out what each QEMU can do.
            emulator = _answer(self._connection.getVersion, _CREATE_SECONDS)
        return Versions(_dotted(library), _dotted(emulator))

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
        with self.telling("libvirt cannot start the guest"):
            raw = _answer(lambda: self._connection.createXML(xml, flags), _CREATE_SECONDS)
        return Domain(raw, self)

    def close(self) -> None:
        """Close the connection; an error in doing so is of no use to anyone."""
        with contextlib.suppress(libvirt.libvirtError, TimeoutError):
            _answer(self._connection.close)


class Domain:
    """One virtual machine, as libvirt sees it. `raw` is libvirt's own object."""

    def __init__(self, raw: Any, connection: Connection) -> None:
        self.raw = raw
        self.name: str = raw.name()
        self._uuid: str = raw.UUIDString()
        self._connection = connection

    @property
    def reboots(self) -> int:
        """How often the guest was reset since this connection saw it, by itself or by us."""
        return self._connection.reboots.of(self._uuid)

    def state(self) -> str:
        """What the machine does.

        Returns:
            `running`, `paused`, `crashed` (the guest's kernel panicked), `stuck` (QEMU stopped the guest
            because it could not read or write a disk) or `off`.

        Raises:
            HostError: libvirt does not tell.
        """
        with self._connection.telling(f"libvirt does not tell the state of {self.name}"):
            try:
                found = _answer(self.raw.state)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return "off"
                raise
        return _state_name(*found)

    def resume(self) -> None:
        """Let the virtual CPUs run."""
        with self._connection.telling(f"{self.name} cannot be resumed"):
            _answer(self.raw.resume)

    def suspend(self) -> None:
        """Stop the virtual CPUs."""
        with self._connection.telling(f"{self.name} cannot be suspended"):
            _answer(self.raw.suspend)

    def end_at_reboot(self) -> None:
        """From now on, cut the power where the guest would start over: virDomainSetLifecycleAction.

        Raises:
            HostError: this QEMU is older than 6.0, and cannot change its mind.
        """
        with self._connection.telling(f"{self.name} cannot be kept from rebooting"):
            what, action = libvirt.VIR_DOMAIN_LIFECYCLE_REBOOT, libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_DESTROY
            _answer(lambda: self.raw.setLifecycleAction(what, action, libvirt.VIR_DOMAIN_AFFECT_LIVE))

    def press_power_button(self) -> None:
        """Ask the guest to shut down, by ACPI."""
        with self._connection.telling(f"{self.name} cannot be asked to shut down"):
            _answer(lambda: self.raw.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN))

    def destroy(self) -> None:
        """Cut the power. A domain that is gone already is as good.

        Raises:
            HostError: libvirt cannot end it.
        """
        with self._connection.telling(f"{self.name} cannot be ended"):
            try:
                _answer(self.raw.destroy)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in _no_longer_there():
                    raise

    def xml(self) -> str:
        """The live XML, with what libvirt filled in."""
        with self._connection.telling(f"the XML of {self.name} cannot be read"):
            return str(_answer(self.raw.XMLDesc))

    def set_link(self, mac: str, *, up: bool) -> None:
        """Plug the cable of a network card in or out: formatdomain, "Modifying virtual link state".

        Args:
            mac: the card's MAC address.
            up: whether it is plugged in.

        Raises:
            HostError: there is no such card, or the guest is gone.
        """
        with self._connection.telling(f"the cable of {mac} in {self.name} stays as it is"):
            domain = ET.fromstring(_answer(self.raw.XMLDesc))  # noqa: S314  libvirt printed it
            for card in domain.iterfind("devices/interface"):
                if (own := card.find("mac")) is not None and own.get("address") == mac:
                    _set_state(card, "up" if up else "down")
                    changed = ET.tostring(card, encoding="unicode")
                    _answer(partial(self.raw.updateDeviceFlags, changed))
                    return
            raise HostError(f"{self.name} has no network card {mac}")

    def attach(self, device: str, name: str) -> None:
        """Plug a device into the running domain: virDomainAttachDeviceFlags.

        Args:
            device: its XML.
            name: the device as the reader knows it.

        Raises:
            HostError: libvirt or QEMU refuses.
        """
        with self._connection.telling(f"{name} cannot be plugged into {self.name}"):
            _answer(partial(self.raw.attachDeviceFlags, device, libvirt.VIR_DOMAIN_AFFECT_LIVE))

    def detach(self, alias: str) -> None:
        """Ask for a device to be pulled out: virDomainDetachDeviceAlias. One that is out already is as good.

        Args:
            alias: what libvirt calls it. It is gone when `aliases` no longer has it.

        Raises:
            HostError: libvirt or QEMU refuses, or the guest is gone.
        """
        with self._connection.telling(f"{alias} cannot be pulled out of {self.name}"):
            if alias in self.aliases():
                _answer(partial(self.raw.detachDeviceAlias, alias, libvirt.VIR_DOMAIN_AFFECT_LIVE))

    def aliases(self) -> frozenset[str]:
        """What libvirt calls the devices that the domain has now."""
        devices = ET.fromstring(self.xml())  # noqa: S314  libvirt printed it
        return frozenset(alias.get("name", "") for alias in devices.iterfind("devices/*/alias"))

    def screenshot(self, path: Path) -> None:
        """Write a picture of the first screen: PNG, or PPM where QEMU is older than 7.1.

        Raises:
            HostError: the guest has no screen, or is gone.
            OSError: the file cannot be written.
        """
        with self._connection.telling(f"no screenshot of {self.name}"):
            picture = _answer(self._draw)
        path.write_bytes(picture)

    def _draw(self) -> bytes:
        stream, picture = self.raw.connect().newStream(), bytearray()
        self.raw.screenshot(stream, 0, 0)
        stream.recvAll(lambda _stream, data, _: picture.extend(data), None)
        stream.finish()
        return bytes(picture)

    def send_keys(self, codes: Sequence[int], *, hold: float) -> None:
        """Press keys together on the guest's keyboard.

        Args:
            codes: Linux key codes (linux/input-event-codes.h), 16 at most.
            hold: seconds between press and release.
        """
        with self._connection.telling(f"{self.name} takes no keys"):
            keys = [libvirt.VIR_KEYCODE_SET_LINUX, int(hold * 1000), list(codes), len(codes), 0]
            _answer(lambda: self.raw.sendKey(*keys))

    def monitor(self, command: str, *, seconds: float = _ANSWER_SECONDS) -> str:
        """Run a command of QEMU's human monitor (https://www.qemu.org/docs/master/system/monitor.html).

        Args:
            command: one line.
            seconds: how long it may take.

        Raises:
            HostError: the guest is gone, or QEMU does not answer in time.
        """
        human = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        with self._connection.telling(f"the monitor of {self.name} does not answer '{command}'"):
            said = _answer(lambda: libvirt_qemu.qemuMonitorCommand(self.raw, command, human), seconds)
        return str(said)

    def qmp(self, command: str, **arguments: object) -> Any:
        """Run a command of QEMU's machine protocol (https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html).

        Args:
            command: its name.
            arguments: its arguments; an underscore stands for a hyphen.

        Returns:
            What QEMU answers.

        Raises:
            HostError: QEMU refuses, or the guest is gone.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        text = json.dumps({"execute": command, "arguments": named})
        with self._connection.telling(f"{self.name} does not do '{command}'"):
            answer = json.loads(_answer(lambda: libvirt_qemu.qemuMonitorCommand(self.raw, text, 0)))
        if "error" in answer:
            raise HostError(f"{self.name} does not do '{command}': {answer['error'].get('desc', answer)}")
        return answer["return"]

    def agent_answers(self, *, seconds: int) -> bool:
        """Whether a guest agent answers (qemu-ga's `guest-ping`); False at once where none is connected.

        Args:
            seconds: how long it may take.
        """
        ping = json.dumps({"execute": "guest-ping"})
        with contextlib.suppress(libvirt.libvirtError, TimeoutError):
            _answer(lambda: libvirt_qemu.qemuAgentCommand(self.raw, ping, seconds, 0))
            return True
        return False

    def seconds_used(self) -> float:
        """The processor time that QEMU has used for this guest so far."""
        with self._connection.telling(f"libvirt does not tell how busy {self.name} is"):
            return float(_answer(self.raw.info)[4]) / 1e9

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


def _no_longer_there() -> set[int]:
    return {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}


def _state_name(state: int, reason: int) -> str:
    if (state, reason) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR):
        return "stuck"
    names = {
        libvirt.VIR_DOMAIN_PAUSED: "paused",
        libvirt.VIR_DOMAIN_PMSUSPENDED: "paused",
        libvirt.VIR_DOMAIN_SHUTOFF: "off",
        libvirt.VIR_DOMAIN_CRASHED: "crashed",
    }
    return names.get(state, "running")
