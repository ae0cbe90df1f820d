"""The bytes between a USB device and QEMU's port."""

import struct
from collections.abc import Iterable

import pytest

from pytest_kvmlab.drivers import usbredir
from pytest_kvmlab.drivers.usbredir import FROM_DEVICE, FROM_PORT, Packet, Reader
from pytest_kvmlab.errors import UsbError

HELLO = usbredir.encoded(usbredir.greeting())
REQUEST = Packet(usbredir.ControlTransfer(0x80, 6, 0x80, 0, 0x0100, 0, 18), id=2**40 + 1)
WRITE = Packet(usbredir.BulkTransfer(2, 0, 5, 0, 0), b"hello", 9)
READ = Packet(usbredir.BulkTransfer(0x82, 0, 0x0010, 0, 0x0002), id=10)


def read(stream: bytes, chunks: Iterable[int] = ()) -> list[Packet]:
    """What a device hears of a stream that comes in pieces of these sizes, and then at once."""
    reader, at = Reader(FROM_PORT), 0
    packets: list[Packet] = []
    for size in (*chunks, len(stream)):
        packets += reader.packets(stream[at : at + size])
        at += size
    return packets


def test_a_packet_is_as_the_protocol_says() -> None:
    prefix = bytes.fromhex("64000000 0a000000 0100000000010000")
    assert usbredir.encoded(REQUEST) == prefix + bytes.fromhex("80 06 80 00 0001 0000 1200")


def test_a_greeting_has_a_short_id_and_the_capabilities() -> None:
    expected = struct.pack("<III64sI", 0, 68, 0, b"pytest-kvmlab", 0b1111110)
    assert expected == HELLO
    assert usbredir.capabilities(read(HELLO)[0]) == set(usbredir.Capability)


def test_what_is_written_is_read_in_whatever_pieces_it_comes() -> None:
    written = [REQUEST, WRITE, READ, Packet(usbredir.Reset()), Packet(usbredir.FilterRules(), b"-1,-1,1")]
    stream = HELLO + b"".join(map(usbredir.encoded, written))
    assert read(stream)[1:] == written
    assert read(stream, [1] * len(stream))[1:] == written


def test_a_long_bulk_transfer_has_its_length_in_two_fields() -> None:
    assert isinstance(READ.header, usbredir.BulkTransfer)
    assert READ.header.length == 0x20010


def test_data_of_the_other_direction_are_read_by_the_other_side() -> None:
    answer = Packet(usbredir.InterruptTransfer(0x81, 0, 3), b"abc")
    reader = Reader(FROM_DEVICE)
    assert list(reader.packets(HELLO + usbredir.encoded(answer)))[1] == answer
    with pytest.raises(UsbError, match="InterruptTransfer of 3 bytes with 3"):
        read(HELLO + usbredir.encoded(answer))


@pytest.mark.parametrize(
    "stream",
    [
        usbredir.encoded(REQUEST),
        HELLO + HELLO,
        struct.pack("<III", 0, 67, 0) + bytes(67),
        struct.pack("<II", 0, 2**32 - 1),
        struct.pack("<II", 0, 64 + 1025),
        HELLO + struct.pack("<II", 2**32 - 1, 0),
        HELLO + struct.pack("<II", 99, 0),
        HELLO + struct.pack("<II", 1, 10),
        HELLO + struct.pack("<II", 102, 4),
        HELLO + struct.pack("<II", 100, 9),
        HELLO + struct.pack("<II", 100, 10 + 65536),
        HELLO + struct.pack("<II", 101, 10 + usbredir.MOST_BULK_BYTES + 1),
        HELLO + struct.pack("<II", 3, 1),
        HELLO + usbredir.encoded(Packet(usbredir.BulkTransfer(2, 0, 5, 0, 0), b"four")),
        HELLO + usbredir.encoded(Packet(usbredir.BulkTransfer(2, 0, 5, 0, 1), b"hello")),
        HELLO + usbredir.encoded(Packet(usbredir.BulkTransfer(0x82, 0, 5, 0, 0), b"hello")),
        HELLO + usbredir.encoded(Packet(usbredir.ControlTransfer(0, 1, 0x40, 0, 0, 0, 2), b"")),
    ],
    ids=lambda stream: stream[-24:].hex(),
)
def test_what_is_no_packet_is_refused(stream: bytes) -> None:
    with pytest.raises(UsbError, match="the port sent a"):
        read(stream)


def test_a_packet_that_is_too_long_is_refused_before_it_has_come() -> None:
    reader = Reader(FROM_PORT)
    list(reader.packets(HELLO))
    with pytest.raises(UsbError, match="BulkTransfer of 4294967295 bytes"):
        list(reader.packets(struct.pack("<II", 101, 2**32 - 1)))
