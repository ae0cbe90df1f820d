"""A machine with USB devices made of files, as the kernel shows them: no machine of a test run needs any."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pytest_kvmlab.drivers.usb_devices import HostBus, HostDevice
from pytest_kvmlab.lab.dongles import HostUsb, Lease, Wish
from pytest_kvmlab.spec.usb import UsbKeys

ID = "0a5e:2110"


@dataclass
class FakeHost:
    """A machine whose sysfs, device nodes and leases are below a folder; its processes are the real ones."""

    root: Path
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(2))

    def __post_init__(self) -> None:
        for folder in (self.usb.bus.sysfs, self.usb.bus.dev, self.usb.folder, self._tree("usb1")):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def usb(self) -> HostUsb:
        bus = HostBus(self.root / "sys/bus/usb/devices", self.root / "dev", Path("/proc"))
        return HostUsb(bus, self.root / "lock")

    def plug(
        self,
        port: str,
        identity: str = ID,
        *,
        serial: str | None = None,
        kind: str = "ff",
        interface: tuple[str, str, str] = ("ff", "00", "00"),
        driver: str | None = None,
    ) -> HostDevice:
        """Plug a device into a port, perhaps in place of another one."""
        vendor, product = identity.split(":")
        number = next(self._numbers)
        folder = self._tree(port)
        facts = {"busnum": port[0], "devnum": str(number), "bDeviceClass": kind, "product": "Dongle"}
        facts |= {"idVendor": vendor, "idProduct": product} | ({"serial": serial} if serial else {})
        _write(folder, facts | {"uevent": f"DEVNAME=bus/usb/001/{number:03}\nDEVTYPE=usb_device"})
        names = ("bInterfaceClass", "bInterfaceSubClass", "bInterfaceProtocol")
        _write(folder / f"{port}:1.0", dict(zip(names, interface, strict=True)))
        self.bind(port, driver)
        node = self.usb.bus.dev / f"bus/usb/001/{number:03}"
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()
        link = self.usb.bus.sysfs / port
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(folder, link.parent))
        device = self.usb.bus.at(port)
        assert device
        return device

    @contextmanager
    def reset(self, port: str) -> Iterator[None]:
        """Let a device be in the midst of a reset as long as the context lasts: it has no number then."""
        folder = self._tree(port)
        facts = {name: (folder / name).read_text().rstrip() for name in ("devnum", "uevent")}
        _write(folder, {"devnum": "0", "uevent": "DEVNAME=bus/usb/001/000\nDEVTYPE=usb_device"})
        yield
        _write(folder, facts)

    def bind(self, port: str, driver: str | None) -> None:
        """Give the interface of a device to a driver of the kernel."""
        link = self._tree(port) / f"{port}:1.0" / "driver"
        link.unlink(missing_ok=True)
        if driver:
            link.symlink_to(f"../../../../bus/usb/drivers/{driver}")

    def add(self, port: str, path: str, **facts: str) -> None:
        """Let a driver have made something of a device, below its interface: a disk, a network card."""
        _write(self._tree(port) / f"{port}:1.0" / path, facts)

    def pull(self, port: str) -> None:
        """Pull a device out."""
        (self.usb.bus.sysfs / port).unlink()

    def lease(self, device: HostDevice, who: str, keys: UsbKeys | None = None) -> Lease:
        wish = Wish("server", keys or UsbKeys.model_validate(device.id))
        lease = self.usb.lease(wish, device, who)
        assert isinstance(lease, Lease)
        return lease

    def is_leased(self, port: str) -> bool:
        """Whether somebody has what is, or was, in a port."""
        return self.usb.holder(HostDevice(port, ID, None, "", 1, 0, 0, ())) is not None

    def _tree(self, port: str) -> Path:
        return self.root / "sys/devices/pci0000:00/usb1" / port


def _write(folder: Path, facts: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in facts.items():
        new = folder / f".{name}"
        new.write_text(f"{text}\n")
        new.replace(folder / name)  # nobody ever reads a half of it
