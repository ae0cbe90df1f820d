"""A person's terminal: switched to raw, and connected to a guest's serial line."""

import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

LEAVE = b"\x1d"  # Ctrl-], as in telnet and virsh


@contextmanager
def raw_terminal(terminal: int) -> Iterator[None]:
    """Let every key reach the guest, also those that end programs; a pipe stays as it is."""
    if not os.isatty(terminal):
        yield
        return
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal, termios.TCSADRAIN)  # keeps what was typed ahead
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def interact(line: socket.socket) -> None:
    """Connect standard input and output to a serial line until Ctrl-], or until either side ends."""
    keyboard = sys.stdin.fileno()
    with raw_terminal(keyboard):
        while True:
            ready, _, _ = select.select([line, keyboard], [], [])
            if line in ready:
                shown = line.recv(4096)
                os.write(sys.stdout.fileno(), shown)
                if not shown:
                    return
            if keyboard in ready:
                typed = os.read(keyboard, 4096)
                line.sendall(typed.partition(LEAVE)[0])
                if not typed or LEAVE in typed:
                    return
