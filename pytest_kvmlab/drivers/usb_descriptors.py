"""What a USB device says of itself: its descriptors.

Source: Universal Serial Bus Specification 2.0, chapter 9.
"""

import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from pytest_kvmlab.drivers.usbredir import IN
from pytest_kvmlab.errors import ConfigError

Speed = Literal["low", "full", "high"]

CONFIGURATION = 1
"""The number of the only configuration."""
_PACKET_BYTES = {
    "bulk": {"low": 0, "full": 64, "high": 512},
    "interrupt": {"low": 8, "full": 64, "high": 1024},
}
_ENGLISH = struct.pack("<BBH", 4, 3, 0x0409)
_MOST_INTERFACES = 32  # of usbredir's arrays


class Descriptor(IntEnum):
    """The types of descriptor that a device is asked for (table 9-5)."""

    DEVICE = 1
    CONFIGURATION = 2
    STRING = 3
    INTERFACE = 4
    ENDPOINT = 5
    QUALIFIER = 6


@dataclass(frozen=True)
class UsbEndpoint:
    """A pipe to or from a device.

    Args:
        address: 0x01 to 0x0f for data to the device, 0x81 to 0x8f for data to the guest.
        kind: `bulk` or `interrupt`.
        packet_size: bytes of one packet; by default the most that the device's speed allows.
        interval: how often the guest polls an interrupt endpoint: every so many milliseconds; at high speed
            every 2 ** (interval - 1) times 125 microseconds.
    """

    address: int
    kind: Literal["bulk", "interrupt"] = "bulk"
    packet_size: int = 0
    interval: int = 10

    def size(self, speed: Speed) -> int:
        """Bytes of one packet at that speed."""
        return self.packet_size or _PACKET_BYTES[self.kind][speed]

    def polled(self) -> int:
        """The interval that the descriptor names."""
        return self.interval if self.kind == "interrupt" else 0


@dataclass(frozen=True)
class UsbInterface:
    """One function of a device: what the guest binds a driver to.

    Args:
        interface_class: the class code; 0xff is the vendor's own, which no driver takes by its class.
        subclass: what the class means by it.
        protocol: what the class means by it.
        endpoints: the pipes of this function beside the one for control.
        class_descriptors: descriptors of the class's own, as bytes, such as that of HID.
        name: what a person reads.
    """

    interface_class: int = 0xFF
    subclass: int = 0
    protocol: int = 0
    endpoints: Sequence[UsbEndpoint] = ()
    class_descriptors: bytes = b""
    name: str = ""


@dataclass(frozen=True)
class Description:
    """Everything that a device says of itself, checked.

    Args:
        identity: `vendor:product`, four hexadecimal digits each.
        serial: its serial number.
        manufacturer: what a person reads.
        product: what a person reads.
        version: of the device, such as `1.00`.
        speed: `low`, `full` or `high`.
        device_class: class, subclass and protocol; three zeros leave that to the interfaces.
        interfaces: its functions, numbered from 0.

    Raises:
        ConfigError: no such device can be.
    """

    identity: str
    serial: str
    manufacturer: str
    product: str
    version: str
    speed: Speed
    device_class: tuple[int, int, int]
    interfaces: Sequence[UsbInterface]

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise ConfigError(f"there can be no USB device '{self.identity}': {problem}")

    @property
    def vendor(self) -> int:
        """The first half of the identity."""
        return int(self.identity[:4], 16)

    @property
    def product_number(self) -> int:
        """The second half of the identity."""
        return int(self.identity[5:], 16)

    @property
    def version_bcd(self) -> int:
        """The version in binary-coded decimal."""
        major, minor = self.version.split(".")
        return int(major + minor, 16)

    @property
    def control_bytes(self) -> int:
        """The size of a packet on the endpoint for control."""
        return 8 if self.speed == "low" else 64

    def endpoints(self) -> Iterator[tuple[int, UsbEndpoint]]:
        """Each endpoint with the number of its interface."""
        for number, interface in enumerate(self.interfaces):
            for endpoint in interface.endpoints:
                yield number, endpoint

    def descriptor(self, kind: int, index: int) -> bytes | None:
        """Answer GET_DESCRIPTOR.

        Args:
            kind: the type of descriptor.
            index: which one of that type.

        Returns:
            The descriptor, or None if there is none.
        """
        match kind, index:
            case Descriptor.DEVICE, 0:
                return self._device()
            case Descriptor.CONFIGURATION, 0:
                return self._configuration()
            case Descriptor.STRING, _:
                return self._string(index)
            case Descriptor.QUALIFIER, 0 if self.speed == "high":
                return self._qualifier()
        return None

    def _device(self) -> bytes:
        return struct.pack(
            "<BBHBBBBHHHBBBB",
            18,
            Descriptor.DEVICE,
            0x0200,
            *self.device_class,
            self.control_bytes,
            self.vendor,
            self.product_number,
            self.version_bcd,
            self._index(self.manufacturer),
            self._index(self.product),
            self._index(self.serial),
            1,
        )

    def _qualifier(self) -> bytes:
        """What would be different at the other speed; at none of it is there a configuration."""
        return struct.pack("<BBHBBBBBB", 10, Descriptor.QUALIFIER, 0x0200, *self.device_class, 64, 0, 0)

    def _configuration(self) -> bytes:
        body = b"".join(self._interface(number, one) for number, one in enumerate(self.interfaces))
        attributes, milliamperes = 0x80, 100
        return (
            struct.pack(
                "<BBHBBBBB",
                9,
                Descriptor.CONFIGURATION,
                9 + len(body),
                len(self.interfaces),
                CONFIGURATION,
                0,
                attributes,
                milliamperes // 2,
            )
            + body
        )

    def _interface(self, number: int, interface: UsbInterface) -> bytes:
        codes = (interface.interface_class, interface.subclass, interface.protocol)
        ends = (9, Descriptor.INTERFACE, number, 0, len(interface.endpoints))
        head = struct.pack("<9B", *ends, *codes, self._index(interface.name))
        return head + interface.class_descriptors + b"".join(map(self._endpoint, interface.endpoints))

    def _endpoint(self, endpoint: UsbEndpoint) -> bytes:
        transfer = {"bulk": 2, "interrupt": 3}[endpoint.kind]
        size = endpoint.size(self.speed)
        return struct.pack(
            "<BBBBHB", 7, Descriptor.ENDPOINT, endpoint.address, transfer, size, endpoint.polled()
        )

    def _strings(self) -> list[str]:
        names = [interface.name for interface in self.interfaces]
        return [text for text in (self.manufacturer, self.product, self.serial, *names) if text]

    def _index(self, text: str) -> int:
        return self._strings().index(text) + 1 if text else 0

    def _string(self, index: int) -> bytes | None:
        if index == 0:
            return _ENGLISH
        strings = self._strings()
        if index > len(strings):
            return None
        text = strings[index - 1].encode("utf-16-le", "replace")
        return bytes((len(text) + 2, Descriptor.STRING)) + text

    def _problems(self) -> Iterator[str]:
        if not re.fullmatch(r"[0-9a-fA-F]{4}:[0-9a-fA-F]{4}", self.identity):
            yield "write vendor:product with four hexadecimal digits each, such as 0a5e:2110"
        if not re.fullmatch(r"[0-9]{1,2}\.[0-9]{2}", self.version):
            yield f"its version is '{self.version}'; write one like 1.00"
        for text in self._strings():
            if len(text.encode("utf-16-le", "replace")) > 252:
                yield f"'{text[:20]}…' is longer than 126 characters"
        if not 1 <= len(self.interfaces) <= _MOST_INTERFACES:
            yield f"it has {len(self.interfaces)} interfaces; 1 to {_MOST_INTERFACES} are possible"
        addresses = Counter(endpoint.address for _, endpoint in self.endpoints())
        yield from (f"endpoint {address:#04x} is there twice" for address, n in addresses.items() if n > 1)
        for _, endpoint in self.endpoints():
            yield from self._problems_of(endpoint)
        yield from self._problems_of_numbers()

    def _problems_of(self, endpoint: UsbEndpoint) -> Iterator[str]:
        name = f"endpoint {endpoint.address:#04x}"
        if not 1 <= endpoint.address & ~IN <= 15:
            yield f"{name} is not one of 0x01 to 0x0f and 0x81 to 0x8f"
        if not 1 <= (size := endpoint.size(self.speed)) <= _PACKET_BYTES[endpoint.kind][self.speed]:
            yield f"{name}: {endpoint.kind} packets of {size} bytes are not possible at {self.speed} speed"
        if not 1 <= endpoint.interval <= 255:
            yield f"{name}: its interval is {endpoint.interval}; 1 to 255 are possible"

    def _problems_of_numbers(self) -> Iterator[str]:
        try:
            self._device()
            self._configuration()
        except struct.error as error:
            yield f"a number does not fit its field: {error}"
