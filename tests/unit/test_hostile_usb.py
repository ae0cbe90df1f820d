"""A guest that does its worst to a virtual device: no crash, no hang, no memory without end."""

import struct
import tracemalloc
from collections.abc import Iterator

import pytest

from bench.usbredir_target import Talkative, check, read_corpus
from pytest_kvmlab.drivers import usbredir
from pytest_kvmlab.drivers.usb_outbox import MESSAGE_BYTES, MOST_BYTES, Outbox
from pytest_kvmlab.drivers.usbredir import MOST_BULK_BYTES, Header, Packet
from pytest_kvmlab.drivers.usbredir_session import Session
from pytest_kvmlab.errors import UsbError

CHUNK = 1 << 16
HELLO = usbredir.encoded(usbredir.greeting())
READY = HELLO + usbredir.encoded(Packet(usbredir.SetConfiguration(1)))

pytestmark = pytest.mark.timeout(60)


def flood(packet: Packet, times: int) -> bytes:
    return READY + usbredir.encoded(packet) * times


def report(data: bytes) -> Header:
    return usbredir.InterruptTransfer(2, 0, len(data))


def play(stream: bytes) -> int:
    """Let a device hear a stream: the most memory that took, in bytes, beside the stream."""
    session = Session(Talkative("0a5e:2110")._firmware)
    tracemalloc.start()
    try:
        for at in range(0, len(stream), CHUNK):
            for _ in hear(session, stream[at : at + CHUNK]):
                pass
    except UsbError:
        pass
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return most


def hear(session: Session, received: bytes) -> Iterator[bytes]:
    yield from session.hear(received)
    yield from session.flush()


def test_no_stream_that_fuzzing_has_found_is_misunderstood() -> None:
    corpus = read_corpus()
    assert len(corpus) > 40
    for attempt in corpus:
        check(attempt)


def test_no_beginning_of_a_long_conversation_is_misunderstood() -> None:
    for attempt in read_corpus()[-3:]:
        for length in range(0, len(attempt), 7):
            check(attempt[:length])


@pytest.mark.parametrize("at", range(8, 40))
def test_no_flipped_byte_of_a_header_is_misunderstood(at: int) -> None:
    for attempt in read_corpus():
        changed = bytearray(attempt)
        if at + 80 < len(changed):
            changed[80 + at] ^= 0xFF
        check(bytes(changed))


@pytest.mark.parametrize(
    ("stream", "most"),
    [
        (READY + struct.pack("<IIQ", 101, 2**32 - 1, 0) + bytes(8 << 20), 1 << 20),
        (READY + struct.pack("<IIQ", 101, 10 + MOST_BULK_BYTES, 0) + bytes(20 << 20), 3 * MOST_BULK_BYTES),
        (flood(Packet(usbredir.ControlTransfer(0x80, 1, 0xC0, 0, 0, 0, 0xFFFF)), 3000), 1 << 20),
        (flood(Packet(report(bytes(1024)), bytes(1024)), 8_000), 2 * MOST_BYTES),
        (flood(Packet(usbredir.CancelDataPacket()), 20_000), 1 << 20),
        (flood(Packet(usbredir.Reset()), 20_000), 1 << 20),
    ],
    ids=["a length of 4 GiB", "the longest packet", "long answers", "reports", "cancels", "resets"],
)
def test_memory_is_bounded_whatever_comes(stream: bytes, most: int) -> None:
    assert play(stream) < most


def test_messages_of_no_bytes_are_not_kept_without_end() -> None:
    outbox = Outbox()
    assert sum(outbox.put(0x81, b"") for _ in range(100_000)) == MOST_BYTES // MESSAGE_BYTES
    while outbox.take(0x81, 1) is not None:
        pass
    assert outbox.put(0x81, bytes(MOST_BYTES - MESSAGE_BYTES))


def test_reads_without_end_are_refused() -> None:
    reads = [Packet(usbredir.BulkTransfer(0x81, 0, 1, 0, 0), id=number) for number in range(20_000)]
    assert play(READY + b"".join(map(usbredir.encoded, reads))) < 8 << 20
