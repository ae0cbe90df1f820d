"""Virtual USB devices that drivers of the kernel take: a serial port, a vendor's HID device, a converter."""

import queue

from pytest_kvmlab import ControlRequest, UsbEndpoint, UsbInterface, UsbStall, VirtualUsbDevice


class Modem(VirtualUsbDevice):
    """A serial port of the class CDC-ACM, which answers each line with the same in capitals."""

    product = "Modem"
    speed = "high"
    device_class = (2, 0, 0)
    interfaces = (
        UsbInterface(
            2,
            2,
            1,
            (UsbEndpoint(0x83, "interrupt", packet_size=16),),
            # header, call management, abstract control, union of interfaces 0 and 1
            bytes.fromhex("05 24 00 1001  05 24 01 00 01  04 24 02 02  05 24 06 00 01"),
        ),
        UsbInterface(0x0A, endpoints=(UsbEndpoint(0x81), UsbEndpoint(0x02))),
    )
    line_coding = b""

    def control_out(self, request: ControlRequest, data: bytes) -> None:
        if request.request == 0x20:  # SET_LINE_CODING
            self.line_coding = data

    def received(self, _endpoint: int, data: bytes) -> None:
        self.send(0x81, data.upper())


class Buttons(VirtualUsbDevice):
    """A vendor's HID device with reports of eight bytes in both directions, at low speed."""

    product = "Buttons"
    speed = "low"
    report = bytes.fromhex("0600ff 0901 a101 1500 26ff00 7508 9508 0901 8102 0902 9102 c0")
    interfaces = (
        UsbInterface(
            3,
            endpoints=(UsbEndpoint(0x81, "interrupt"), UsbEndpoint(0x02, "interrupt")),
            class_descriptors=bytes.fromhex("09 21 1101 00 01 22") + len(report).to_bytes(2, "little"),
        ),
    )

    def __init__(self, identity: str) -> None:
        super().__init__(identity)
        self.lights: queue.Queue[bytes] = queue.Queue()

    def control_in(self, request: ControlRequest) -> bytes:
        if (request.request_type, request.request, request.value) == (0x81, 6, 0x2200):
            return self.report
        raise UsbStall

    def control_out(self, request: ControlRequest, data: bytes) -> None:
        """Let the driver choose how often reports are repeated: SET_IDLE."""

    def received(self, _endpoint: int, data: bytes) -> None:
        self.lights.put(data)


class Converter(VirtualUsbDevice):
    """As much of FTDI's USB serial converter as its driver asks for, by requests of the vendor's own."""

    version = "6.00"
    interfaces = (UsbInterface(endpoints=(UsbEndpoint(0x81), UsbEndpoint(0x02))),)
    latency = 42

    def control_in(self, request: ControlRequest) -> bytes:
        if request.request == 0x0A:
            return bytes([self.latency])
        raise UsbStall

    def control_out(self, request: ControlRequest, _data: bytes) -> None:
        if request.request == 0x09:
            self.latency = request.value
