"""The process between the guests' serial lines and this one, at sockets whose other ends play the guests."""

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.line_buffer import LineBuffer


@pytest.fixture
def buffer() -> Iterator[LineBuffer]:
    made = LineBuffer()
    yield made
    made.close()


@pytest.fixture
def ends(buffer: LineBuffer) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The guest's end of a line, and ours."""
    guest, line = socket.socketpair()
    with guest, buffer.before(line) as ours:
        guest.settimeout(10)
        ours.settimeout(10)
        yield guest, ours


def received(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := end.recv(65536)):
        data += piece
    return data


def test_each_end_hears_the_other(ends: tuple[socket.socket, socket.socket]) -> None:
    guest, ours = ends
    guest.sendall(b"login: ")
    assert received(ours, 7) == b"login: "
    ours.sendall(b"root\n")
    assert received(guest, 5) == b"root\n"


def test_a_guest_never_waits_for_whoever_reads_late(ends: tuple[socket.socket, socket.socket]) -> None:
    guest, ours = ends
    shown = bytes(range(256)) * 400
    for number in shown:
        guest.send(bytes([number]))
    assert received(ours, len(shown)) == shown


def test_what_was_shown_at_the_end_is_handed_on_before_the_end(buffer: LineBuffer) -> None:
    guest, line = socket.socketpair()
    with buffer.before(line) as ours:
        guest.sendall(b"Power down\n" * 50_000)
        guest.close()
        ours.settimeout(10)
        assert received(ours, 10**9) == b"Power down\n" * 50_000


def test_a_line_that_nobody_wants_any_more_is_free_for_the_next(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    guest, ours = ends
    ours.close()
    assert guest.recv(1) == b""


def test_whoever_catches_up_has_what_was_sent_before(
    buffer: LineBuffer, ends: tuple[socket.socket, socket.socket]
) -> None:
    guest, ours = ends
    ours.setblocking(False)
    for number in range(300):
        guest.sendall(b"%3d" % number)
        buffer.catch_up(Deadline(10))
        assert ours.recv(100) == b"%3d" % number


def test_lines_end_with_the_process_that_reads_them(
    buffer: LineBuffer, ends: tuple[socket.socket, socket.socket]
) -> None:
    guest, ours = ends
    assert buffer._process
    os.kill(buffer._process.pid, signal.SIGKILL)
    assert (ours.recv(1), guest.recv(1)) == (b"", b"")
    buffer.catch_up(Deadline(10))


def test_a_buffer_that_was_never_used_has_nothing_to_close(buffer: LineBuffer) -> None:
    buffer.catch_up(Deadline(10))
