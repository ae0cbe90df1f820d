"""USB devices of this host that guests have: the kernel's drivers are called back when the guests are gone.

By itself the kernel does not give a device to the driver that had it before a program took it (linux:
drivers/usb/core/devio.c). The program asks for that; one that was killed did not.
"""

import contextlib
import fcntl
import os
import re
import struct
from pathlib import Path

from pytest_kvmlab.keeper.run_folder import RunFolder

_SYSFS, _DEV = Path("/sys/bus/usb/devices"), Path("/dev")
_PORT = re.compile(r"[0-9]+-[0-9]+(\.[0-9]+)*")
_SUFFIX = ".borrowed"
# linux/usbdevice_fs.h: _IOWR('U', 18, struct usbdevfs_ioctl), and inside it _IO('U', 23).
_USBDEVFS_IOCTL, _USBDEVFS_CONNECT = 0xC0105512, 0x5517


def borrow(guest: Path, port: str) -> None:
    """Write down that a guest has the device in a port, for whoever is left at the end.

    Args:
        guest: the guest's own folder.
        port: where the device is plugged into this host, `1-1.4`.
    """
    (guest / f"{port}{_SUFFIX}").touch()


def returned(guest: Path, port: str) -> None:
    """Write down that this host has the device in a port back."""
    (guest / f"{port}{_SUFFIX}").unlink(missing_ok=True)


def call_back_all(folder: RunFolder) -> None:
    """Call the drivers back for what the guests of a run had when it ended."""
    for record in folder.guests.glob(f"*/*{_SUFFIX}"):
        call_back(record.name.removesuffix(_SUFFIX))


def call_back(port: str, sysfs: Path = _SYSFS, dev: Path = _DEV) -> None:
    """Let the kernel find drivers for a device that a program has left; one that is gone needs none.

    Args:
        port: where it is plugged in.
        sysfs: the folder of all USB devices.
        dev: the folder of device nodes.
    """
    if not _PORT.fullmatch(port):
        return
    with contextlib.suppress(OSError, ValueError):
        bus, number = (int((sysfs / port / name).read_text()) for name in ("busnum", "devnum"))
        descriptor = os.open(dev / f"bus/usb/{bus:03}/{number:03}", os.O_RDWR | os.O_CLOEXEC)
        try:
            for interface in (sysfs / port).glob(f"{port}:*"):
                _connect(descriptor, int(interface.name.rpartition(".")[2]))
        finally:
            os.close(descriptor)


def _connect(descriptor: int, interface: int) -> None:
    request = struct.pack("iiP", interface, _USBDEVFS_CONNECT, 0)
    with contextlib.suppress(OSError):  # no driver wants it, or it has one, or a program has it
        fcntl.ioctl(descriptor, _USBDEVFS_IOCTL, request)
