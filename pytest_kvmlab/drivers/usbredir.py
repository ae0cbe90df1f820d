"""The usbredir protocol, version 0.7: how a USB device and QEMU's emulated port speak with each other.

Bytes in, packets out, and back; nothing here is sent. What comes from the port is made by a guest that nobody
trusts, so the reader takes only what the protocol allows, and never holds more than one packet of a bounded
size. Isochronous endpoints, bulk streams and buffered bulk input are left out: no device of ours has them.

Source: usb-redirection-protocol.md of https://gitlab.freedesktop.org/spice/usbredir, and what QEMU's
`hw/usb/redirect.c` sends.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar

from pytest_kvmlab.errors import UsbError

IN = 0x80
"""The bit of an endpoint's address, and of a request's type, that says: from the device to the guest."""

MOST_BULK_BYTES = 16 << 20
"""Of one transfer. A Linux program cannot have more under way: usbfs_memory_mb of usbcore."""
_MOST_SHORT_BYTES = 0xFFFF  # what a length of 16 bits can say
_MOST_TEXT = 1024  # of a greeting's capabilities, and of a filter's rules
_VERSION = b"pytest-kvmlab"
_PREFIX = struct.Struct("<II")  # type and length
_SHORT_ID = struct.Struct("<I")  # comes next in a greeting
_LONG_ID = struct.Struct("<Q")  # and in all else


class Status(IntEnum):
    """How a request ended."""

    SUCCESS = 0
    CANCELLED = 1
    INVALID = 2
    STALL = 4


class Capability(IntEnum):
    """What a side can do beyond version 0.3: the number of a bit."""

    CONNECT_DEVICE_VERSION = 1
    FILTER = 2
    DEVICE_DISCONNECT_ACK = 3
    EP_INFO_MAX_PACKET_SIZE = 4
    IDS_64_BITS = 5
    BULK_LENGTH_32_BITS = 6


NEEDED = frozenset(Capability) - {Capability.FILTER}
"""What the other side has to be able to do. QEMU 7.2 is, and so each packet has one shape only."""


@dataclass(frozen=True)
class Header:
    """What a packet is about. A subclass is one type of packet; its fields are the protocol's, in order.

    Attributes:
        kind: the number of the type.
        layout: how the fields are packed.
        most_data: how many bytes may follow them.
    """

    kind: ClassVar[int]
    layout: ClassVar[struct.Struct]
    most_data: ClassVar[int]

    def __init_subclass__(cls, *, kind: int, layout: str = "", most_data: int = 0) -> None:
        cls.kind, cls.layout, cls.most_data = kind, struct.Struct(f"<{layout}"), most_data


@dataclass(frozen=True)
class Hello(Header, kind=0, layout="64s", most_data=_MOST_TEXT):
    """The first packet of either side; its data are the capabilities."""

    version: bytes


@dataclass(frozen=True)
class DeviceConnect(Header, kind=1, layout="BBBBHHH"):
    """A device is plugged in."""

    speed: int
    device_class: int
    device_subclass: int
    device_protocol: int
    vendor: int
    product: int
    version: int


@dataclass(frozen=True)
class DeviceDisconnect(Header, kind=2):
    """It was pulled out."""


@dataclass(frozen=True)
class Reset(Header, kind=3):
    """The port resets it."""


@dataclass(frozen=True)
class InterfaceInfo(Header, kind=4, layout="I32s32s32s32s"):
    """The interfaces of its configuration; each field but the first is an array of bytes."""

    how_many: int
    numbers: bytes
    classes: bytes
    subclasses: bytes
    protocols: bytes


@dataclass(frozen=True)
class EndpointInfo(Header, kind=5, layout="32s32s32s64s"):
    """Its endpoints: arrays of bytes, the last of 16-bit numbers; in each, sixteen OUT before sixteen IN."""

    types: bytes
    intervals: bytes
    interfaces: bytes
    packet_sizes: bytes


@dataclass(frozen=True)
class SetConfiguration(Header, kind=6, layout="B"):
    """The guest chooses a configuration."""

    configuration: int


@dataclass(frozen=True)
class GetConfiguration(Header, kind=7):
    """The guest asks which one it is."""


@dataclass(frozen=True)
class ConfigurationStatus(Header, kind=8, layout="BB"):
    """The answer to both."""

    status: int
    configuration: int


@dataclass(frozen=True)
class SetAltSetting(Header, kind=9, layout="BB"):
    """The guest chooses a variant of an interface."""

    interface: int
    alternate: int


@dataclass(frozen=True)
class GetAltSetting(Header, kind=10, layout="B"):
    """The guest asks which one it is."""

    interface: int


@dataclass(frozen=True)
class AltSettingStatus(Header, kind=11, layout="BBB"):
    """The answer to both."""

    status: int
    interface: int
    alternate: int


@dataclass(frozen=True)
class StartInterruptReceiving(Header, kind=15, layout="B"):
    """The guest polls an interrupt endpoint."""

    endpoint: int


@dataclass(frozen=True)
class StopInterruptReceiving(Header, kind=16, layout="B"):
    """The guest polls it no longer."""

    endpoint: int


@dataclass(frozen=True)
class InterruptReceivingStatus(Header, kind=17, layout="BB"):
    """The answer to both."""

    status: int
    endpoint: int


@dataclass(frozen=True)
class CancelDataPacket(Header, kind=21):
    """The guest waits no longer for the transfer with this id."""


@dataclass(frozen=True)
class FilterReject(Header, kind=22):
    """The port does not take the device."""


@dataclass(frozen=True)
class FilterRules(Header, kind=23, most_data=_MOST_TEXT):
    """Which devices the port would take; its data are the text."""


@dataclass(frozen=True)
class DeviceDisconnectAck(Header, kind=24):
    """The port has seen that the device was pulled out."""


@dataclass(frozen=True)
class ControlTransfer(Header, kind=100, layout="BBBBHHH", most_data=_MOST_SHORT_BYTES):
    """A request to the device, or its answer."""

    endpoint: int
    request: int
    request_type: int
    status: int
    value: int
    index: int
    length: int


@dataclass(frozen=True)
class BulkTransfer(Header, kind=101, layout="BBHIH", most_data=MOST_BULK_BYTES):
    """A transfer on a bulk endpoint, or its result; the length is split over two fields."""

    endpoint: int
    status: int
    length_low: int
    stream: int
    length_high: int

    @property
    def length(self) -> int:
        """How many bytes were asked for, or transferred."""
        return self.length_high << 16 | self.length_low


@dataclass(frozen=True)
class InterruptTransfer(Header, kind=103, layout="BBH", most_data=_MOST_SHORT_BYTES):
    """A packet on an interrupt endpoint, or its result."""

    endpoint: int
    status: int
    length: int


FROM_PORT: tuple[type[Header], ...] = (
    Hello,
    Reset,
    SetConfiguration,
    GetConfiguration,
    SetAltSetting,
    GetAltSetting,
    StartInterruptReceiving,
    StopInterruptReceiving,
    CancelDataPacket,
    FilterReject,
    FilterRules,
    DeviceDisconnectAck,
    ControlTransfer,
    BulkTransfer,
    InterruptTransfer,
)
"""What a device hears."""

FROM_DEVICE: tuple[type[Header], ...] = (
    Hello,
    DeviceConnect,
    DeviceDisconnect,
    InterfaceInfo,
    EndpointInfo,
    ConfigurationStatus,
    AltSettingStatus,
    InterruptReceivingStatus,
    ControlTransfer,
    BulkTransfer,
    InterruptTransfer,
)
"""What a port hears."""


@dataclass(frozen=True)
class Packet:
    """One packet.

    Attributes:
        header: what it is about; its type is the packet's type.
        data: what follows the header.
        id: which request an answer belongs to; whoever asks chooses it.
    """

    header: Header
    data: bytes = b""
    id: int = 0


def encoded(packet: Packet) -> bytes:
    """Write a packet.

    Args:
        packet: header and data; of transfers the header's length has to be right.

    Returns:
        Its bytes.
    """
    header = packet.header
    values = (getattr(header, field.name) for field in fields(header))
    body = header.layout.pack(*values) + packet.data
    identity = _SHORT_ID if isinstance(header, Hello) else _LONG_ID
    return _PREFIX.pack(header.kind, len(body)) + identity.pack(packet.id) + body


def greeting(able: Iterable[Capability] = Capability) -> Packet:
    """Make the packet with which a side begins, and says what it can do."""
    bits = sum(1 << capability for capability in able)
    return Packet(Hello(_VERSION), struct.pack("<I", bits))


def capabilities(hello: Packet) -> frozenset[int]:
    """Read which capabilities a side has said in its greeting."""
    bits = int.from_bytes(hello.data, "little")
    return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)


class Reader:
    """Cuts a stream of bytes into packets.

    Args:
        kinds: the types that may come: `FROM_PORT` or `FROM_DEVICE`.
    """

    def __init__(self, kinds: Iterable[type[Header]]) -> None:
        self._kinds = {header.kind: header for header in kinds}
        self._carries_in = DeviceConnect.kind in self._kinds
        self._received = bytearray()
        self._greeted = False

    def packets(self, received: bytes) -> Iterator[Packet]:
        """Take in some bytes, and give every packet that they complete.

        Args:
            received: any number of bytes; to be given only when the packets of the last ones have been taken.

        Returns:
            The packets, one by one. The first ever is a `Hello`, and no other is.

        Raises:
            UsbError: what comes is no such packet; nothing that follows can be read.
        """
        self._received += received
        while (packet := self._next()) is not None:
            yield packet

    def _next(self) -> Packet | None:
        if len(self._received) < _PREFIX.size:
            return None
        number, length = _PREFIX.unpack_from(self._received)
        kind = self._expected(number)
        if not kind.layout.size <= length <= kind.layout.size + kind.most_data:
            raise _violation(f"a {kind.__name__} of {length} bytes")
        identity = _LONG_ID if self._greeted else _SHORT_ID
        start = _PREFIX.size + identity.size
        end, data = start + length, start + kind.layout.size
        if len(self._received) < end:
            return None
        header: Any = kind
        with memoryview(self._received) as received:
            packet = Packet(
                header(*kind.layout.unpack_from(received, start)),
                bytes(received[data:end]),
                identity.unpack_from(received, _PREFIX.size)[0],
            )
        del self._received[:end]
        self._greeted = True
        self._check_data(packet)
        return packet

    def _expected(self, number: int) -> type[Header]:
        kind = self._kinds.get(number)
        if kind is None or (kind is Hello) == self._greeted:
            place = "after the greeting" if self._greeted else "instead of a greeting"
            raise _violation(f"a packet of type {number} {place}")
        return kind

    def _check_data(self, packet: Packet) -> None:
        """Transfers carry their data in one direction, and say how many."""
        match packet.header:
            case (
                ControlTransfer(endpoint=direction, length=said)
                | BulkTransfer(endpoint=direction, length=said)
                | InterruptTransfer(endpoint=direction, length=said)
            ):
                expected = said if bool(direction & IN) == self._carries_in else 0
                if len(packet.data) != expected:
                    kind = type(packet.header).__name__
                    raise _violation(f"a {kind} of {said} bytes with {len(packet.data)}")
            case Hello() if len(packet.data) % 4:
                raise _violation(f"a Hello with {len(packet.data)} bytes of capabilities")
            case _:
                pass


def _violation(what: str) -> UsbError:
    return UsbError(
        f"the port sent {what}", "its guest, or QEMU, broke the usbredir protocol: QEMU's log may say why"
    )
