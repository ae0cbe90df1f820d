"""pytest fixtures that start, check and take down KVM guests through libvirt.

What a test names in its annotations is here: `from pytest_kvmlab import Guest`. It is imported when it is
asked for, because every pytest of the environment imports this package.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_kvmlab.drivers.command import CommandResult
    from pytest_kvmlab.drivers.usb_descriptors import UsbEndpoint, UsbInterface
    from pytest_kvmlab.drivers.usb_requests import ControlRequest, UsbStall
    from pytest_kvmlab.drivers.virtual_usb_device import VirtualUsbDevice
    from pytest_kvmlab.errors import (
        CommandFailed,
        GuestError,
        KernelDidNotBoot,
        KvmlabError,
        SerialMismatch,
        WaitTimeout,
    )
    from pytest_kvmlab.lab.guest import Guest
    from pytest_kvmlab.lab.lab import Lab
    from pytest_kvmlab.lab.usb import Dongle
    from pytest_kvmlab.plugin.facts import HostFacts, MakeGuest

__version__ = "0.1.0"

__all__ = [
    "CommandFailed",
    "CommandResult",
    "ControlRequest",
    "Dongle",
    "Guest",
    "GuestError",
    "HostFacts",
    "KernelDidNotBoot",
    "KvmlabError",
    "Lab",
    "MakeGuest",
    "SerialMismatch",
    "UsbEndpoint",
    "UsbInterface",
    "UsbStall",
    "VirtualUsbDevice",
    "WaitTimeout",
]

_HOMES = {
    "pytest_kvmlab.drivers.command": ("CommandResult",),
    "pytest_kvmlab.drivers.usb_descriptors": ("UsbEndpoint", "UsbInterface"),
    "pytest_kvmlab.drivers.usb_requests": ("ControlRequest", "UsbStall"),
    "pytest_kvmlab.drivers.virtual_usb_device": ("VirtualUsbDevice",),
    "pytest_kvmlab.errors": (
        "CommandFailed",
        "GuestError",
        "KernelDidNotBoot",
        "KvmlabError",
        "SerialMismatch",
        "WaitTimeout",
    ),
    "pytest_kvmlab.lab.guest": ("Guest",),
    "pytest_kvmlab.lab.lab": ("Lab",),
    "pytest_kvmlab.lab.usb": ("Dongle",),
    "pytest_kvmlab.plugin.facts": ("HostFacts", "MakeGuest"),
}


def __getattr__(name: str) -> object:
    """Import a public name from its home (PEP 562)."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
