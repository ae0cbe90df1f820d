"""An authenticated SSH connection to one guest, every step of it bounded."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import paramiko

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import GuestError, WaitTimeout

_ATTEMPTS = 5
_NEVER_ASKED = {"Unable to open channel.", "Channel is not open"}
"""What paramiko says, for want of a type, of a channel that was closed before a request was sent on it."""
_KEEPALIVE_SECONDS = 30.0
_SEND_SECONDS = 2.0
"""How long a last message may wait for a guest that takes no more bytes."""
_NOTICE_SECONDS = 0.2
"""How long the reader of a connection may take to notice that it has ended."""


class SshLost(GuestError):
    """An SSH connection that worked is gone: the guest crashed, rebooted or was reset."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "see the guest's console log for what it was doing then", phase="ssh")


class SshConnection:
    """An authenticated connection.

    Args:
        client: the connected client.
        name: the guest, for messages.
    """

    def __init__(self, client: paramiko.SSHClient, name: str) -> None:
        transport = client.get_transport()
        if transport is None:
            raise ValueError("the client is not connected")
        self.client = client
        self.name = name
        self.transport = transport
        # A guest that was reset answers the next packet by a TCP reset, so that `alive` tells the truth.
        self.transport.set_keepalive(_KEEPALIVE_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether the connection can still carry a command."""
        return self.transport.is_active()

    def survives(self) -> bool:
        """Whether the connection is alive, once its reader had a moment to notice that it is not."""
        self.transport.join(_NOTICE_SECONDS)
        return self.alive

    @contextmanager
    def session(
        self, start: Callable[[paramiko.Channel], None], deadline: Deadline
    ) -> Iterator[paramiko.Channel]:
        """A channel of its own, in which something runs; closed at the end.

        Args:
            start: asks the server to run it.
            deadline: what opening the channel and starting may take.
        """
        channel = self._started(start, deadline)
        try:
            yield channel
        finally:
            if deadline.passed:
                discard(channel)
            else:
                channel.close()

    def _started(self, start: Callable[[paramiko.Channel], None], deadline: Deadline) -> paramiko.Channel:
        """Open a channel and start something in it, anew where the channel was closed before it was asked.

        dropbear 2022.82 to 2024.85 closes a channel that is opened just when another session's process
        ends (https://github.com/mkj/dropbear/pull/326). Where it does so after it was asked, the command
        may have run, so that is an error: a command is never run twice.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._start_once(start, deadline)
            except paramiko.SSHException as error:
                if str(error) not in _NEVER_ASKED or deadline.passed or not self.alive:
                    raise
        return self._start_once(start, deadline)

    def _start_once(self, start: Callable[[paramiko.Channel], None], deadline: Deadline) -> paramiko.Channel:
        channel = self.transport.open_session(timeout=min(deadline.remaining, threading.TIMEOUT_MAX))
        with cut_off(channel, deadline):
            start(channel)
        return channel

    @contextmanager
    def answering(self, doing: str, deadline: Deadline) -> Iterator[None]:
        """Tell paramiko's exceptions as ours; for a body that touches nothing but the connection.

        Args:
            doing: what happens in the body, for messages: `running 'ls'`.
            deadline: the one that the body keeps to.

        Raises:
            SshLost: the connection broke.
            WaitTimeout: the deadline came before the guest had answered.
            GuestError: the guest refused.
        """
        try:
            yield
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self.explain(error, doing, deadline) from error

    def explain(self, error: Exception, doing: str, deadline: Deadline) -> Exception:
        """The error of ours that tells what `error` means while `doing` something."""
        if deadline.passed:
            return WaitTimeout(f"{doing} on {self.name}: no answer within {deadline.seconds:g} s")
        if not self.survives():
            return self.lost(doing)
        told = str(error) or type(error).__name__
        return GuestError(f"the SSH server of {self.name} did not agree to {doing}: {told}", phase="ssh")

    def lost(self, doing: str) -> SshLost:
        """The error for a connection that broke while `doing` something."""
        return SshLost(f"the SSH connection to {self.name} was lost while {doing}")

    def close(self) -> None:
        """Close the connection and all that runs over it. Never hangs, never raises."""
        sock = self.transport.sock
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # wakes the reader, which else looks up every 0.1 s
        self.client.close()
        self.transport.join(_SEND_SECONDS)
        sock.close()  # paramiko leaves it open where its reader saw the end first


@contextmanager
def cut_off(channel: paramiko.Channel, deadline: Deadline) -> Iterator[None]:
    """Close the channel when the deadline passes, which wakes whoever waits for it.

    paramiko waits without a limit for the answer to a request (`exec`, `subsystem`, `pty-req`).
    """
    timer = threading.Timer(min(deadline.remaining, threading.TIMEOUT_MAX), discard, [channel])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def discard(channel: paramiko.Channel) -> None:
    """Close the channel, and the connection too if the guest takes no more bytes."""
    closer = threading.Thread(target=channel.close, daemon=True)
    closer.start()
    closer.join(_SEND_SECONDS)
    if closer.is_alive():
        channel.get_transport().close()
        closer.join(_SEND_SECONDS)
