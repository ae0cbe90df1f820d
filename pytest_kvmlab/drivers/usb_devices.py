"""The door to the USB devices of this machine: what is plugged in, and who needs or has it.

All is read from sysfs (linux: Documentation/ABI/testing/sysfs-bus-usb) and proc(5). What a device says about
itself is text of a stranger, cut and cleaned here.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LONGEST_TEXT = 512
_NAME = re.compile(r"usb[0-9]+|[0-9]+-[0-9]+(\.[0-9]+)*")
# usb.org, "Defined Class Codes"; HID specification 1.11, 4.2 and 4.3.
_HUB = 0x09
_BOOT_KEYBOARD, _BOOT_MOUSE = (0x03, 0x01, 0x01), (0x03, 0x01, 0x02)
_IFF_UP = 0x1


@dataclass(frozen=True)
class HostInterface:
    """One function of a device: its class, subclass and protocol, and the driver that this kernel gave it."""

    name: str
    kind: tuple[int, int, int]
    driver: str | None


@dataclass(frozen=True)
class HostDevice:
    """A device that is plugged in.

    Attributes:
        port: where: `1-1.4` is bus 1, root port 1, and port 4 of a hub there.
        id: vendor and product, `0a5e:2110`.
        serial: its serial number, if it has one.
        label: what it calls itself.
        bus: the number of its bus.
        number: its number there, another one each time that it is plugged in; 0 while it is being reset.
        kind: its class; 0 leaves that to its interfaces.
        interfaces: its functions.
    """

    port: str
    id: str
    serial: str | None
    label: str
    bus: int
    number: int
    kind: int
    interfaces: tuple[HostInterface, ...]

    @property
    def is_hub(self) -> bool:
        """Whether others are plugged in there."""
        return self.kind == _HUB

    @property
    def is_starting_over(self) -> bool:
        """Whether it is being reset: it has no node then, and nobody can tell who has it.

        The kernel takes its number away for as long (linux: drivers/usb/core/hub.c, hub_port_reset).
        """
        return self.number == 0

    @property
    def drivers(self) -> frozenset[str]:
        """The kernel's drivers that have it; not `usbfs`, which stands for a program."""
        return frozenset(each.driver for each in self.interfaces if each.driver) - {"usbfs"}

    def is_same(self, other: "HostDevice | None") -> bool:
        """Whether another one looks like this one, and may be it after it was plugged in again."""
        return other is not None and (self.id, self.serial) == (other.id, other.serial)


@dataclass(frozen=True)
class HostBus:
    """Where to look.

    Attributes:
        sysfs: the folder of all USB devices.
        dev: the folder of device nodes.
        proc: the folder of processes.
    """

    sysfs: Path = Path("/sys/bus/usb/devices")
    dev: Path = Path("/dev")
    proc: Path = Path("/proc")

    @property
    def is_there(self) -> bool:
        """Whether this machine has USB at all."""
        return self.sysfs.is_dir()

    def devices(self) -> list[HostDevice]:
        """Everything that is plugged in, hubs included, in the order of the ports."""
        found = [_device(folder) for folder in self._folders()]
        return sorted(filter(None, found), key=lambda device: _in_order(device.port))

    def at(self, port: str) -> HostDevice | None:
        """The device that is plugged in at a port now."""
        return _device(self.sysfs / port) if _NAME.fullmatch(port) else None

    def node(self, device: HostDevice) -> Path:
        """The device node through which programs use it."""
        return self.dev / f"bus/usb/{device.bus:03}/{device.number:03}"

    def needed(self, device: HostDevice) -> str:
        """Why this machine needs a device, so that no guest gets it; empty if it does not."""
        if device.is_hub:
            return "it is a hub, and what is plugged in there would go with it"
        folder = self.sysfs / device.port
        reasons = (*_as_input(device), *self._as_disk(folder), *_as_network(folder))
        return next(iter(reasons), "")

    def holder(self, device: HostDevice) -> str:
        """The program that has a device open, as `PROGRAM (process N)`; empty if none has.

        Processes of others are seen by root only; of theirs, only that they talk to the device is known.
        """
        nodes = {str(self.node(device)), *map(str, self._nodes(self.sysfs / device.port))}
        for process in _processes(self.proc):
            if nodes & set(_open_files(process)):
                name = _text(process / "comm") or "a program"
                return f"{name} (process {process.name})"
        if any(interface.driver == "usbfs" for interface in device.interfaces):
            return "a program of another user"
        return ""

    def unseen(self, device: HostDevice) -> str:
        """Through what another user's program may have a device without this user seeing it; empty of root.

        Who talks to the device itself is seen (`usbfs`); not who has the serial port open that it is.
        """
        if os.geteuid() == 0:
            return ""
        nodes = {facts["DEVNAME"] for facts in _events(self.sysfs / device.port)}
        return ", ".join(sorted(name for name in nodes if not name.startswith("bus/usb/")))

    def is_accessible(self, device: HostDevice) -> bool:
        """Whether this user may read and write its node."""
        return os.access(self.node(device), os.R_OK | os.W_OK)

    def _folders(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            yield from (entry for entry in self.sysfs.iterdir() if _NAME.fullmatch(entry.name))

    def _as_disk(self, folder: Path) -> Iterator[str]:
        blocks = {_number(facts): facts["DEVNAME"] for facts in self._blocks(folder)}
        if not blocks:
            return
        for holder in folder.resolve().rglob("block/**/holders/*"):
            yield f"{holder.parent.parent.name} is a part of {holder.name} (LVM, RAID or encryption)"
        for number, source, place in self._mounts():
            if number in blocks or source in {f"/dev/{name}" for name in blocks.values()}:
                yield f"its disk is mounted on {place}"
        for swap in self._swaps():
            if swap in {f"/dev/{name}" for name in blocks.values()}:
                yield f"this machine swaps to {swap}"

    def _blocks(self, folder: Path) -> Iterator[dict[str, str]]:
        return (facts for facts in _events(folder) if facts.get("DEVTYPE") in ("disk", "partition"))

    def _nodes(self, folder: Path) -> Iterator[Path]:
        return (self.dev / facts["DEVNAME"] for facts in _events(folder))

    def _mounts(self) -> Iterator[tuple[str, str, str]]:
        """Number, source and place of every mount, in whatever namespace."""
        for process in _processes(self.proc):
            for line in _lines(process / "mountinfo"):
                words = line.split()
                if "-" in words[6:] and len(words) > (bar := words.index("-", 6)) + 2:
                    yield words[2], words[bar + 2], words[4]

    def _swaps(self) -> Iterator[str]:
        return (line.split()[0] for line in _lines(self.proc / "swaps")[1:] if line.strip())


def _device(folder: Path) -> HostDevice | None:
    """One device; None if it is gone, perhaps while it was looked at."""
    numbers = [_text(folder / name) for name in ("busnum", "devnum", "bDeviceClass", "idVendor", "idProduct")]
    try:
        bus, number, kind = int(numbers[0]), int(numbers[1]), int(numbers[2], 16)
    except ValueError:
        return None
    return HostDevice(
        port=folder.name,
        id=f"{numbers[3]}:{numbers[4]}".lower(),
        serial=_text(folder / "serial") or None,
        label=" ".join(filter(None, (_text(folder / "manufacturer"), _text(folder / "product")))),
        bus=bus,
        number=number,
        kind=kind,
        interfaces=tuple(_interface(path) for path in sorted(folder.glob(f"{folder.name}:*"))),
    )


def _interface(folder: Path) -> HostInterface:
    kind = [_text(folder / f"bInterface{name}") for name in ("Class", "SubClass", "Protocol")]
    first, second, third = (int(number, 16) if re.fullmatch("[0-9a-f]{2}", number) else 0 for number in kind)
    try:
        driver = (folder / "driver").readlink().name
    except OSError:
        driver = None
    return HostInterface(folder.name, (first, second, third), driver)


def _in_order(port: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", port)]


def _as_input(device: HostDevice) -> Iterator[str]:
    bound = [each.kind for each in device.interfaces if each.driver == "usbhid"]
    for kind, name in ((_BOOT_KEYBOARD, "keyboard"), (_BOOT_MOUSE, "mouse")):
        if kind in bound:
            yield f"it is a {name} of this machine"


def _as_network(folder: Path) -> Iterator[str]:
    for flags in folder.resolve().glob("**/net/*/flags"):
        with contextlib.suppress(ValueError):
            if int(_text(flags), 16) & _IFF_UP:
                yield f"it is the network card {flags.parent.name}, which is up"


def _events(folder: Path) -> Iterator[dict[str, str]]:
    """What the kernel told udev of everything below a device that has a node (its files `uevent`)."""
    for file in folder.resolve().rglob("uevent"):
        facts = dict(line.split("=", 1) for line in _lines(file) if "=" in line)
        if "DEVNAME" in facts:
            yield facts


def _number(facts: dict[str, str]) -> str:
    return f"{facts.get('MAJOR')}:{facts.get('MINOR')}"


def _processes(proc: Path) -> Iterator[Path]:
    return (entry for entry in proc.iterdir() if entry.name.isdigit())


def _open_files(process: Path) -> Iterator[str]:
    """What a process has open; nothing of one that is gone, or another user's."""
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(descriptor.readlink())


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _text(file: Path) -> str:
    """The one line in a file of sysfs; empty if it is not there."""
    try:
        with file.open("rb") as content:
            said = content.read(_LONGEST_TEXT).decode(errors="replace")
    except OSError:
        return ""
    return as_shown(said)


def as_shown(said: str) -> str:
    """What a device says of itself, as one line without what would disturb a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in said.strip())
