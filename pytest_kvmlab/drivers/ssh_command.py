"""One command over SSH: both streams drained at once, bounded in time and size."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import paramiko

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.command import CommandResult
from pytest_kvmlab.drivers.ssh_connection import SshConnection, discard
from pytest_kvmlab.errors import CommandFailed, WaitTimeout

_OUTPUT_LIMIT = 64 << 20
"""Bytes that one command may print before it is cut off: a guest shall not eat the host's memory."""
_TICK_SECONDS = 0.05
"""How soon an exit status is noticed that comes without an end of the output."""
_QUIET_SECONDS = 1.0
"""How long a stream must be silent, once the status is known, to count as a background process's."""
_TAIL_CHARACTERS = 2000


class _Arrival(threading.Event):
    """Set whenever something comes on either stream; paramiko clears it when one of them is empty."""

    def clear(self) -> None:
        """Leave it to `rearm`: the other stream may not be empty."""

    def rearm(self) -> None:
        """Clear it, before looking at both streams."""
        super().clear()


class _Output:
    """What a channel has brought so far.

    Waits on paramiko's buffers, not on the channel's file descriptor: that is a pipe, and where it is
    closed while the guest still sends, paramiko's reader thread fails and takes the connection along.
    """

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._arrival = _Arrival()
        channel.in_buffer.set_event(self._arrival)
        channel.in_stderr_buffer.set_event(self._arrival)

    @property
    def size(self) -> int:
        return len(self._stdout) + len(self._stderr)

    @property
    def stdout(self) -> str:
        return self._stdout.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        return self._stderr.decode("utf-8", "replace")

    def take(self, seconds: float) -> bool:
        """Take what comes within so many seconds, the first of it at once; whether there was anything."""
        before = self.size
        self._arrival.wait(seconds)
        self._arrival.rearm()
        while self._channel.recv_ready() and self.size <= _OUTPUT_LIMIT:
            self._stdout += self._channel.recv(1 << 16)
        while self._channel.recv_stderr_ready() and self.size <= _OUTPUT_LIMIT:
            self._stderr += self._channel.recv_stderr(1 << 16)
        return self.size > before


def run_command(connection: SshConnection, command: str, deadline: Deadline, stdin: bytes) -> CommandResult:
    """Run a command by the login shell of the guest's user.

    Args:
        connection: carries the command; it stays usable when the command is cut off.
        command: text for the shell.
        deadline: when to stop waiting for it. The server is not asked to end the command.
        stdin: what the command can read; then its standard input ends.

    Raises:
        WaitTimeout: the command had not ended by then; with the end of its output.
        CommandFailed: it printed more than 64 MiB.
        SshLost: the connection broke.
        GuestError: the server refused to run a command.
    """
    doing = f"running {command!r}"

    def start(channel: paramiko.Channel) -> None:
        channel.exec_command(command)

    with connection.answering(doing, deadline), connection.session(start, deadline) as channel:
        output = _Output(channel)
        with _feeding(channel, stdin):
            ended = _collect(channel, output, deadline)
        _check(connection, command, output, ended=ended, deadline=deadline)
        if channel.exit_status < 0 and not connection.survives():
            raise connection.lost(doing)
        return CommandResult(command, output.stdout, output.stderr, channel.exit_status, deadline.elapsed)


def _check(
    connection: SshConnection, command: str, output: _Output, *, ended: bool, deadline: Deadline
) -> None:
    if output.size > _OUTPUT_LIMIT:
        raise CommandFailed(
            f"{command!r} on {connection.name} printed more than {_OUTPUT_LIMIT >> 20} MiB and was cut off; "
            "let it write to a file, and get that"
        )
    if not ended:
        raise WaitTimeout(
            f"{command!r} on {connection.name} did not end within {deadline.seconds:g} s\n"
            f"stdout so far: {output.stdout[-_TAIL_CHARACTERS:] or '(nothing)'}\n"
            f"stderr so far: {output.stderr[-_TAIL_CHARACTERS:] or '(nothing)'}"
        )


def _collect(channel: paramiko.Channel, output: _Output, deadline: Deadline) -> bool:
    """Drain both streams until the command has ended; False when the deadline or the limit came first.

    A process that the command left in the background keeps the streams open: then the exit status
    and silence are the end.
    """
    heard = time.monotonic()
    while not (channel.eof_received or channel.closed):
        if deadline.passed or output.size > _OUTPUT_LIMIT:
            return channel.status_event.is_set()
        if output.take(min(_TICK_SECONDS, deadline.remaining)) or not channel.status_event.is_set():
            heard = time.monotonic()
        elif time.monotonic() - heard > _QUIET_SECONDS:
            return True
    output.take(0)
    return channel.status_event.wait(min(deadline.remaining, threading.TIMEOUT_MAX))


@contextmanager
def _feeding(channel: paramiko.Channel, stdin: bytes) -> Iterator[None]:
    """Send the standard input from a thread of its own: the command may print before it has read it all."""
    if not stdin:
        channel.shutdown_write()
        yield
        return
    feeder = threading.Thread(target=_feed, args=(channel, stdin), daemon=True)
    feeder.start()
    try:
        yield
    finally:
        if feeder.is_alive():
            discard(channel)
        feeder.join()


def _feed(channel: paramiko.Channel, stdin: bytes) -> None:
    try:
        channel.sendall(stdin)
        channel.shutdown_write()
    except (OSError, EOFError):
        return  # the command ended without reading it all, which is its right
