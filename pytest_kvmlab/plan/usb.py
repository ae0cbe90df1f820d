"""USB devices as libvirt's XML (https://libvirt.org/formatdomain.html, "Host device assignment").

They are plugged into a guest before its first instruction, not written into its domain: so it is the same
for a guest that boots, one that starts from a frozen state, and one that runs.
"""

from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.plan.elements import document, element, nested


@dataclass(frozen=True)
class PassedDevice:
    """A device of this machine, which is given to the guest as it is.

    Attributes:
        alias: what libvirt and QEMU call it.
        bus: the number of its bus.
        number: its number there, which holds until it is plugged in anew.
    """

    alias: str
    bus: int
    number: int


@dataclass(frozen=True)
class RedirectedDevice:
    """A device that somebody else plays: QEMU listens for it, and it is plugged in while it is connected.

    Attributes:
        alias: what libvirt and QEMU call it.
        socket: where QEMU listens.
    """

    alias: str
    socket: Path


def passed_device(index: int, bus: int, number: int) -> PassedDevice:
    """Decide how a device of this machine is given to a guest.

    Args:
        index: which of the guest's USB devices it is.
        bus: the number of its bus.
        number: its number there.
    """
    return PassedDevice(_alias(index), bus, number)


def redirected_device(index: int, folder: Path) -> RedirectedDevice:
    """Decide where QEMU listens for a virtual device.

    Args:
        index: which of the guest's USB devices it is.
        folder: the guest's own folder, whose path leaves room for `serial.sock`, which is longer.
    """
    return RedirectedDevice(_alias(index), folder / f"usb{index}.sock")


def usb_xml(device: PassedDevice | RedirectedDevice) -> str:
    """Print a device.

    Args:
        device: what was decided.

    Returns:
        Its XML, to be attached to a domain.
    """
    match device:
        case PassedDevice(alias, bus, number):
            source = element("source", startupPolicy="mandatory")
            source.append(element("address", bus=str(bus), device=str(number)))
            printed = element("hostdev", mode="subsystem", type="usb", managed="yes")
        case RedirectedDevice(alias, socket):
            source = element("source", mode="bind", path=str(socket))
            printed = element("redirdev", bus="usb", type="unix")
    return document(nested(printed, source, element("alias", name=alias)))


def _alias(index: int) -> str:
    """Libvirt keeps an alias of ours if it starts with `ua-` (formatdomain, "User aliases")."""
    return f"ua-usb{index}"
