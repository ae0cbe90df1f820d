"""What is said on the keeper's socket: one JSON line each way, and at most one descriptor back.

A guest that breaks out of its QEMU can reach this socket, so what comes in is bounded in size, time and form.
"""

import array
import ipaddress
import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_LONGEST = 500  # bytes; also less than Python's recursion limit, so that no nesting is too deep to read
_REQUEST_SECONDS = 10.0
_LONGEST_DIAL = 3600.0  # seconds


@dataclass(frozen=True)
class Dial:
    """Open a TCP connection inside the private host.

    Attributes:
        address: an IP address there.
        port: a TCP port.
        timeout: seconds for the connection to be accepted.
    """

    address: str
    port: int
    timeout: float


def ask(path: Path, request: Dial) -> tuple[dict[str, Any], int | None]:
    """Ask the keeper and wait for its answer.

    Args:
        path: the keeper's socket.
        request: what is asked.

    Returns:
        The answer, and the descriptor that came with it.

    Raises:
        OSError: nobody answers there, or not in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(request.timeout + _REQUEST_SECONDS)
        line.connect(str(path))
        line.sendall(json.dumps(asdict(request)).encode() + b"\n")
        # The answer is sent at once, so its first bytes carry the descriptor (unix(7), SCM_RIGHTS).
        text, descriptors, _, _ = socket.recv_fds(line, _LONGEST, 1)
        return _document(text), descriptors[0] if descriptors else None


def answer(line: socket.socket, document: dict[str, Any], descriptor: int | None = None) -> None:
    """Send one document, and with it a descriptor."""
    rights = array.array("i", [] if descriptor is None else [descriptor])
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
    line.sendmsg([json.dumps(document).encode()], control)


def receive(line: socket.socket) -> Dial:
    """Read one request, from whoever is there.

    Descriptors that come with it are closed by the kernel, since plain recv(2) takes none.

    Raises:
        ConnectionError: it is not a request of ours, or did not come in time.
    """
    text, end = b"", time.monotonic() + _REQUEST_SECONDS
    while not text.endswith(b"\n"):
        line.settimeout(max(0.01, end - time.monotonic()))
        piece = line.recv(_LONGEST)
        text += piece
        if not piece or len(text) > _LONGEST or time.monotonic() > end:
            raise ConnectionError("the request does not end")
    match _document(text):
        case {"address": str(address), "port": int(port), "timeout": int() | float() as timeout}:
            return _checked(Dial(address, port, timeout))
    raise ConnectionError("not a request of ours")


def _checked(request: Dial) -> Dial:
    """Refuse what would wait for a name server, or for ever."""
    try:
        ipaddress.ip_address(request.address)
    except ValueError as error:
        raise ConnectionError(f"not an address: {request.address}") from error
    if not (0 < request.port < 65536 and 0 < request.timeout <= _LONGEST_DIAL):
        raise ConnectionError(f"not a port or a time: {request.port}, {request.timeout}")
    return request


def _document(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConnectionError("not a document of the keeper's") from error
    if not isinstance(document, dict):
        raise ConnectionError("not a document of the keeper's")
    return document
