"""Two ports joined by hand: `python -m pytest_kvmlab.keeper.pump PORT PORT END`, numbers of descriptors.

The kernel joins the ends of a veth pair by itself, but only root can put one of them on a bridge of the host.
What comes out of one port goes into the other one, until the other end of END, a pipe, is closed.
"""

import contextlib
import os
import select
import sys

_LONGEST_FRAME = 65_536


def pump(one: int, other: int, end: int) -> None:
    """Carry Ethernet frames between two ports.

    Args:
        one: a descriptor of a TAP without headers of its own.
        other: another.
        end: a pipe; when its other end is closed, this is done.

    Raises:
        OSError: a port is gone.
    """
    to = {one: other, other: one}
    ready = select.poll()
    for port in to:
        os.set_blocking(port, False)
        ready.register(port, select.POLLIN)
    ready.register(end, select.POLLHUP)
    while end not in (found := dict(ready.poll())):
        for port in found:
            _carry(port, to[port])


def _carry(source: int, target: int) -> None:
    """Take one frame; one that does not fit in is lost, as on any wire."""
    with contextlib.suppress(BlockingIOError):
        frame = os.read(source, _LONGEST_FRAME)
        os.write(target, frame)


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # a port was taken away before the pipe was closed
        pump(*map(int, sys.argv[1:4]))
