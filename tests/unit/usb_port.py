"""The other end of a virtual device's plug: as much of QEMU's emulated port as a test needs."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from pytest_kvmlab.drivers import usbredir
from pytest_kvmlab.drivers.usbredir import Header, Packet
from pytest_kvmlab.drivers.virtual_usb_device import VirtualUsbDevice

SECONDS = 10
_HELLO_AND_FAREWELL = (usbredir.greeting(), Packet(usbredir.DeviceDisconnectAck()))


class Port:
    """Listens, and speaks with one device after the other."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(SECONDS)
        self.path = path
        self.line = socket.socket()

    def accept(self) -> list[Packet]:
        """Let a device in and greet it: what it says of itself."""
        self.close()
        self.line, _ = self._listener.accept()
        self.line.settimeout(SECONDS)
        self._packets = self._heard()
        hello = next(self._packets)
        assert usbredir.capabilities(hello) == set(usbredir.Capability)
        self.say(usbredir.greeting())
        return [self.hear() for _ in range(3)]

    def configure(self) -> None:
        """Let a device in, and choose its configuration."""
        self.accept()
        assert self.ask(usbredir.SetConfiguration(1))[-1].header == usbredir.ConfigurationStatus(0, 1)

    @contextmanager
    def configured(self, device: VirtualUsbDevice) -> Iterator[None]:
        """Have a device, which is pulled out without a farewell, so that nobody waits for one."""
        with device.serve(self.path):
            self.configure()
            try:
                yield
            finally:
                self.close()

    def plug(self, device: VirtualUsbDevice) -> None:
        """Have a device plugged in that is served already, and choose its configuration."""
        with ThreadPoolExecutor() as threads:
            configured = threads.submit(self.configure)
            device.plug()
            configured.result()

    def welcome(self) -> None:
        """Let devices in until the port ends, and each of them go at once."""
        with suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                with line:
                    line.sendall(b"".join(map(usbredir.encoded, _HELLO_AND_FAREWELL)))
                    while line.recv(4096):
                        pass

    def say(self, *packets: Packet) -> None:
        self.line.sendall(b"".join(map(usbredir.encoded, packets)))

    def hear(self) -> Packet:
        return next(self._packets)

    def ask(self, header: Header, data: bytes = b"", *, identity: int = 7) -> list[Packet]:
        """Send a packet: everything up to the answer with the same id."""
        self.say(Packet(header, data, identity))
        answers = [self.hear()]
        while answers[-1].id != identity:
            answers.append(self.hear())
        return answers

    def control(
        self, request_type: int, request: int, value: int = 0, index: int = 0, data: bytes | int = b""
    ) -> tuple[int, bytes]:
        """Send a request with data, or for so many bytes: status and answer."""
        length = data if isinstance(data, int) else len(data)
        header = usbredir.ControlTransfer(request_type & 0x80, request, request_type, 0, value, index, length)
        answer = self.ask(header, b"" if isinstance(data, int) else data)[-1]
        assert isinstance(answer.header, usbredir.ControlTransfer)
        return answer.header.status, answer.data

    def is_closed(self) -> bool:
        """Whether the device ends the connection."""
        return next(self._packets, None) is None

    def close(self) -> None:
        self.line.close()

    def end(self) -> None:
        self.close()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._listener.close()

    def _heard(self) -> Iterator[Packet]:
        reader = usbredir.Reader(usbredir.FROM_DEVICE)
        while received := self.line.recv(1 << 16):
            yield from reader.packets(received)


@contextmanager
def listening(path: Path) -> Iterator[Port]:
    port = Port(path)
    try:
        yield port
    finally:
        port.end()
