"""The USB devices of a machine: dongles of this host, and virtual ones.

They are plugged in before its first instruction, and pulled out and put back at any time after it. A dongle
of this host that starts over, or is pulled out by hand and put back, is given to the guest again.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.libvirt import Domain
from pytest_kvmlab.drivers.usb_devices import HostDevice
from pytest_kvmlab.drivers.virtual_usb_device import VirtualUsbDevice
from pytest_kvmlab.errors import GuestError, HostError, KvmlabError, TeardownError, UsbError
from pytest_kvmlab.keeper.borrowed import borrow, call_back, returned
from pytest_kvmlab.lab.dongles import Supply
from pytest_kvmlab.lab.usb_left import play_on
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.plan.usb import passed_device, redirected_device, usb_xml
from pytest_kvmlab.spec.usb import UsbKeys

_LOOK_SECONDS = 0.5
# QEMU gives a device back within milliseconds; the kernel's own drivers may look at it for a while.
_BACK_SECONDS = 10.0
_GONE_SECONDS = 10.0

Note = Callable[[str, str], None]
"""Writes down what happened to a dongle, and what went wrong, if anything."""


@dataclass
class UsbPorts:
    """The USB ports of one machine, and what belongs into them.

    Attributes:
        name: the guest's name.
        folder: the guest's own folder.
        note: writes down what happens to a dongle.
        dongles: what belongs into them.
        first: what belongs into them from the start.
    """

    name: str
    folder: Path
    note: Note
    dongles: list["Dongle"] = field(default_factory=list)
    first: list["Dongle"] = field(default_factory=list)
    _domain: Domain | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _watch: "_Watch | None" = None

    @property
    def domain(self) -> Domain:
        """The machine that has the ports.

        Raises:
            GuestError: the power is off.
        """
        if self._domain is None:
            raise GuestError(f"{self.name} is switched off", "switch it on: guest.start()", phase="create")
        return self._domain

    @property
    def wanted(self) -> list["Dongle"]:
        """What the guest should have now."""
        return [dongle for dongle in self.dongles if dongle.is_wanted]

    @property
    def plugged(self) -> list["Dongle"]:
        """What the guest has now."""
        return [dongle for dongle in self.dongles if dongle.is_plugged]

    @property
    def free_number(self) -> int:
        """The number of a port that nothing belongs into."""
        return next(number for number in range(256) if number not in {each.number for each in self.dongles})

    def power_on(self, domain: Domain) -> None:
        """Plug everything into a machine that does not run yet.

        Raises:
            UsbError: a dongle is not plugged into the host any more, or stays with the host.
            HostError: libvirt or QEMU refuses.
        """
        with self._lock:
            self._domain = domain
            for dongle in self.dongles:
                dongle.seat()
        if any(isinstance(dongle, HostDongle) for dongle in self.dongles):
            self._watch = _Watch(self._look)

    def power_off(self) -> None:
        """See that the host has everything back; called when the machine is gone.

        Raises:
            TeardownError: a dongle does not come back; the others are back.
        """
        watch, self._watch = self._watch, None
        if watch:
            watch.end()
        with self._lock, ExitStack() as ends:
            self._domain = None
            for dongle in self.dongles:
                ends.callback(dongle.unseat)

    def add(self, dongle: "Dongle") -> None:
        """Let something belong into the ports, and plug it in."""
        with self._lock, ExitStack() as undo:
            undo.callback(dongle.leave)
            undo.callback(dongle.unseat)
            dongle.seat()
            self.dongles.append(dongle)
            undo.pop_all()
        if self._watch is None and isinstance(dongle, HostDongle):
            self._watch = _Watch(self._look)

    def remove(self, dongle: "Dongle") -> None:
        """Pull something out for good."""
        with self._lock:
            dongle.unplug()
            dongle.unseat()
            dongle.leave()
            self.dongles.remove(dongle)

    def renew(self) -> None:
        """Make them as they were at first; called while the power is off.

        Raises:
            UsbError: a dongle that was given away meanwhile is not to be had again.
        """
        for dongle in self.dongles:
            if dongle not in self.first:
                dongle.leave()
        for dongle in self.first:
            dongle.renew()
        self.dongles[:] = self.first

    def leave(self) -> None:
        """Let others have everything; called when the host has it back."""
        for dongle in self.dongles:
            dongle.leave()

    def locked(self) -> threading.RLock:
        """What keeps others, above all who watches the host's dongles, from changing anything meanwhile."""
        return self._lock

    def _look(self) -> None:
        with self._lock:
            for dongle in self.dongles:
                if self._domain and isinstance(dongle, HostDongle):
                    dongle.look()


class _Watch:
    """Calls something again and again until the end."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[look], name="kvmlab-usb", daemon=True)
        self._thread.start()

    def _run(self, look: Callable[[], None]) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            with suppress(KvmlabError):  # the guest ended meanwhile: that is told where it is noticed
                look()

    def end(self) -> None:
        """Let it end, and wait for that."""
        self._over.set()
        self._thread.join()


class Dongle(ABC):
    """A USB device of a guest.

    Attributes:
        name: what a test calls it.
        id: vendor and product, `0a5e:2110`.
        serial: its serial number, if it has one.
        number: which of the guest's USB devices it is.
    """

    def __init__(self, ports: UsbPorts, name: str, id_: str, serial: str | None) -> None:
        self.name = name
        self.id = id_
        self.serial = serial
        self.number = ports.free_number
        self._ports = ports

    def __repr__(self) -> str:
        return f"<dongle {self.name!r} of {self._ports.name}>"

    @property
    def port(self) -> str | None:
        """Where it is plugged into the host; None of a virtual one."""
        return None

    @property
    @abstractmethod
    def is_wanted(self) -> bool:
        """Whether the guest should have it: it was plugged in, and not pulled out of the guest since."""

    @property
    @abstractmethod
    def is_plugged(self) -> bool:
        """Whether the guest has it."""

    @abstractmethod
    def plug(self) -> None:
        """Plug it into the guest again; does nothing if it is plugged in.

        Raises:
            GuestError: the guest is off.
            UsbError: it is not there.
        """

    @abstractmethod
    def unplug(self) -> None:
        """Pull it out of the guest, in the middle of whatever it does; does nothing if it is out."""

    @abstractmethod
    def seat(self) -> None:
        """Get it into a machine that is new, or that it is new to."""

    @abstractmethod
    def unseat(self) -> None:
        """See that nothing of it is left where it was."""

    @abstractmethod
    def renew(self) -> None:
        """Make it as it was at first."""

    @abstractmethod
    def leave(self) -> None:
        """Let others have it."""


class HostDongle(Dongle):
    """A dongle of this host.

    Args:
        ports: of the guest.
        name: what a test calls it.
        keys: what is asked for.
        supply: gives the dongle, now and again after it was given away.

    Attributes:
        lease: says that it is this guest's alone.
    """

    def __init__(self, ports: UsbPorts, keys: UsbKeys, supply: Supply) -> None:
        lease = supply.first(keys)
        super().__init__(ports, keys.called, keys.id, lease.device.serial)
        self.lease = lease
        self._usb = supply.usb
        self._bus = supply.usb.bus
        self._again = partial(supply.more, keys)
        self._given: HostDevice | None = None
        self._inside = False
        self._others = self._elsewhere()
        self._was_with_host = False
        self._said = set[str]()
        self._reset = f"{self.name} is being reset, and stays in the guest"

    @property
    def port(self) -> str:
        """Where it is plugged into the host."""
        return self.lease.device.port

    @property
    def is_wanted(self) -> bool:
        """Whether it was given to the guest."""
        return self._given is not None

    @property
    def is_plugged(self) -> bool:
        """Whether the guest has it, and it is not pulled out of the host."""
        now, given = self._bus.at(self.port), self._given
        there = now is not None and given is not None and now.is_same(given) and now.number == given.number
        return self._inside and there

    def plug(self) -> None:
        """Give it to the guest."""
        with self._ports.locked():
            if self._given is None:
                device = self._plugged_into_host()
                self._give(device)
                self._given = device

    def unplug(self) -> None:
        """Take it from the guest, and give it back to the host's kernel."""
        with self._ports.locked():
            if self._given is not None:
                self._given = None
                self._take()
                self._see_back()

    def seat(self) -> None:
        """Give it to a new machine."""
        self._given, self._inside = None, False
        self.plug()

    def unseat(self) -> None:
        """See that the host has it back.

        Raises:
            TeardownError: it has not.
        """
        self._given, self._inside = None, False
        self._see_back()

    def renew(self) -> None:
        """Lease it again, if it was given away."""
        if not self.lease.is_held:
            self.lease = self._again()
            self._others = self._elsewhere()

    def leave(self) -> None:
        """End the lease."""
        self.lease.release()

    def keep(self) -> Path:
        """Let the lease last as long as whoever locks this file lives."""
        with self._ports.locked():
            self.lease.keep()
            return self.lease.file

    def look(self) -> None:
        """Take it from the guest if it was pulled out of the host, and give it again once it is back.

        QEMU itself notices only when it has something to tell the device (hw/usb/host-libusb.c). A reset that
        another program asks for gives it to the kernel's drivers (linux: usb_reset_device).
        """
        now = self._bus.at(self.port)
        if now and now.is_starting_over:
            self._see_reset()
        elif now and now.is_same(self.lease.device):
            self._others = self._elsewhere()
            self._see_the_same(now)
        elif self._given is not None:
            self._say(_what_is_in_place(now, self.name, self.port))
            self._take()
            if moved := self._moved():
                self._replace(moved, f"was put into the host's port {moved.port}")

    def _see_reset(self) -> None:
        """A reset, which guests do, too, is no reason to take it away."""
        if self._inside:
            self._say(self._reset)

    def _see_the_same(self, now: HostDevice) -> None:
        self._said.discard(self._reset)
        stays_with_host = self._was_with_host and bool(now.drivers)
        self._was_with_host = bool(now.drivers)
        if self._given is None:
            return
        if now.number != self._given.number or not self._inside:
            self._replace(now, "started over on the host")
        # Seen twice: once may be on its way. After the guest's end it is right so.
        elif stays_with_host and not _is_gone(self._ports.domain, self._alias):
            self._replace(now, f"was taken by the host's driver {', '.join(sorted(now.drivers))}")

    def _replace(self, now: HostDevice, what: str) -> None:
        try:
            self._take()
            self._give(now)
            self._given = now
        except (HostError, UsbError) as error:
            self._say(f"{self.name} is back, but not in the guest", error.message)
        else:
            self._said.clear()
            self._ports.note(f"{self.name} {what}, and is in the guest again", "")

    def _elsewhere(self) -> frozenset[tuple[str, int]]:
        """The equal ones in other ports, which are not this one."""
        return frozenset((each.port, each.number) for each in self._usb.like(self.lease))

    def _moved(self) -> HostDevice | None:
        """The device in another port that it was put into, which is this guest's alone from now on."""
        for device in self._usb.like(self.lease):
            if (device.port, device.number) in self._others:
                continue
            before = self.port
            obstacle = self._usb.follow(self.lease, device)
            if obstacle == "":
                returned(self._ports.folder, before)
                return device
            if obstacle:
                self._say(f"{self.name} in the host's port {device.port} is not given to the guest", obstacle)
        return None

    def _say(self, what: str, outcome: str = "") -> None:
        """Write something down once, not with every look."""
        if what not in self._said:
            self._said.add(what)
            self._ports.note(what, outcome)

    def _plugged_into_host(self) -> HostDevice:
        until(lambda: None if self._is_starting_over() else True, Deadline(_BACK_SECONDS))
        device = self._bus.at(self.port)
        if device and device.is_same(self.lease.device):
            return device
        if moved := self._moved():
            return moved
        raise UsbError(
            f"{self.name} is not in the host's port {self.port} any more",
            "put it back, and run the test again",
            looked_at=[f"{self.port}: {device.id if device else 'nothing'}"],
        )

    def _is_starting_over(self) -> bool:
        now = self._bus.at(self.port)
        return now is not None and now.is_starting_over

    def _give(self, device: HostDevice) -> None:
        self._see_free(device)
        planned = passed_device(self.number, device.bus, device.number)
        borrow(self._ports.folder, device.port)
        with ExitStack() as undo:
            self._ports.domain.attach(usb_xml(planned), self.name)
            self._inside = True
            undo.callback(self._take)
            self._see_inside(planned.alias)
            undo.pop_all()

    def _see_free(self, device: HostDevice) -> None:
        """See that nobody else has come to use it since it was leased, or was last in the guest."""
        if needed := self._bus.needed(device):
            raise UsbError(f"{self.name} is not given to {self._ports.name}: {needed}")
        if not until(lambda: None if self._bus.holder(device) else True, Deadline(_BACK_SECONDS)):
            raise UsbError(
                f"{self.name} is held by {self._bus.holder(device) or 'a program that ended just now'}",
                "end that program, or use another dongle",
            )

    def _see_inside(self, alias: str) -> None:
        if f"ID: {alias}" not in self._ports.domain.monitor("info usb"):
            raise UsbError(f"QEMU took {self.name}, but does not show it to {self._ports.name}")
        now = self._bus.at(self.port)
        if now and now.drivers:
            raise UsbError(
                f"the host keeps {self.name}: its driver {', '.join(sorted(now.drivers))} still has it"
            )

    def _take(self) -> None:
        """Let the guest have it no longer, if it has it."""
        if not self._inside:
            return
        self._ports.domain.detach(self._alias)
        self._inside = False
        _see_gone(self._ports.domain, self._alias, self.name)

    @property
    def _alias(self) -> str:
        return passed_device(self.number, 0, 0).alias

    def _see_back(self) -> None:
        """See that nobody has it any more, and that the host's own drivers have it as before."""
        if until(self._is_back, Deadline(_BACK_SECONDS)):
            returned(self._ports.folder, self.port)
            return
        raise TeardownError(
            f"the host does not have {self.name} back",
            "pull it out and put it back by hand, or reset it: usbreset",
            looked_at=[f"held by: {self._bus.holder(self.lease.device) or 'nobody'}"],
        )

    def _is_back(self) -> bool | None:
        now, before = self._bus.at(self.port), self.lease.device
        if now is None or not now.is_same(before):
            return True  # pulled out meanwhile
        if now.is_starting_over or self._bus.holder(now):
            return None
        if before.drivers <= now.drivers:
            return True
        call_back(self.port, self._bus.sysfs, self._bus.dev)
        return None


class VirtualDongle(Dongle):
    """A dongle that this process plays.

    Args:
        ports: of the guest.
        name: what a test calls it.
        device: what answers the guest.
        plugged: whether it is plugged in from the start.

    Attributes:
        device: as given.
    """

    def __init__(self, ports: UsbPorts, name: str, device: VirtualUsbDevice, *, plugged: bool) -> None:
        super().__init__(ports, name, device.identity, device.serial or None)
        self.device = device
        self._at_first = self._wanted = plugged
        self._served = ExitStack()

    @property
    def is_wanted(self) -> bool:
        """Whether it was plugged in."""
        return self._wanted

    @property
    def is_plugged(self) -> bool:
        """Whether the guest has it."""
        return self.device.is_plugged

    def plug(self) -> None:
        """Plug it in."""
        with self._ports.locked():
            self._wanted = True
            self.device.plug()

    def unplug(self) -> None:
        """Pull it out."""
        with self._ports.locked():
            self._wanted = False
            self.device.unplug()

    def seat(self) -> None:
        """Let QEMU listen for it, and connect."""
        planned = redirected_device(self.number, self._ports.folder)
        self._ports.domain.attach(usb_xml(planned), self.name)
        self._served.enter_context(self.device.serve(planned.socket, plugged=self._wanted))

    def renew(self) -> None:
        """Be plugged in as at first."""
        self._wanted = self._at_first

    def leave(self) -> None:
        """It is nobody else's."""

    def play_on(self) -> None:
        """Have it played after this process has ended, as long as the guest lives, if it is plugged in."""
        if self.is_plugged:
            self._served.close()
            play_on(self.device, redirected_device(self.number, self._ports.folder).socket)

    def unseat(self) -> None:
        """Let the guest have it no longer."""
        self._served.close()
        with suppress(GuestError):
            alias = redirected_device(self.number, self._ports.folder).alias
            self._ports.domain.detach(alias)
            _see_gone(self._ports.domain, alias, self.name)


def _what_is_in_place(now: HostDevice | None, name: str, port: str) -> str:
    if now is None:
        return f"{name} was pulled out of the host's port {port}"
    return f"{now.id} is in the host's port {port} in place of {name}"


def _see_gone(domain: Domain, alias: str, name: str) -> None:
    if not until(partial(_is_gone, domain, alias), Deadline(_GONE_SECONDS)):
        raise UsbError(f"QEMU does not let go of {name} within {_GONE_SECONDS:g} s")


def _is_gone(domain: Domain, alias: str) -> bool | None:
    return None if alias in domain.aliases() else True
