"""Answer at a socket, each request in a thread of its own; and open the connections that are asked for."""

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from pytest_kvmlab.keeper.protocol import Dial, say

_MOST = 64  # conversations at once; each takes a thread and two descriptors


def listen(path: Path) -> socket.socket:
    """Make a socket in the file system, and listen there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(64)
    return listener


def answer_in_threads(listener: socket.socket, reply: Callable[[socket.socket], None]) -> None:
    """Accept for ever, on a thread that ends with the process.

    Args:
        listener: where.
        reply: reads a request and answers it; what goes wrong with the line is its own affair.
    """
    threading.Thread(target=_accept_all, args=[listener, reply], daemon=True).start()


def _accept_all(listener: socket.socket, reply: Callable[[socket.socket], None]) -> None:
    free = threading.BoundedSemaphore(_MOST)
    while True:
        free.acquire()
        line, _ = listener.accept()
        threading.Thread(target=_converse, args=[line, reply, free], daemon=True).start()


def _converse(
    line: socket.socket, reply: Callable[[socket.socket], None], free: threading.BoundedSemaphore
) -> None:
    try:
        with line, contextlib.suppress(OSError):
            reply(line)
    finally:
        free.release()


def dial_for(line: socket.socket, request: Dial) -> None:
    """Open a TCP connection in this network namespace and hand it out."""
    try:
        connection = socket.create_connection((request.address, request.port), timeout=request.timeout)
    except OSError as error:
        say(line, {"errno": error.errno, "error": str(error)})
        return
    with connection:
        connection.settimeout(None)
        say(line, {}, [connection.fileno()])
