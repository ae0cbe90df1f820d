"""What is said on the keeper's socket: one JSON line each way, and at most one descriptor back."""

import array
import json
import socket
from pathlib import Path
from typing import Any

_LONGEST = 64 * 1024


def ask(path: Path, request: dict[str, Any], *, timeout: float) -> tuple[dict[str, Any], int | None]:
    """Ask the keeper and wait for its answer.

    Args:
        path: the keeper's socket.
        request: what is asked, with the verb under `do`.
        timeout: seconds for the whole exchange.

    Returns:
        The answer, and the descriptor that came with it.

    Raises:
        OSError: nobody answers there, or not in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(timeout)
        line.connect(str(path))
        line.sendall(json.dumps(request).encode() + b"\n")
        return receive(line)


def send(line: socket.socket, document: dict[str, Any], descriptor: int | None = None) -> None:
    """Send one document, and with it a descriptor (unix(7), SCM_RIGHTS)."""
    rights = (
        [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    )
    line.sendmsg([json.dumps(document).encode() + b"\n"], rights)


def receive(line: socket.socket) -> tuple[dict[str, Any], int | None]:
    """Read one document and the descriptor that may come with it.

    Raises:
        ConnectionError: the other end closed the line, or sent something else.
    """
    text, descriptor = b"", None
    while not text.endswith(b"\n"):
        piece, descriptors, _, _ = socket.recv_fds(line, _LONGEST, 1)
        descriptor = descriptors[0] if descriptors else descriptor
        text += piece
        if not piece or len(text) > _LONGEST:
            raise ConnectionError("the keeper closed the line")
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ConnectionError("not a document of the keeper's")
    return document, descriptor
