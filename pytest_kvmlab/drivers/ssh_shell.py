"""A person's terminal connected to a shell in the guest."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import paramiko

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.ssh_connection import SshConnection
from pytest_kvmlab.drivers.terminal import raw_terminal

_OPEN_SECONDS = 30.0
_STATUS_SECONDS = 2.0


def interact(connection: SshConnection) -> int:
    """Connect this process's terminal to a login shell in the guest until the shell ends.

    To be called from the main thread, the only one that may watch for the terminal's new size.

    Returns:
        The shell's exit status, or -1 where a signal or a lost connection ended it.

    Raises:
        SshLost: the connection broke before the shell had started.
        GuestError: the guest refused to start a shell.
    """
    deadline = Deadline(_OPEN_SECONDS)
    with ExitStack() as stack:
        with connection.answering("starting a shell", deadline):
            channel = stack.enter_context(connection.session(_start, deadline))
        resized = stack.enter_context(_window_changes())
        stack.enter_context(raw_terminal(sys.stdin.fileno()))
        _relay(channel, resized)
        channel.status_event.wait(_STATUS_SECONDS)
        return channel.exit_status


def _start(channel: paramiko.Channel) -> None:
    # With a terminal of its own the shell would wait for Ctrl-D where a pipe simply ends.
    if sys.stdin.isatty():
        channel.get_pty(os.environ.get("TERM", "vt100"), *_size())
    channel.invoke_shell()


def _relay(channel: paramiko.Channel, resized: int) -> None:
    """Carry bytes both ways until the shell's output ends."""
    keyboard = sys.stdin.fileno()
    poll = select.poll()
    for descriptor in (channel.fileno(), keyboard, resized):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if channel.fileno() in ready and not _show(channel):
            return
        if keyboard in ready and not _send(channel, keyboard):
            poll.unregister(keyboard)
        if resized in ready:
            os.read(resized, 512)
            if sys.stdin.isatty():
                channel.resize_pty(*_size())


def _show(channel: paramiko.Channel) -> bool:
    data = channel.recv(4096)
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return bool(data)


def _send(channel: paramiko.Channel, keyboard: int) -> bool:
    typed = os.read(keyboard, 4096)
    if typed:
        channel.sendall(typed)
    else:
        channel.shutdown_write()
    return bool(typed)


def _size() -> tuple[int, int]:
    """Columns and rows of the terminal itself: `shutil` would believe COLUMNS, which no resize changes."""
    try:
        return os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return 80, 24


@contextmanager
def _window_changes() -> Iterator[int]:
    """A descriptor that can be read after each change of the terminal's size.

    The signal handler itself may not send: it could interrupt a message that is half sent.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.signal(signal.SIGWINCH, lambda *_: os.write(writer, b"."))
    try:
        yield reader
    finally:
        signal.signal(signal.SIGWINCH, before)
        os.close(reader)
        os.close(writer)
