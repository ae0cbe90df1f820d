"""Takes what guests print at once, even while this process computes.

QEMU hands on each byte of a serial port by itself, and a Unix socket takes some 280 of these before it is
full. A kernel that finds its port busy for 10 ms goes on without it (`wait_for_lsr`, 8250_port.c of Linux): a
test that computes for as long, or a machine that is short of processors, would cost lines of the console. So
a process that does nothing else reads them.
"""

import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import HostError

_PROGRAM = Path(__file__).with_name("line_buffer_process.py")
_END_SECONDS = 5.0
_CATCH_UP = b"catch up"


class LineBuffer:
    """A process that reads serial lines for this one; it is started with the first of them."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def before(self, line: socket.socket) -> socket.socket:
        """Have a line read from now on.

        Args:
            line: the connected socket of a serial port; it is the process's from here on.

        Returns:
            A socket with what the line shows, and for what is typed there.

        Raises:
            HostError: the process cannot be started, or has ended.
        """
        ours, theirs = socket.socketpair()
        try:
            with line, theirs, self._turn:
                control = self._control or self._start()
                socket.send_fds(control, [b"line"], [line.fileno(), theirs.fileno()])
        except OSError as error:
            ours.close()
            raise HostError(f"serial lines cannot be read: {error}") from error
        return ours

    def catch_up(self, deadline: Deadline) -> None:
        """Wait until all that has arrived was handed on.

        Args:
            deadline: how long to wait.
        """
        with contextlib.suppress(OSError), self._turn:  # where the process is gone, each line has ended
            if self._control:
                self._control.settimeout(max(0.001, min(_END_SECONDS, deadline.remaining)))
                self._control.send(_CATCH_UP)
                self._control.recv(len(_CATCH_UP))

    def close(self) -> None:
        """End the process, and with it each line."""
        with self._turn:
            if self._control and self._process:
                self._control.close()
                self._process.wait(_END_SECONDS)

    def _start(self) -> socket.socket:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_PROGRAM)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for its owner to deal with
            )
        return self._control
