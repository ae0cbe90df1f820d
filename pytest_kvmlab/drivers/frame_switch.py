"""A switch for the network cards of QEMUs, where no bridge of the kernel can be made: sockets on loopback.

QEMU connects to a port, and sends and hears each Ethernet frame with its length before it, in four bytes
(QEMU's `net/socket.c`; invocation page, "-netdev socket,connect"). Multicast, its other way without
privileges, would send the frames to the network of this machine. What comes from a guest is bounded, and
looked at no further than to the addresses.
"""

import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

_LOOPBACK = "127.0.0.1"
_LENGTH = struct.Struct("!I")
_LONGEST_FRAME = 4096 + 65_536  # NET_BUFSIZE, QEMU's include/net/net.h
_SHORTEST_FRAME = 14  # two addresses and a type (IEEE 802.3)
_MOST_WAITING = 2**20  # bytes for a card that does not listen; like any switch, it then loses frames
_MOST_ADDRESSES = 4096
_PIECE = 2**16
_CLOSE_SECONDS = 5.0

Station = Callable[[bytes], Sequence[bytes] | None]
"""Answers a frame in the place of all others; None leaves it to them."""


class Switch:
    """Carries frames between ports, in a thread of its own. Each port is one card's.

    Args:
        ports: their names.
        station: who is asked first.

    Attributes:
        numbers: the TCP ports on 127.0.0.1, by name; only processes of this user are let in.
        loses: whether a frame from one port to another one is lost.
    """

    def __init__(self, ports: Sequence[str], station: Station) -> None:
        self.loses: Callable[[str, str], bool] = lambda _source, _target: False
        self._station = station
        self._selector = selectors.DefaultSelector()
        self._lines: dict[str, _Line] = {}
        self._known: dict[bytes, str] = {}
        self._listeners = {name: socket.create_server((_LOOPBACK, 0)) for name in ports}
        self.numbers: dict[str, int] = {
            name: listener.getsockname()[1] for name, listener in self._listeners.items()
        }
        for name, listener in self._listeners.items():
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, name))
        self._end, ended = socket.socketpair()
        self._selector.register(ended, selectors.EVENT_READ)
        self._ended = ended
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Pull all cards out, and wait for the thread to end."""
        self._end.close()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while self._end.fileno() >= 0:
            for key, events in self._selector.select():
                if key.data:
                    key.data(events)
        for line in self._lines.values():
            line.close()
        for opened in (*self._listeners.values(), self._ended):
            opened.close()
        self._selector.close()

    def _accept(self, name: str, _events: int) -> None:
        """Let a card in; the one before it is that of a guest that is gone."""
        with suppress(OSError):
            connection, _ = self._listeners[name].accept()
            if not _is_ours(connection):
                connection.close()
                return
            self._drop(name)
            connection.setblocking(False)
            self._lines[name] = line = _Line(connection)
            self._selector.register(connection, selectors.EVENT_READ, partial(self._serve, name, line))

    def _drop(self, name: str) -> None:
        if line := self._lines.pop(name, None):
            self._selector.unregister(line.connection)
            line.close()

    def _serve(self, name: str, line: "_Line", events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                line.flush()
            if events & selectors.EVENT_READ:
                for frame in line.frames():
                    self._carry(name, frame)
        except (OSError, ValueError):
            if self._lines.get(name) is line:
                self._drop(name)
            return
        self._wait_to_write(name)

    def _wait_to_write(self, name: str) -> None:
        """Listen to a card always, and wait until it listens while there is something for it."""
        if line := self._lines.get(name):
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.waiting else 0)
            self._selector.modify(line.connection, events, partial(self._serve, name, line))

    def _carry(self, source: str, frame: bytes) -> None:
        if (answers := self._station(frame)) is not None:
            for answer in answers:
                self._send(source, answer)
            return
        target, sender = frame[:6], frame[6:12]
        if len(self._known) < _MOST_ADDRESSES or sender in self._known:
            self._known[sender] = source
        known = self._known.get(target)
        for name in [known] if known in self._lines else list(self._lines):
            if name != source and not self.loses(source, name):
                self._send(name, frame)

    def _send(self, name: str, frame: bytes) -> None:
        if line := self._lines.get(name):
            try:
                line.send(frame)
            except OSError:
                self._drop(name)
            else:
                self._wait_to_write(name)


class _Line:
    """A connection to one card."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.waiting = bytearray()
        self._received = bytearray()

    def frames(self) -> Iterator[bytes]:
        """The frames that have come.

        Raises:
            OSError: the card is gone.
            ValueError: this is no frame.
        """
        piece = self.connection.recv(_PIECE)
        if not piece:
            raise ConnectionResetError
        self._received += piece
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            if not _SHORTEST_FRAME <= length <= _LONGEST_FRAME:
                raise ValueError(length)
            end = _LENGTH.size + length
            if len(self._received) < end:
                return
            yield bytes(self._received[_LENGTH.size : end])
            del self._received[:end]

    def send(self, frame: bytes) -> None:
        """Send a frame as soon as the card listens, unless too much waits for it already."""
        if len(self.waiting) < _MOST_WAITING:
            self.waiting += _LENGTH.pack(len(frame)) + frame
            self.flush()

    def flush(self) -> None:
        with suppress(BlockingIOError):
            while self.waiting:
                del self.waiting[: self.connection.send(self.waiting)]

    def close(self) -> None:
        self.connection.close()


def _is_ours(connection: socket.socket) -> bool:
    """Whether the other end of a connection on loopback is this user's: proc(5), /proc/net/tcp."""
    ends = [_as_listed(connection.getpeername()), _as_listed(connection.getsockname())]
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split()
        if fields[1:3] == ends:
            return int(fields[7]) == os.geteuid()
    return False


def _as_listed(address: tuple[str, int]) -> str:
    host = struct.unpack("=I", socket.inet_aton(address[0]))[0]
    return f"{host:08X}:{address[1]:04X}"
