"""A device's side of one usbredir conversation, from greeting to farewell, without a socket.

Source: as of `usbredir`; for requests, Universal Serial Bus Specification 2.0, section 9.4.
"""

import struct
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from pytest_kvmlab.drivers import usbredir
from pytest_kvmlab.drivers.usb_descriptors import CONFIGURATION, Description, UsbEndpoint
from pytest_kvmlab.drivers.usb_requests import ControlRequest, UsbStall
from pytest_kvmlab.drivers.usbredir import IN, Packet, Status
from pytest_kvmlab.errors import UsbError

MOST_WAITING = 4096
"""Transfers that a guest may leave waiting on one endpoint: more than any controller's ring holds."""
_CONTROL, _NONE = 0, 255
_TYPES = {"bulk": 2, "interrupt": 3}
_Transfer = usbredir.ControlTransfer | usbredir.BulkTransfer | usbredir.InterruptTransfer
_SPEEDS = {"low": 0, "full": 1, "high": 2}


class Device(Protocol):
    """What a conversation needs of a device."""

    description: Description

    def answer(self, request: ControlRequest, data: bytes) -> bytes:
        """Answer a request, or raise UsbStall."""

    def received(self, endpoint: int, data: bytes) -> None:
        """Take what the guest has sent, or raise UsbStall."""

    def take(self, endpoint: int, most: int) -> bytes | None:
        """Give up to so many bytes of what waits to be sent to the guest; None if nothing does."""


class Session:
    """One device in one port. Each method gives the bytes to send, piece by piece.

    Args:
        device: what is plugged in.

    Attributes:
        taken: set when the port has greeted, and was told what the device is.
        configured: set while the guest has chosen the device's configuration.
        ended: whether the port has acknowledged that the device was pulled out.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._description = device.description
        self._endpoints = {endpoint.address: endpoint for _, endpoint in self._description.endpoints()}
        self._reader = usbredir.Reader(usbredir.FROM_PORT)
        self._configuration = 0
        self._halted: set[int] = set()
        self._polled: set[int] = set()
        self._waiting: defaultdict[int, OrderedDict[int, usbredir.BulkTransfer]] = defaultdict(OrderedDict)
        self._reports = 0
        self.taken = threading.Event()
        self.configured = threading.Event()
        self.ended = False

    def greet(self) -> bytes:
        """Begin."""
        return usbredir.encoded(usbredir.greeting())

    def part(self) -> bytes:
        """Pull the device out; the port acknowledges it, and then the session has `ended`."""
        return usbredir.encoded(Packet(usbredir.DeviceDisconnect()))

    def hear(self, received: bytes) -> Iterator[bytes]:
        """Answer what has come.

        Args:
            received: bytes from the port.

        Returns:
            The answers, one at a time, so that nobody has to hold many.

        Raises:
            UsbError: the port does not keep to the protocol, or does not want the device.
        """
        for packet in self._reader.packets(received):
            for answer in self._answers(packet):
                yield usbredir.encoded(answer)

    def flush(self) -> Iterator[bytes]:
        """Send what the device has for the guest, as far as the guest asks for it."""
        for address, endpoint in self._endpoints.items():
            if address & IN and self._configuration and address not in self._halted:
                send = self._finished_reads if endpoint.kind == "bulk" else self._new_reports
                for packet in send(endpoint):
                    yield usbredir.encoded(packet)

    def _answers(self, packet: Packet) -> Iterator[Packet]:
        match packet.header:
            case usbredir.ControlTransfer() as header:
                yield self._control(packet, header)
            case usbredir.BulkTransfer() as header:
                yield from self._bulk(packet, header)
            case usbredir.InterruptTransfer() as header:
                yield self._write(packet, header, "interrupt")
            case usbredir.StartInterruptReceiving(endpoint) | usbredir.StopInterruptReceiving(endpoint):
                yield self._poll(packet, endpoint)
            case usbredir.CancelDataPacket():
                yield from self._cancel(packet.id)
            case _:
                yield from self._states(packet)

    def _states(self, packet: Packet) -> Iterator[Packet]:
        match packet.header:
            case usbredir.SetConfiguration(number):
                yield from self._choose(packet, number)
            case usbredir.GetConfiguration():
                yield _to(packet, usbredir.ConfigurationStatus(Status.SUCCESS, self._configuration))
            case usbredir.SetAltSetting(interface, alternate):
                yield self._alternate(packet, interface, alternate)
            case usbredir.GetAltSetting(interface):
                yield self._alternate(packet, interface, 0)
            case usbredir.Reset():
                yield from self._start_over(0)
            case _:
                yield from self._plugging(packet)

    def _plugging(self, packet: Packet) -> Iterator[Packet]:
        match packet.header:
            case usbredir.Hello():
                self._check_abilities(packet)
                yield from self._plug_in()
            case usbredir.FilterReject():
                raise UsbError("QEMU does not take the device: no free port of its USB controller fits it")
            case usbredir.DeviceDisconnectAck():
                self.ended = True

    def _check_abilities(self, hello: Packet) -> None:
        missing = usbredir.NEEDED - usbredir.capabilities(hello)
        if missing:
            names = ", ".join(sorted(usbredir.Capability(number).name.lower() for number in missing))
            raise UsbError(f"what listens at the port is too old: it lacks {names}")

    def _plug_in(self) -> Iterator[Packet]:
        description = self._description
        yield Packet(_interface_info(description))
        yield Packet(_endpoint_info(description))
        yield Packet(
            usbredir.DeviceConnect(
                _SPEEDS[description.speed],
                *description.device_class,
                description.vendor,
                description.product_number,
                description.version_bcd,
            )
        )
        self.taken.set()

    def _choose(self, packet: Packet, number: int) -> Iterator[Packet]:
        if number not in (0, CONFIGURATION):
            yield _to(packet, usbredir.ConfigurationStatus(Status.STALL, self._configuration))
            return
        yield from self._start_over(number)
        yield Packet(_interface_info(self._description))
        yield Packet(_endpoint_info(self._description))
        yield _to(packet, usbredir.ConfigurationStatus(Status.SUCCESS, number))

    def _start_over(self, configuration: int) -> Iterator[Packet]:
        """Every endpoint is as new (section 9.4.5), and nobody waits for one any more."""
        waiting = [read for reads in self._waiting.values() for read in reads.items()]
        self._waiting.clear()
        self._halted.clear()
        self._polled.clear()
        self._configuration = configuration
        if configuration:
            self.configured.set()
        else:
            self.configured.clear()
        for read in waiting:
            yield _ended(*read, Status.CANCELLED)

    def _alternate(self, packet: Packet, interface: int, alternate: int) -> Packet:
        known = interface < len(self._description.interfaces) and alternate == 0
        status = Status.SUCCESS if known and self._configuration else Status.STALL
        return _to(packet, usbredir.AltSettingStatus(status, interface, 0))

    def _control(self, packet: Packet, header: usbredir.ControlTransfer) -> Packet:
        if header.endpoint != header.request_type & IN:
            return _ended(packet.id, header, Status.INVALID)
        request = ControlRequest(
            header.request_type, header.request, header.value, header.index, header.length
        )
        try:
            answer = self._answer(request, packet.data)
        except UsbStall:
            return _ended(packet.id, header, Status.STALL)
        return _ended(packet.id, header, Status.SUCCESS, answer[: header.length])

    def _answer(self, request: ControlRequest, data: bytes) -> bytes:
        """What every device says in the same way, else what this one says."""
        match request.request_type, request.request:
            case 0x80, 6 if descriptor := self._description.descriptor(*divmod(request.value, 256)):
                return descriptor  # to GET_DESCRIPTOR
            case ((0x80 | 0x81), 0):  # GET_STATUS of device or interface: bus-powered, no remote wake-up
                return bytes(2)
            case 0x82, 0:
                return struct.pack("<H", self._known(request.index) in self._halted)
            case 0x02, 1 if request.value == 0:  # CLEAR_FEATURE(ENDPOINT_HALT)
                self._halted.discard(self._known(request.index))
                return data
            case 0x02, 3 if request.value == 0:  # SET_FEATURE(ENDPOINT_HALT)
                self._halted.add(self._known(request.index))
                return data
        return self._device.answer(request, data)

    def _known(self, address: int) -> int:
        if address & ~IN and address not in self._endpoints:
            raise UsbStall
        return address

    def _bulk(self, packet: Packet, header: usbredir.BulkTransfer) -> Iterator[Packet]:
        if not header.endpoint & IN:
            yield self._write(packet, header, "bulk")
        elif refusal := self._refusal(header.endpoint, "bulk"):
            yield _ended(packet.id, header, refusal)
        elif packet.id in self._waiting[header.endpoint]:
            yield _ended(packet.id, header, Status.INVALID)
        else:
            self._wait(packet.id, header)

    def _refusal(self, address: int, kind: str) -> Status | None:
        endpoint = self._endpoints.get(address)
        if endpoint is None or endpoint.kind != kind or not self._configuration:
            return Status.INVALID
        return Status.STALL if address in self._halted else None

    def _write(self, packet: Packet, header: _Transfer, kind: str) -> Packet:
        # interrupt endpoints of the other direction are polled; asking for a packet of one is wrong
        status = Status.INVALID if header.endpoint & IN else self._refusal(header.endpoint, kind)
        if status is None:
            try:
                self._device.received(header.endpoint, packet.data)
            except UsbStall:
                self._halted.add(header.endpoint)
                status = Status.STALL
        taken = b"" if status else packet.data
        return _ended(packet.id, header, status or Status.SUCCESS, taken)

    def _wait(self, identity: int, header: usbredir.BulkTransfer) -> None:
        waiting = self._waiting[header.endpoint]
        if len(waiting) == MOST_WAITING:
            raise UsbError(f"more than {MOST_WAITING} transfers wait on endpoint {header.endpoint:#04x}")
        waiting[identity] = header

    def _finished_reads(self, endpoint: UsbEndpoint) -> Iterator[Packet]:
        waiting = self._waiting[endpoint.address]
        while waiting:
            identity, header = next(iter(waiting.items()))
            data = self._device.take(endpoint.address, header.length)
            if data is None:
                return
            del waiting[identity]
            yield _ended(identity, header, Status.SUCCESS, data)

    def _cancel(self, identity: int) -> Iterator[Packet]:
        """A transfer that has ended meanwhile was answered already."""
        for waiting in self._waiting.values():
            if (header := waiting.pop(identity, None)) is not None:
                yield _ended(identity, header, Status.CANCELLED)

    def _poll(self, packet: Packet, address: int) -> Packet:
        endpoint = self._endpoints.get(address)
        start = isinstance(packet.header, usbredir.StartInterruptReceiving)
        known = endpoint is not None and endpoint.kind == "interrupt" and address & IN and self._configuration
        if known and start:
            self._polled.add(address)
        else:
            self._polled.discard(address)
        return _to(
            packet, usbredir.InterruptReceivingStatus(Status.SUCCESS if known else Status.INVALID, address)
        )

    def _new_reports(self, endpoint: UsbEndpoint) -> Iterator[Packet]:
        size = endpoint.size(self._description.speed)
        while endpoint.address in self._polled:
            data = self._device.take(endpoint.address, size)
            if data is None:
                return
            yield Packet(
                usbredir.InterruptTransfer(endpoint.address, Status.SUCCESS, len(data)), data, self._reports
            )
            self._reports += 1


def _to(packet: Packet, header: usbredir.Header) -> Packet:
    return Packet(header, id=packet.id)


def _ended(identity: int, header: _Transfer, status: Status, data: bytes = b"") -> Packet:
    """The result of a transfer; of one to the device, `data` is what it took and is not sent back."""
    length = len(data)
    result: _Transfer
    if isinstance(header, usbredir.BulkTransfer):
        result = replace(header, status=status, length_low=length & 0xFFFF, length_high=length >> 16)
    else:
        result = replace(header, status=status, length=length)
    return Packet(result, data if header.endpoint & IN else b"", identity)


def _interface_info(description: Description) -> usbredir.InterfaceInfo:
    interfaces = description.interfaces
    return usbredir.InterfaceInfo(
        len(interfaces),
        bytes(range(len(interfaces))),
        bytes(interface.interface_class for interface in interfaces),
        bytes(interface.subclass for interface in interfaces),
        bytes(interface.protocol for interface in interfaces),
    )


def _endpoint_info(description: Description) -> usbredir.EndpointInfo:
    types, intervals, interfaces, sizes = bytearray([_NONE] * 32), bytearray(32), bytearray(32), [0] * 32
    types[0] = types[16] = _CONTROL
    sizes[0] = sizes[16] = description.control_bytes
    for number, endpoint in description.endpoints():
        place = (endpoint.address & IN) >> 3 | endpoint.address & ~IN
        types[place], interfaces[place] = _TYPES[endpoint.kind], number
        intervals[place], sizes[place] = endpoint.polled(), endpoint.size(description.speed)
    return usbredir.EndpointInfo(
        bytes(types), bytes(intervals), bytes(interfaces), struct.pack("<32H", *sizes)
    )
