"""What is said on the keeper's socket, and on those of its lans: one JSON line each way, descriptors back.

A guest that breaks out of its QEMU can reach this socket, so what comes in is bounded in size, time and form.
"""

import array
import ipaddress
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.lan_request import check_lan_name

_LONGEST = 500  # bytes of a request
LONGEST_ANSWER = 65_536
"""Bytes of an answer."""
_MOST_DESCRIPTORS = 4
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


@dataclass(frozen=True)
class OpenLan:
    """Start the process that makes the networks of a lab; the connection becomes its lifeline.

    Attributes:
        lan: names it among those of the run.
    """

    lan: str


def dial_through(path: Path, request: Dial, *, who: str) -> socket.socket:
    """Let the keeper, or a lan, open a connection where only it can.

    Args:
        path: its socket.
        request: the connection.
        who: listens there, with its verb, for messages: `the keeper is`.

    Returns:
        The connected socket; it keeps working here, outside the namespace (network_namespaces(7)).

    Raises:
        OSError: nobody accepts the connection, or not in time.
        HostError: nobody listens at the socket any more.
    """
    try:
        answer, descriptors = ask_for(path, asdict(request), timeout=request.timeout)
    except (FileNotFoundError, ConnectionError) as error:
        raise HostError(f"{who} gone: {error}", looked_at=[path]) from error
    if not descriptors:
        raise OSError(answer.get("errno") or 0, answer.get("error", "no reason given"))
    return socket.socket(fileno=descriptors[0])


def ask_for(path: Path, document: dict[str, Any], *, timeout: float) -> tuple[dict[str, Any], list[int]]:
    """Ask whoever listens at a socket, and wait for the answer.

    Args:
        path: the socket.
        document: what is asked.
        timeout: seconds that doing it takes at most.

    Returns:
        The answer, and the descriptors that came with it.

    Raises:
        OSError: nobody answers there, or not in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(timeout + _REQUEST_SECONDS)
        line.connect(str(path))
        say(line, document)
        return hear(line)


def hear(line: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Read one answer, and the descriptors that came with it; the line's own timeout counts.

    Raises:
        ConnectionError: the other side hung up, or said something else.
    """
    # An answer is sent at once, so its first bytes carry the descriptors (unix(7), SCM_RIGHTS).
    text, descriptors, _, _ = socket.recv_fds(line, LONGEST_ANSWER, _MOST_DESCRIPTORS)
    while text and not text.endswith(b"\n") and len(text) < LONGEST_ANSWER:
        text += line.recv(LONGEST_ANSWER) or b"\n"
    return _document(text), descriptors


def say(line: socket.socket, document: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one document, and descriptors with it."""
    text = json.dumps(document).encode() + b"\n"
    rights = array.array("i", descriptors)
    sent = line.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else [])
    if sent < len(text):  # else the other side may have heard all, and hung up
        line.sendall(text[sent:])


def refusal(error: Exception) -> dict[str, str]:
    """Write an error as an answer."""
    if isinstance(error, HostError):
        return {"error": error.message, "hint": error.hint, "check": error.check}
    return {"error": str(error)}


def refused(doing: str, answer: dict[str, Any], *, looked_at: Sequence[object] = ()) -> HostError:
    """Read an error from an answer.

    Args:
        doing: what cannot be done.
        answer: with the reason.
        looked_at: where the reader may look further.
    """
    hint, check = str(answer.get("hint", "")), str(answer.get("check", ""))
    return HostError(f"{doing}: {answer.get('error')}", hint, check=check, looked_at=looked_at)


def receive(line: socket.socket) -> Dial | OpenLan:
    """Read one request to the keeper, from whoever is there.

    Descriptors that come with it are closed by the kernel, since plain recv(2) takes none.

    Raises:
        ConnectionError: it is not a request of ours, or did not come in time.
    """
    match receive_document(line):
        case {"lan": str(lan), **rest} if not rest:
            return _checked_lan(OpenLan(lan))
        case document:
            return as_dial(document)


def _checked_lan(request: OpenLan) -> OpenLan:
    try:
        check_lan_name(request.lan)
    except ValueError as error:
        raise ConnectionError(str(error)) from error
    return request


def receive_document(line: socket.socket, *, longest: int = _LONGEST) -> dict[str, Any]:
    """Read one document, of a bounded length and in a bounded time.

    Raises:
        ConnectionError: it is none, is too long, or did not come in time.
    """
    text, end = b"", time.monotonic() + _REQUEST_SECONDS
    while not text.endswith(b"\n"):
        line.settimeout(max(0.01, end - time.monotonic()))
        piece = line.recv(longest)
        text += piece
        if not piece or len(text) > longest or time.monotonic() > end:
            raise ConnectionError("the request does not end")
    return _document(text)


def as_dial(document: dict[str, Any]) -> Dial:
    """Read a request for a connection.

    Raises:
        ConnectionError: it is none, or would wait for a name server, or for ever.
    """
    match document:
        case {"address": str(address), "port": int(port), "timeout": int() | float() as timeout}:
            return _checked(Dial(address, port, timeout))
    raise ConnectionError("not a request of ours")


def _checked(request: Dial) -> Dial:
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
    except (ValueError, RecursionError) as error:
        raise ConnectionError("not a document of the keeper's") from error
    if not isinstance(document, dict):
        raise ConnectionError("not a document of the keeper's")
    return document
