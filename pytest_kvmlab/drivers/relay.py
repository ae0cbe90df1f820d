"""A loopback port of this machine whose connections are carried on to somewhere else."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, Self

from pytest_kvmlab.errors import KvmlabError

_CLOSE_SECONDS = 5.0
_CHUNK = 1 << 16
_CONNECTIONS = 64
"""Relayed at once; further ones are closed."""


class Stream(Protocol):
    """What a connected socket and a channel of an SSH connection have in common."""

    def recv(self, size: int, /) -> bytes:
        """Some bytes, or none at the end."""

    def sendall(self, data: bytes, /) -> object:
        """Send all bytes."""

    def shutdown(self, how: int, /) -> None:
        """End one direction (SHUT_WR), or both and wake whoever waits (SHUT_RDWR)."""

    def close(self) -> None:
        """Give the stream back."""


class Relay:
    """Relays connections to a loopback port of this machine. Usable as a context manager.

    Args:
        open_stream: makes the other end of one connection; if it raises an OSError or one of our errors, the
            connection is closed at once.

    Attributes:
        port: the port on 127.0.0.1; the kernel chose it.
    """

    def __init__(self, open_stream: Callable[[], Stream]) -> None:
        self._open_stream = open_stream
        self._connections: set[_Connection] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name=f"relay-{self.port}", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, cut what is being relayed, and wait for its threads to end. Never raises."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the acceptor; closing alone would not
        self._listener.close()
        self._acceptor.join(_CLOSE_SECONDS)
        for connection in self._connections:
            connection.cut()
        for connection in self._connections:
            connection.join(_CLOSE_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._connections = {connection for connection in self._connections if connection.is_alive()}
            if len(self._connections) >= _CONNECTIONS:
                client.close()
                continue
            connection = _Connection(client, self._open_stream)
            self._connections.add(connection)
            connection.start()


class _Connection(threading.Thread):
    """One relayed connection: this thread carries bytes to the client, a second one the client's."""

    def __init__(self, client: socket.socket, open_stream: Callable[[], Stream]) -> None:
        super().__init__(name="relayed", daemon=True)
        self._client = client
        self._open_stream = open_stream
        self._stream: Stream | None = None
        self._cut = threading.Event()

    def run(self) -> None:
        with self._client, suppress(OSError, EOFError, KvmlabError):
            self._relay(self._open_stream())

    def _relay(self, stream: Stream) -> None:
        self._stream = stream
        if not self._cut.is_set():  # while the stream was being opened
            upward = threading.Thread(target=_carry, args=(self._client, stream), daemon=True)
            upward.start()
            _carry(stream, self._client)
            upward.join()
        stream.close()

    def cut(self) -> None:
        """End both directions from outside."""
        self._cut.set()
        for end in (self._client, self._stream):
            if end is not None:
                with suppress(OSError, EOFError):
                    end.shutdown(socket.SHUT_RDWR)


def _carry(source: Stream, target: Stream) -> None:
    """Copy until either side ends, and pass the end on."""
    with suppress(OSError, EOFError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with suppress(OSError, EOFError):
        target.shutdown(socket.SHUT_WR)
