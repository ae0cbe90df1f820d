"""Connecting to an SSH server of a guest that may not be up yet: it greets whoever connects (RFC 4253, 4.2).

User-mode networking accepts a connection before the guest can. What was connected too early stays silent for
seconds after the guest has come up (slirp repeats its SYN ever more rarely), so it does not pay to wait for
it; but a slow guest needs time to greet. Hence two at once: a patient connection, and beside it one fresh one
after the other, ever more rarely: each costs the guest a new process, and many keep it from greeting at all.
"""

import selectors
import socket
from collections.abc import Callable
from contextlib import suppress

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.lab.waits import until

Dial = Callable[[float], socket.socket]

_GREETING = b"SSH-"
_FRESH_SECONDS = 0.25
_DIAL_SECONDS = 5.0
_LEAST_PATIENCE, _MOST_PATIENCE, _GROWTH = 0.5, 10.0, 1.5
_FRESH_ONES_PER_PATIENT_ONE = 4


def first_to_greet(
    dial: Dial, check: Callable[[], None], deadline: Deadline, *, early: bool = True
) -> socket.socket:
    """Dial until a connection is greeted.

    Args:
        dial: opens a connection within so many seconds, or raises OSError.
        check: called again and again; what it raises ends the dialling.
        deadline: when to give up.
        early: whether connections are accepted before the guest can, so that they may be silent for ever.

    Returns:
        The connection; its greeting is still to be read.

    Raises:
        OSError: nobody was connected to, or no connection was greeted in time.
    """
    waiting = _Waiting(early)

    def attempt() -> socket.socket | None:
        check()
        # Never no time at all: a connection is not even attempted then.
        if waiting.wants_another:
            waiting.add(dial(max(_FRESH_SECONDS, min(_DIAL_SECONDS, deadline.remaining))))
        return waiting.greeted(min(waiting.pause, deadline.remaining))

    try:
        greeted = until(attempt, deadline)
    finally:
        waiting.close()
    if greeted is None:
        raise TimeoutError(f"{waiting.tries} connections, none was greeted within {deadline.seconds:g} s")
    return greeted


class _Waiting:
    """Connections that have not been greeted yet, each with the time until which it is believed in."""

    def __init__(self, early: bool) -> None:
        self.tries = 0
        self._early = early
        self._patience = _LEAST_PATIENCE if early else _MOST_PATIENCE
        self._ends: dict[socket.socket, Deadline] = {}

    @property
    def pause(self) -> float:
        """Seconds between two fresh connections."""
        return max(_FRESH_SECONDS, self._patience / _FRESH_ONES_PER_PATIENT_ONE)

    @property
    def wants_another(self) -> bool:
        """Whether a fresh connection may be answered before those that there are."""
        return self._early or not self._ends

    def add(self, connection: socket.socket) -> None:
        self.tries += 1
        patient = not self._ends
        self._ends[connection] = Deadline(self._patience if patient else self.pause)
        if patient:
            self._patience = min(_MOST_PATIENCE, self._patience * _GROWTH)

    def greeted(self, seconds: float) -> socket.socket | None:
        """Wait for a greeting; connections that were hung up or waited for long enough are closed."""
        with selectors.DefaultSelector() as selector:
            for connection in self._ends:
                selector.register(connection, selectors.EVENT_READ)
            speaking = [key.fileobj for key, _ in selector.select(seconds)]
        for connection, end in list(self._ends.items()):
            if connection in speaking and _has_greeting(connection):
                del self._ends[connection]
                return connection
            if connection in speaking or end.passed:
                self._drop(connection)
        return None

    def close(self) -> None:
        for connection in list(self._ends):
            self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        del self._ends[connection]
        connection.close()


def _has_greeting(connection: socket.socket) -> bool:
    """Whether there is a greeting to read: not the end, and not the excuse of a server with many calls."""
    with suppress(OSError):
        return connection.recv(len(_GREETING), socket.MSG_PEEK) == _GREETING
    return False
