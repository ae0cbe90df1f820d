"""The state of a machine's devices on its way between QEMU and a file: a migration over a unix socket.

QEMU runs under a seccomp filter that keeps it from starting programs (libvirt.org/drvqemu.html,
"seccomp_sandbox"), so a migration to `exec:` would end it; one over a socket does not.
"""

import contextlib
import hashlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import HostError

_PIECE_BYTES = 2**20
# Without its memory, a machine has a few hundred kilobytes of state; the picture of its screen may be on top.
_MOST_BYTES = 512 * 2**20


@contextlib.contextmanager
def receiving(path: Path, deadline: Deadline) -> Iterator[Callable[[Path], str]]:
    """Wait at a socket for QEMU to send a state.

    Args:
        path: where QEMU will connect to; the socket is removed at the end.
        deadline: for all of it.

    Yields:
        A function that writes what comes into a file, and returns its SHA-256.

    Raises:
        HostError: nothing comes in time, or too much.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(str(path))
            listener.listen(1)
            yield lambda target: _received(listener, target, deadline)
        except OSError as error:
            raise HostError(f"the state of a guest did not arrive: {error}", looked_at=[path]) from error
        finally:
            path.unlink(missing_ok=True)


def _received(listener: socket.socket, target: Path, deadline: Deadline) -> str:
    listener.settimeout(deadline.remaining)
    line, _ = listener.accept()
    digest, size = hashlib.sha256(), 0
    with line, target.open("xb") as file:
        while piece := _piece(line, deadline):
            size += len(piece)
            if size > _MOST_BYTES:
                raise HostError(f"the state of a guest is larger than {_MOST_BYTES >> 20} MiB")
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _piece(line: socket.socket, deadline: Deadline) -> bytes:
    line.settimeout(max(0.01, deadline.remaining))
    return line.recv(_PIECE_BYTES)


def send(path: Path, state: bytes, deadline: Deadline) -> None:
    """Give QEMU a state that it waits for.

    Args:
        path: the socket at which it listens.
        state: as it was received.
        deadline: how long QEMU may take to read it.

    Raises:
        HostError: it does not take it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        try:
            line.settimeout(max(0.01, deadline.remaining))
            line.connect(str(path))
            line.sendall(state)
        except OSError as error:
            raise HostError(f"QEMU did not take the state of a guest: {error}", looked_at=[path]) from error
