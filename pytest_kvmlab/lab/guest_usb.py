"""The USB devices of a guest, as a test has them: `guest.usb`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_kvmlab.drivers.usb_models import MODELS
from pytest_kvmlab.drivers.virtual_usb_device import VirtualUsbDevice
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.commands import WAIT_SECONDS, Commands
from pytest_kvmlab.lab.dongles import Supply
from pytest_kvmlab.lab.usb import Dongle, HostDongle, UsbPorts, VirtualDongle
from pytest_kvmlab.lab.usb_seen import prove_gone, prove_plugged
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.names import nearest
from pytest_kvmlab.spec.usb import UsbKeys
from pytest_kvmlab.spec.validation import validate


class GuestUsb(Mapping[str, Dongle]):
    """The USB devices of a guest by name: `guest.usb["licence"].unplug()`, `guest.usb["0a5e:2110"].port`.

    Args:
        guest: the guest.
        supply: the dongles of this host that it has and may have.
    """

    def __init__(self, guest: Commands, supply: Supply) -> None:
        self._guest = guest
        self._ports: UsbPorts = guest.machine.usb
        self._supply = supply
        for keys in guest.spec.usb:
            self._ports.dongles.append(self._described(keys))
        self._ports.first = list(self._ports.dongles)

    @property
    def devices(self) -> tuple[Dongle, ...]:
        """What belongs to the guest, plugged in or not."""
        return tuple(self._ports.dongles)

    def serve(self, source: str) -> None:
        """Tell others who want a dongle of this guest that it is this test's."""
        self._supply.source = source

    def attach(
        self, device: str | Mapping[str, Any] | VirtualUsbDevice, *, timeout: float = WAIT_SECONDS
    ) -> Dongle:
        """Give the guest one more device, and wait until it sees it.

        Args:
            device: what the key `usb` takes, or a virtual device of one's own.
            timeout: seconds until the guest must see it, from when it is there.

        Returns:
            The device, to be plugged and unplugged.

        Raises:
            ConfigError: it is no device, or the guest has one of its name.
            UsbError: it is not there, somebody else has it, or the guest does not see it.
            GuestError: the guest is off.
        """
        _ = self._ports.domain  # no dongle is leased for a guest that is off
        dongle = self._made(device)
        self._ports.add(dongle)
        prove_plugged(self._guest, self._guest.deadline(timeout))
        return dongle

    def detach(self, device: "str | Dongle | VirtualUsbDevice", *, timeout: float = WAIT_SECONDS) -> None:
        """Take a device from the guest for good, and wait until the guest does not see it any more.

        A dongle of this host is the host's again, and free for other guests.

        Args:
            device: its name, or itself.
            timeout: seconds until the guest must have lost it.

        Raises:
            ConfigError: the guest has no such device.
            UsbError: the guest still sees it.
            TeardownError: the host does not have it back.
        """
        dongle = self._found(device)
        self._ports.remove(dongle)
        prove_gone(self._guest, dongle, self._guest.deadline(timeout))

    def close(self) -> None:
        """Let others have the guest's dongles, but those of one that is kept; called after its end."""
        self._ports.leave()

    def keep(self) -> list[Path]:
        """Let the guest have its dongles after this process has ended.

        Returns:
            The locks of those of this host, for whoever keeps the guest.
        """
        for dongle in self._ports.dongles:
            if isinstance(dongle, VirtualDongle):
                dongle.play_on()
        return [dongle.keep() for dongle in self._ports.dongles if isinstance(dongle, HostDongle)]

    def _made(self, device: str | Mapping[str, Any] | VirtualUsbDevice) -> Dongle:
        if isinstance(device, VirtualUsbDevice):
            name = f"{device.identity}#{device.serial}" if device.serial else device.identity
            self._refuse_second(name)
            return VirtualDongle(self._ports, name, device, plugged=True)
        keys = validate(GuestKeys, {"usb": [device]}, source=f"usb.attach of {self._guest.name}").usb
        assert keys  # noqa: S101  one was given
        self._refuse_second(keys[0].called)  # before a dongle is leased that nobody would give back
        return self._described(keys[0])

    def _refuse_second(self, name: str) -> None:
        if name in self:
            raise ConfigError(f"{self._guest.name} has a USB device called {name!r} already")

    def _described(self, keys: UsbKeys) -> Dongle:
        if keys.virtual is None:
            return HostDongle(self._ports, keys, self._supply)
        device = MODELS[keys.virtual](keys.id, serial=keys.serial or "")
        return VirtualDongle(self._ports, keys.called, device, plugged=keys.plugged)

    def _found(self, device: "str | Dongle | VirtualUsbDevice") -> Dongle:
        if isinstance(device, str):
            return self[device]
        for dongle in self._ports.dongles:
            if device is dongle or device is getattr(dongle, "device", None):
                return dongle
        raise ConfigError(f"{self._guest.name} does not have {device!r}")

    def __getitem__(self, name: str) -> Dongle:
        """The device of that name.

        Raises:
            ConfigError: the guest has no such device.
        """
        named = {dongle.name: dongle for dongle in self._ports.dongles}
        if name not in named:
            raise ConfigError(
                f"{self._guest.name} has no USB device {name!r}{nearest(name, named)}",
                f"its devices: {', '.join(named) or 'none'}",
            )
        return named[name]

    def __contains__(self, name: object) -> bool:
        """Whether the guest has a device of that name."""
        return any(dongle.name == name for dongle in self._ports.dongles)

    def __iter__(self) -> Iterator[str]:
        """The names of its devices."""
        return iter([dongle.name for dongle in self._ports.dongles])

    def __len__(self) -> int:
        """How many it has."""
        return len(self._ports.dongles)
