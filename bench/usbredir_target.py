"""What a hostile guest can send to a virtual USB device, any bytes in any pieces, and what must hold then."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from pytest_kvmlab import ControlRequest, UsbEndpoint, UsbInterface, UsbStall, VirtualUsbDevice
from pytest_kvmlab.drivers import usb_outbox, usbredir, usbredir_session
from pytest_kvmlab.errors import UsbError

CORPUS = Path(__file__).parents[1] / "tests" / "data" / "usbredir.hex"
"""Streams worth trying, one in each line: some of a real QEMU, and what fuzzing found to reach more code."""
MOST_HELD = 32 + usbredir.MOST_BULK_BYTES


class Talkative(VirtualUsbDevice):
    """A device that has every kind of endpoint, and answers whatever comes with as much as it may."""

    manufacturer = product = "x" * 126
    interfaces = (
        UsbInterface(endpoints=(UsbEndpoint(0x01), UsbEndpoint(0x81))),
        UsbInterface(
            endpoints=(UsbEndpoint(0x02, "interrupt"), UsbEndpoint(0x82, "interrupt")), name="reports"
        ),
    )

    def control_in(self, request: ControlRequest) -> bytes:
        if request.request == 0xFF:
            raise UsbStall
        return bytes(request.length + 1)

    def control_out(self, request: ControlRequest, data: bytes) -> None:
        if len(data) != request.length:
            raise AssertionError("the data of a request are not as long as it says")

    def received(self, endpoint: int, data: bytes) -> None:
        try:
            self.send(endpoint | usbredir.IN, data)
        except UsbError as error:
            raise UsbStall from error


def read_corpus() -> list[bytes]:
    """The streams that are kept with the tests."""
    return [bytes.fromhex(line) for line in CORPUS.read_text(encoding="ascii").split()]


def write_corpus(attempts: Iterable[bytes]) -> None:
    """Keep these with the tests, the short ones first."""
    lines = sorted({attempt.hex() for attempt in attempts}, key=lambda line: (len(line), line))
    fresh = CORPUS.with_suffix(".new")
    fresh.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
    fresh.replace(CORPUS)  # an interrupted run leaves the old ones


def check(attempt: bytes) -> None:
    """Play a guest.

    Args:
        attempt: how long the pieces are, in one byte, and what comes in them.

    Raises:
        AssertionError: the device said what a port would not understand, or keeps more than it may.
    """
    size, stream = (attempt[0] or len(attempt), attempt[1:]) if attempt else (1, b"")
    device = Talkative("0a5e:2110")
    session = usbredir_session.Session(device._firmware)
    port = usbredir.Reader(usbredir.FROM_DEVICE)
    for answer in chain([session.greet()], _said(session, stream, size)):
        _understand(port, answer)
    assert device.errors == ()
    assert len(session._reader._received) <= MOST_HELD
    assert all(len(waiting) <= usbredir_session.MOST_WAITING for waiting in session._waiting.values())
    for messages in device._firmware.outbox._messages.values():
        assert sum(map(len, messages)) <= usb_outbox.MOST_BYTES


def _said(session: usbredir_session.Session, stream: bytes, size: int) -> Iterator[bytes]:
    """What the device says to a stream, until it is through or refused."""
    try:
        for at in range(0, len(stream), size):
            yield from session.hear(stream[at : at + size])
            yield from session.flush()
    except UsbError:
        return


def _understand(port: usbredir.Reader, answer: bytes) -> None:
    try:
        (packet,) = port.packets(answer)
    except (UsbError, ValueError) as error:
        raise AssertionError(f"the device said {answer!r}") from error
    assert usbredir.encoded(packet) == answer
